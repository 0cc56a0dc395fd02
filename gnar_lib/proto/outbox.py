"""Sends the messages of many greenlets on one conn, in order; no caller has to wait."""

from __future__ import annotations

from collections.abc import Callable

from gevent.hub import get_hub

from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, Crew, deadline
from gnar_lib.net.options import dead_after_s
from gnar_lib.proto.msg import HEARTBEAT_FRAME, Message, to_frame

MAX_QUEUED_BYTES = 256 << 10  # the answers to a thousand requests


class Outbox:
    """The writing half of a control connection.

    The messages that are posted in one turn of the loop are sent together, at its end. A greenlet of `crew`
    waits while the conn takes no more, so that an idle control connection has none. If writing fails, or if
    too many bytes are queued, `abort` is called, which has to abort the conn.
    """

    __slots__ = (
        "_abort",
        "_conn",
        "_crew",
        "_is_closed",
        "_is_waiting",
        "_queue",
        "_queued_bytes",
        "_will_send",
    )

    def __init__(self, conn: Conn, crew: Crew, abort: Callable[[], None]) -> None:
        self._conn = conn
        self._crew = crew
        self._abort = abort
        self._queue: list[bytes] = []  # whole frames
        self._queued_bytes = 0
        self._will_send = False  # `_send` is called at the end of this turn of the loop
        self._is_waiting = False  # a greenlet waits until the conn takes more
        self._is_closed = False

    def post(self, message: Message) -> None:
        """Queue a message; never waits. The message is lost if the outbox is closed."""
        self._post(to_frame(message))

    def post_heartbeat(self) -> None:
        """Queue a Heartbeat that says no more than that this end is alive; all else is as with `post`."""
        self._post(HEARTBEAT_FRAME)

    def _post(self, frame: bytes) -> None:
        if self._is_closed:
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self._give_up()
        elif not (self._will_send or self._is_waiting):
            self._will_send = True
            get_hub().loop.run_callback(self._send)

    def close(self) -> None:
        """Send nothing more; the owner of the conn closes the conn."""
        self._is_closed = True
        self._queue.clear()
        self._abort = _do_nothing  # lets go of the control connection

    def _give_up(self) -> None:
        abort = self._abort
        self.close()
        abort()

    def _send(self) -> None:
        """Send what is queued, as far as the conn takes it; runs in the hub."""
        self._will_send = False
        data = self._take()
        if not data:
            return
        try:
            sent = self._conn.send_now(data)
        except ConnError:
            self._give_up()
            return
        if sent < len(data):
            self._is_waiting = True
            self._crew.spawn(self._send_waiting, data[sent:])

    def _send_waiting(self, data: bytes) -> None:
        """Send `data`, and what is queued meanwhile; in a greenlet."""
        try:
            while data and not self._is_closed:
                with deadline(dead_after_s(), "writing to the control connection"):
                    self._conn.sendall(data)
                data = self._take()
        except ConnError:
            self._give_up()
            raise
        finally:
            self._is_waiting = False

    def _take(self) -> bytes:
        """Return all that is queued, which is queued no longer."""
        data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        return data


def _do_nothing() -> None:
    """Stand for the end of a conn that its owner closes."""
