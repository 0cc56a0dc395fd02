"""Server-sent events over a connection, and what watches the reader meanwhile; knows no service.

The greenlet of the connection runs what the handler wants to be run, and the hub looks after the reader.
A timer sends a comment now and then, so that proxies keep the connection. When the reader has gone or takes
nothing, an error is raised in the greenlet, wherever it waits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent

from gnar_lib.errors import ConnClosed, ConnError, DeadlineError
from gnar_lib.http.codec import ServerCodec
from gnar_lib.http.limits import Limits
from gnar_lib.http.message import EventStream
from gnar_lib.http.share import share
from gnar_lib.net import EventedConn

CONTENT_TYPE = "text/event-stream"
COMMENT = b":\n\n"
MAX_IGNORED_BYTES = 64 * 1024  # that a reader may send, for no reason
MIN_IGNORED_BYTES = 1024  # that each read counts as at least: a byte at a time costs as much
_LINE_END = re.compile(r"\r\n|\r|\n")  # what ends a line of an event stream, and nothing else does
_FORBIDDEN = re.compile(r"[\r\n\0]")


def encode_event(name: str, data: str, event_id: str = "") -> bytes:
    """Return an event as its bytes. Raises `ValueError` for a name or an id with a line break."""
    if _FORBIDDEN.search(name + event_id):
        raise ValueError(f"no name and id of an event: {name!r}, {event_id!r}")
    lines = [f"event: {name}"] if name else []
    lines += [f"id: {event_id}"] if event_id else []
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return "\n".join([*lines, "", ""]).encode(errors="replace")


def run_stream(stream: EventStream, conn: EventedConn, codec: ServerCodec, limits: Limits) -> None:
    """Run an event stream whose head has been sent, to its end. Raises `ConnError` if the reader ends it."""
    reader = _Reader(conn, codec, limits)
    with reader.watched():
        stream.run(reader.send)
    codec.send_encoded(reader.owed)
    codec.end_body()


class _Reader:
    """The reader of one event stream."""

    def __init__(self, conn: EventedConn, codec: ServerCodec, limits: Limits) -> None:
        self.owed = b""  # the rest of a comment that did not fit
        self._conn = conn
        self._codec = codec
        self._greenlet = getcurrent()
        self._is_sending = False
        self._ignored_bytes = 0
        self._timer: Any = get_hub().loop.timer(limits.comment_s, limits.comment_s)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the reader during the block, in which errors about the reader are raised."""
        self._conn.call_when_readable(self._on_readable)
        self._timer.start(self._tick)
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        self._timer.stop()
        self._conn.call_when_readable(None)

    def send(self, event_name: str, data_text: str, event_id: str = "") -> None:
        """Send an event, and wait until the reader has taken most of it."""
        share.give_way()
        data = self.owed + self._codec.encode_body(encode_event(event_name, data_text, event_id))
        self.owed = b""
        self._is_sending = True
        try:
            self._codec.send_encoded(data)
        except BaseException:
            self._conn.abort()  # in the middle of an event nothing can follow
            raise
        finally:
            self._is_sending = False

    # ---- in the hub ----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Show the reader that the stream is alive, and find out whether the reader is."""
        if self._is_sending:  # under a deadline of its own
            return
        if gone := self._conn.why_gone(time.monotonic()):
            self._cut(ConnClosed(gone))
            return
        if self.owed:
            self._cut(DeadlineError(f"{self._conn}: the reader takes nothing"))
            return
        comment = self._codec.encode_body(COMMENT)
        try:
            self.owed = comment[self._conn.send_now(comment) :]
        except ConnError as exc:
            self._cut(exc)

    def _on_readable(self) -> None:
        """Notice the end of the stream; what a reader sends is ignored."""
        try:
            data = self._conn.recv_now(MAX_IGNORED_BYTES)
        except ConnError as exc:
            self._cut(exc)
            return
        self._ignored_bytes += max(len(data or b""), MIN_IGNORED_BYTES)
        if data == b"":
            self._cut(ConnClosed(f"{self._conn}: the reader has gone"))
        elif self._ignored_bytes > MAX_IGNORED_BYTES:
            self._cut(ConnClosed(f"{self._conn}: a reader is not to send"))

    def _cut(self, error: ConnError) -> None:
        """Raise an error in the greenlet of the stream, which waits for something while the hub runs."""
        self._stop()
        self._conn.abort()  # so that `send` fails from now on, should somebody catch the error
        self._greenlet.throw(error)
