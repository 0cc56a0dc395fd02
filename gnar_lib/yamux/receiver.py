"""The receiving half of a session: a callback of the hub that cuts what arrives into frames; never waits.

One read brings many frames. Their payloads are lent to the streams, readers are switched to, and only what
they leave is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent.hub import get_hub

from gnar_lib.errors import ConnClosed, GnarError
from gnar_lib.net import SocketConn
from gnar_lib.yamux.frame import DATA, HEADER_BYTES, PING, WINDOW_UPDATE, unpack

if TYPE_CHECKING:
    from gnar_lib.yamux.session import Session
    from gnar_lib.yamux.stream import Stream

BUFFER_BYTES = 256 * 1024

# One for all sessions: between two reads nothing is left in it.
_buffer = memoryview(bytearray(BUFFER_BYTES))


class Receiver:
    """Reads the frames of one session for as long as its conn is open."""

    __slots__ = ("_conn", "_flags", "_header", "_missing", "_session", "_stream", "_touched", "has_heard")

    def __init__(self, conn: SocketConn, session: Session) -> None:
        self.has_heard = True  # some byte, since somebody set this to False
        self._conn = conn
        self._session = session
        self._header = b""  # the beginning of one that was cut
        # Of the Data frame under way: where its payload goes, how much is still to come, and the flags.
        self._stream: Stream | None = None
        self._missing = 0
        self._flags = 0
        self._touched: list[Stream] = []

    def start(self) -> None:
        """Read from now on, what was read before and put back into the conn included."""
        self._conn.call_when_readable(self._on_readable)
        if self._conn.has_unread:
            get_hub().loop.run_callback(self._on_unread)

    def _on_unread(self) -> None:
        while self._conn.has_unread and not self._session.closed:
            self._on_readable()

    def _on_readable(self) -> None:
        session = self._session
        if session.closed:
            return
        begin = len(self._header)
        try:
            count = self._conn.recv_into_now(_buffer[begin:])
            if count is None:
                return
            if not count:
                raise ConnClosed("the peer closed the connection")
            self.has_heard = True
            session.sender.corked = True
            _buffer[:begin] = self._header
            self._cut(begin + count)
        except GnarError as exc:
            session.get_error(exc)
        touched, self._touched = self._touched, []
        try:
            session.after_frames(touched)
        finally:  # the buffer is about to be used again
            for stream in touched:
                stream.keep()
            session.sender.corked = False
        session.sender.flush()

    def _cut(self, end: int) -> None:
        """Go through the first `end` bytes of the buffer."""
        at = self._get_payload(0, end) if self._stream or self._missing else 0
        while end - at >= HEADER_BYTES:
            kind, flags, stream_id, length = unpack(_buffer, at)
            at += HEADER_BYTES
            if kind == DATA:
                self._stream = stream = self._session.stream_for(stream_id, flags)
                self._missing, self._flags = length, flags
                if stream is not None:
                    stream.charge(length)
                at = self._get_payload(at, end)
            elif kind == WINDOW_UPDATE:
                stream = self._session.stream_for(stream_id, flags)
                if stream is not None:
                    self._touch(stream)
                    stream.get_room(length)
                    stream.get_flags(flags)
            elif kind == PING:
                self._session.get_ping(flags, length)
            else:
                self._session.get_go_away(length)
        self._header = bytes(_buffer[at:end]) if at < end else b""

    def _get_payload(self, at: int, end: int) -> int:
        """Pass on what has come of a payload, and its frame's flags behind it; return where that ends."""
        count = min(self._missing, end - at)
        self._missing -= count
        stream = self._stream
        if stream is not None:
            self._touch(stream)
            if count:
                stream.get_data(_buffer[at : at + count])
            if not self._missing:
                stream.get_flags(self._flags)
        if not self._missing:
            self._stream = None
        return at + count

    def _touch(self, stream: Stream) -> None:
        if not stream.is_touched:
            stream.is_touched = True
            self._touched.append(stream)
