"""The receiving half of a session: cuts what arrives into frames, in a callback of the hub; never waits.

One read brings many frames. The payloads are lent to the streams, and the greenlets that wait to read are
switched to. Only what those greenlets leave unread is copied.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Protocol

from gevent.hub import get_hub

from gnar_lib.errors import ConnClosed, GnarError
from gnar_lib.net import EventedConn
from gnar_lib.yamux.frame import (
    DATA,
    GO_AWAY,
    HEADER_BYTES,
    PING,
    SYN,
    WINDOW_UPDATE,
    refuse_kind,
    unpack_from,
)
from gnar_lib.yamux.sender import Sender
from gnar_lib.yamux.stream import Stream

BUFFER_BYTES = 256 * 1024
MAX_FRAMES = 256  # in one turn of the loop, so that a flood of small frames does not keep others waiting

# One buffer for all sessions: nothing is left in it between two reads.
_buffer = memoryview(bytearray(BUFFER_BYTES))


class FrameHandler(Protocol):
    """What a receiver needs of its session."""

    closed: bool  # the session has ended
    sender: Sender  # is corked while frames are handled, so that the answers leave in one system call
    streams: dict[int, Stream]  # by id: frames for others are ignored

    def stream_for_syn(self, stream_id: int) -> Stream | None:
        """Return a new stream, which a frame with SYN opens; None to ignore the frame."""

    def on_ping(self, flags: int, number: int) -> None:
        """A Ping frame has come."""

    def on_go_away(self, reason: int) -> None:
        """A GoAway frame has come."""

    def on_error(self, error: GnarError) -> None:
        """The conn broke or ended, or the peer broke the protocol."""

    def after_frames(self, touched: list[Stream]) -> None:
        """All frames of one read have been handled; some of them belonged to the `touched` streams."""


class Receiver:
    """Reads the frames of one session for as long as its conn is open."""

    __slots__ = (
        "_conn",
        "_flags",
        "_header",
        "_missing",
        "_session",
        "_stream",
        "_touched",
        "_turn",
        "heard_s",
    )

    def __init__(self, conn: EventedConn, session: FrameHandler) -> None:
        self.heard_s = monotonic()  # when some byte last came
        self._conn = conn  # belongs to the session, which closes it
        self._session = session  # is told of every frame that belongs to no stream
        self._header = b""  # the first bytes of a header of which the rest has not come
        # Of the Data frame whose payload is not complete yet:
        self._stream: Stream | None = None  # where the payload goes; None if it is ignored
        self._missing = 0  # how many bytes of the payload have not come
        self._flags = 0  # of that frame: they count once the payload is complete
        self._touched: list[Stream] = []  # streams for which frames have come in this read
        self._turn: Any = None  # the timer for the next turn, when there were too many frames for one

    def start(self) -> None:
        """Receive from now on, beginning with bytes that were put back into the conn."""
        if self._conn.has_unread:
            self._go_on_next_turn()
        else:
            self._conn.call_when_readable(self._on_readable)

    def _go_on_next_turn(self) -> None:
        """Leave what is in the conn for the next turn of the loop: others come first."""
        self._conn.call_when_readable(None)
        self._turn = get_hub().loop.timer(0.0)
        self._turn.start(self._go_on)

    def _go_on(self) -> None:
        self._turn = None
        if not self._session.closed:
            self._conn.call_when_readable(self._on_readable)
            self._on_readable()

    def _on_readable(self) -> None:
        """Read once and handle the frames; runs in the hub."""
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
            self.heard_s = monotonic()
            session.sender.corked = True
            _buffer[:begin] = self._header
            self._handle_frames(begin + count)
        except GnarError as exc:
            session.on_error(exc)
        touched, self._touched = self._touched, []
        try:
            session.after_frames(touched)
        finally:  # the next read of any session overwrites the buffer
            for stream in touched:
                if stream.chunks:
                    stream.copy_borrowed()
            session.sender.corked = False
        session.sender.flush()

    def _handle_frames(self, end: int) -> None:
        """Handle the frames in the first `end` bytes of the buffer."""
        # Every frame passes here: what most frames need is at hand.
        session, touched = self._session, self._touched
        streams = session.streams
        at = self._pass_payload(0, end) if self._stream or self._missing else 0
        left = MAX_FRAMES
        while end - at >= HEADER_BYTES and left and not session.closed:
            left -= 1
            kind, flags, stream_id, length = unpack_from(_buffer, at)
            at += HEADER_BYTES
            if kind > WINDOW_UPDATE:
                self._handle_other(kind, flags, length)
                continue
            stream = session.stream_for_syn(stream_id) if flags & SYN else streams.get(stream_id)
            is_due = True
            if kind == DATA and length:
                if stream is None or at + length > end:
                    at = self._begin_payload(stream, flags, length, at, end)
                    continue
                is_due = stream.on_whole_frame(_buffer[at : at + length])
                at += length
            elif stream is not None and kind == WINDOW_UPDATE:
                stream.on_window_update(length)
            if stream is None:
                continue
            if (is_due or flags) and not stream.is_touched:
                stream.is_touched = True
                touched.append(stream)
            if flags:
                stream.on_flags(flags)
        if left or session.closed:
            self._header = bytes(_buffer[at:end]) if at < end else b""
        else:
            self._header = b""
            self._conn.unread(bytes(_buffer[at:end]))
            self._go_on_next_turn()

    def _handle_other(self, kind: int, flags: int, length: int) -> None:
        """Handle a frame that belongs to no stream."""
        if kind == PING:
            self._session.on_ping(flags, length)
        elif kind == GO_AWAY:
            self._session.on_go_away(length)
        else:
            refuse_kind(kind)

    def _begin_payload(self, stream: Stream | None, flags: int, length: int, at: int, end: int) -> int:
        """Begin with a payload that is not complete yet, or that no stream wants; as `_pass_payload`."""
        self._stream, self._missing, self._flags = stream, length, flags
        if stream is not None:
            stream.on_data_header(length)
        return self._pass_payload(at, end)

    def _pass_payload(self, at: int, end: int) -> int:
        """Pass what has come of a payload to the stream; after the last part, pass the frame's flags, too.

        Returns where in the buffer the payload ends.
        """
        count = min(self._missing, end - at)
        self._missing -= count
        stream = self._stream
        if stream is not None:
            if not stream.is_touched:
                stream.is_touched = True
                self._touched.append(stream)
            if count:
                stream.on_data(_buffer[at : at + count])
            if not self._missing:
                stream.on_flags(self._flags)
        if not self._missing:
            self._stream = None
        return at + count
