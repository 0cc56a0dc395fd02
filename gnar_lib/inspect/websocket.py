"""Reads one direction of a WebSocket that others have (RFC 6455, RFC 7692); sans I/O, knows no exchange."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from gnar_lib.errors import ProtocolError

MAX_KEPT_BYTES = 4096  # of one message
MAX_INFLATED_BYTES = 1 << 20  # of one message; behind a longer one nothing is decompressed any more
INFLATER_BYTES = 64 * 1024  # what zlib needs for one direction, about
MAX_FRAMES_PER_S = 5000  # of one direction, also in one message; more would take too much time
_SHORT_HEAD_BYTES = 2  # without a longer length and a mask
_MAX_CONTROL_BYTES = 125
_STEP_BYTES = 16 * 1024
_MESSAGE_END = b"\0\0\xff\xff"  # which RFC 7692 has senders leave out
_FIN, _COMPRESSED, _RESERVED, _MASKED = 0x80, 0x40, 0x30, 0x80
_CONTINUED, _FIRST_CONTROL = 0, 8
_KINDS = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}


@dataclass(slots=True)
class Part:
    """A message, as far as it has come."""

    kind: str
    is_compressed: bool = False  # and could not be decompressed to its end
    at: float = field(default_factory=time.time)
    size: int = 0
    sent_bytes: int = 0  # as it came
    data: bytearray = field(default_factory=bytearray)


class Inflater:
    """Decompresses the messages of one direction, as far as that is cheap."""

    def __init__(self, *, forgets: bool) -> None:
        self._forgets = forgets  # each message by itself (no_context_takeover)
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self._message_bytes = 0
        self.is_off = False

    def inflate(self, data: bytes, part: Part, *, is_last: bool) -> None:
        """Add to a message what some of its bytes mean."""
        pending = data + _MESSAGE_END if is_last else data
        while pending and not self.is_off:
            try:
                out = self._zlib.decompress(pending, _STEP_BYTES)
            except zlib.error:
                self.is_off = True
                part.data.clear()  # how much was found before the error depends on how the bytes came
                break
            self._message_bytes += len(out)
            part.size += len(out)
            part.data += out[: max(MAX_KEPT_BYTES - len(part.data), 0)]
            pending = self._zlib.unconsumed_tail
            if self._message_bytes > MAX_INFLATED_BYTES or self._zlib.eof:
                self.is_off = True
        part.is_compressed = part.is_compressed or self.is_off
        if is_last:
            self._message_bytes = 0
            if self._forgets and not self.is_off:
                self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)


class FrameParser:
    """One direction: `on_message` gets each message when it is whole.

    `feed` raises `ProtocolError` when what comes is no WebSocket; then nothing may follow.
    """

    def __init__(self, on_message: Callable[[Part], None], inflater: Inflater | None) -> None:
        self._on_message = on_message
        self._inflater = inflater
        self._head = b""  # of the frame, as far as it has come
        self._is_last = False  # the frame is the last one of its message
        self._left: int | None = None  # bytes of the frame's payload; None: the head is not whole
        self._mask = b""
        self._masked = 0  # bytes of the frame so far
        self._data: Part | None = None  # the message of data that has begun
        self._control: Part | None = None
        self._is_deflated = False  # the message of data
        self._second = 0  # in which so many frames have come:
        self._in_second = 0

    def feed(self, data: memoryview) -> None:
        """Read what comes next."""
        while data or self._left == 0:
            if self._left is None:
                data = self._take_head(data)
            else:
                piece, data = data[: self._left], data[self._left :]
                self._take_payload(bytes(piece))

    def _take_head(self, data: memoryview) -> memoryview:
        """Take one more byte of a head until it is whole."""
        self._head += data[:1]
        head = self._head
        if len(head) >= _SHORT_HEAD_BYTES:
            length = head[1] & 0x7F
            more = {126: 2, 127: 8}.get(length, 0)
            masked = 4 if head[1] & _MASKED else 0
            if len(head) == _SHORT_HEAD_BYTES + more + masked:
                self._begin(head[0], int.from_bytes(head[2 : 2 + more], "big") if more else length)
                self._mask = head[2 + more :]
                self._head = b""
        return data[1:]

    def _begin(self, first: int, length: int) -> None:
        code = first & 0x0F
        if first & _RESERVED or (code != _CONTINUED and code not in _KINDS) or length >> 63:
            raise ProtocolError("this is no frame of a WebSocket")
        self._check_rate()
        is_deflated = bool(first & _COMPRESSED)
        self._left, self._masked, self._is_last = length, 0, bool(first & _FIN)
        if code >= _FIRST_CONTROL:
            if length > _MAX_CONTROL_BYTES or not self._is_last or is_deflated:
                raise ProtocolError("this is no control frame of a WebSocket")
            self._control = Part(_KINDS[code])
        elif code != _CONTINUED:
            self._data = Part(_KINDS[code])
            self._is_deflated = is_deflated
        elif self._data is None:
            raise ProtocolError("a message goes on that has not begun")

    def _take_payload(self, piece: bytes) -> None:
        assert self._left is not None  # noqa: S101  (for mypy: `feed` has looked)
        part = self._control or self._data
        assert part is not None  # noqa: S101  (for mypy: `_begin` has set one)
        self._left -= len(piece)
        is_end = self._left == 0
        is_message_end = is_end and (self._is_last or part is self._control)
        part.sent_bytes += len(piece)
        if part is not self._data or not self._is_deflated:
            part.size += len(piece)
            part.data += self._unmasked(piece[: max(MAX_KEPT_BYTES - len(part.data), 0)])
        elif self._inflater is not None and not self._inflater.is_off:
            self._inflater.inflate(self._unmasked(piece), part, is_last=is_message_end)
        else:
            part.is_compressed = True
        self._masked += len(piece)
        if is_end:
            self._left = None
        if is_message_end:
            part.size = part.sent_bytes if part.is_compressed else part.size
            self._on_message(part)
            if part is self._control:
                self._control = None
            else:
                self._data = None

    def _check_rate(self) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._in_second > MAX_FRAMES_PER_S:
            raise ProtocolError("there are too many frames")

    def _unmasked(self, piece: bytes) -> bytes:
        if not self._mask:
            return piece
        turn = self._masked % 4
        mask = self._mask[turn:] + self._mask[:turn]
        count = len(piece)
        key = (mask * (count // 4 + 1))[:count]
        return (int.from_bytes(piece, "little") ^ int.from_bytes(key, "little")).to_bytes(count, "little")
