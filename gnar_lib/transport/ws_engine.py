"""The frames of a WebSocket by wsproto, from bytes in memory to bytes in memory; does no I/O.

Binary messages carry a stream of bytes, and where a message or a frame ends means nothing (RFC 6455). No
extension is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, cast

from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, ParseFailed

LEAST_BYTES: Final = 8  # that a frame of our own peers carries: TLS, yamux and a login send more at once
MAX_TINY_FRAMES: Final = 1000  # that carry less, between two calls of `look`
MOST_FRAMES: Final = 256  # that are read at once, once one carries something: each takes some 10 us
MAX_REASON_CHARS: Final = 60  # of what a peer gives as its reason

_ORDERLY: Final = (CloseReason.NORMAL_CLOSURE, CloseReason.NO_STATUS_RCVD)
_NOTHING = memoryview(b"")


class _Made:
    """Frames that are to be sent: mostly one, which is fetched at once."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: bytes | bytearray = b""

    @property
    def pending(self) -> int:
        """How many bytes there are."""
        return len(self._frames)

    def add(self, frame: bytearray) -> None:
        """Put a frame behind the others."""
        self._frames = self._frames + frame if self._frames else frame

    def read(self) -> bytes | bytearray:
        """Return all of them: from then on they are gone."""
        frames, self._frames = self._frames, b""
        return frames


def _forget(data: memoryview | bytes) -> None:
    """Take what comes behind the end."""


class WebSocketEngine:
    """One end of a WebSocket behind the handshake. Fulfils `LayerEngine`, which describes its methods."""

    __slots__ = (
        "_frames",
        "_has_begun",
        "_has_closed",
        "_pong",
        "_rest",
        "_sent",
        "_tiny",
        "has_more",
        "made",
        "peer_ended",
        "receive",
        "why_broken",
    )

    FRAME_BYTES: ClassVar[int] = 66 * 1024  # what TLS above writes at once: 64 KiB, and what its records add
    READS_BEFORE_GOODBYE: ClassVar[bool] = False

    def __init__(self, *, is_client: bool) -> None:
        self.made = _Made()
        self.peer_ended = False  # the peer has sent Close
        self.why_broken = ""  # why nothing can be read any more
        self.has_more = False  # a read has ended before all that has come
        self._frames = FrameProtocol(is_client, [])
        self.receive = cast("Callable[[memoryview | bytes], None]", self._frames.receive_bytes)
        self._rest = _NOTHING  # of a frame that did not fit into the buffer of a read
        self._has_begun = False  # a message has come without its last frame
        self._pong: bytes | None = None  # the answer to the last Ping, which is still to be made
        self._has_closed = False  # this end has sent Close, and sends no more
        self._sent = 0  # frames since the last `look`
        self._tiny = 0  # frames of the peer since the last `look` that carry nothing, or next to nothing

    # ---- what comes ----------------------------------------------------------------------------------------

    def read_into(self, buffer: memoryview) -> int:
        """Put what has come into `buffer`, as far as it fits, and return how many bytes that were."""
        filled = 0
        if self._rest:
            filled = min(len(self._rest), len(buffer))
            buffer[:filled] = self._rest[:filled]
            self._rest = self._rest[filled:] or _NOTHING  # which frees the memory of the frame
        if filled < len(buffer) and not (self.peer_ended or self.why_broken):
            filled = self._read_frames(buffer, filled)
            if self._pong is not None and not self.made.pending:
                self._make_pong()
        return filled

    def _read_frames(self, buffer: memoryview, filled: int) -> int:
        """Fill the rest of `buffer`, and return how many bytes are in it now."""
        size, left, self.has_more = len(buffer), MOST_FRAMES, False
        try:
            for frame in self._frames.received_frames():
                left -= 1
                if frame.opcode is not Opcode.BINARY:
                    self._take_other(frame)
                    if self.peer_ended or self.why_broken:
                        break
                    continue
                data = memoryview(cast("bytes", frame.payload))
                if len(data) < LEAST_BYTES and frame.frame_finished and not self._has_begun:
                    self._count_tiny()
                self._has_begun = not frame.frame_finished
                count = min(len(data), size - filled)
                buffer[filled : filled + count] = data[:count]
                filled += count
                if count < len(data):
                    self._rest = data[count:]
                    break
                if self.why_broken:
                    break
                if left <= 0:  # behind a frame that carries something, so that whoever reads comes back
                    self.has_more = bool(filled)
                    if self.has_more:
                        break
        except ParseFailed as exc:
            self._break(exc.code, str(exc))
        return filled

    def _take_other(self, frame: Frame) -> None:
        """Take a frame that is not of binary data."""
        if frame.opcode is Opcode.CLOSE:
            code, reason = cast("tuple[int, str]", frame.payload)
            self.receive = _forget
            if code in _ORDERLY:
                self.peer_ended = True
            else:
                shown = "".join(each for each in reason if each.isprintable())[:MAX_REASON_CHARS]
                self.why_broken = f"the other end has closed the WebSocket: {int(code)} {shown}".rstrip()
        elif frame.opcode is Opcode.TEXT:
            self._break(CloseReason.UNSUPPORTED_DATA, "text has come, where only binary messages do")
        else:
            if frame.opcode is Opcode.PING:
                self._pong = bytes(cast("bytes", frame.payload))  # of several, the last one is enough (5.5.3)
            self._count_tiny()

    def _count_tiny(self) -> None:
        self._tiny += 1
        if self._tiny > MAX_TINY_FRAMES:
            self._break(CloseReason.POLICY_VIOLATION, "too many frames that carry nothing")

    def _break(self, code: CloseReason, reason: str) -> None:
        """Read no more, and tell the peer why."""
        self.receive = _forget
        self.why_broken = f"WebSocket: {reason}"
        self._close(code)

    # ---- what is sent --------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Make a frame, which is a message of its own, and return how many bytes it carries."""
        if self._pong is not None:
            self._make_pong()
        self._sent += 1
        self.made.add(self._frames.send_data(cast("bytes", data)))
        return len(data)

    def look(self) -> None:
        """Send Ping if nothing was sent since the last call; to be called every few seconds."""
        if not (self._sent or self._has_closed or self.made.pending):
            self.made.add(self._frames.ping())
        self._sent = self._tiny = 0

    def say_goodbye(self) -> None:
        """Tell the peer that this end sends no more. Nothing follows, not even Pong (5.5.1)."""
        self._close(CloseReason.NORMAL_CLOSURE)

    def _make_pong(self) -> None:
        pong, self._pong = self._pong or b"", None
        if not self._has_closed:
            self._sent += 1
            self.made.add(self._frames.pong(pong))

    def _close(self, code: CloseReason) -> None:
        if not self._has_closed:
            self._has_closed = True
            self.made.add(self._frames.close(code))
