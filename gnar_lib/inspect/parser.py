"""Reads one direction of an HTTP/1 connection that others have: heads, and pieces of bodies.

Sans I/O, and lenient: whoever talks has to agree with the other end, not with gnar. Nothing is held back, and
what is kept until the rest has come is bounded, here and for all connections together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from gnar_lib.errors import ProtocolError
from gnar_lib.inspect.exchange import Field

MAX_HEAD_BYTES = 32 * 1024
MAX_FIELDS = 200
MAX_LINE_BYTES = 4096  # of a chunk's size with its extensions, and of one trailer
MAX_METHOD_BYTES = 32
# Chunks of a single byte would cost more time than gnar may take: so many steps are free, others need bytes.
SPARE_STEPS, BYTES_PER_STEP = 20_000, 4
MAX_UNFINISHED_BYTES = 8 << 20  # of heads that are not whole, and of what decompression needs, in all

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST_LINE = re.compile(_TOKEN + rb"{1,%d} +[\x21-\xff]+ +HTTP/1\.[01] *" % MAX_METHOD_BYTES)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] +[1-9][0-9][0-9](?: .*)?")
_METHOD = re.compile(_TOKEN + rb"*")
_STATUS_START = b"HTTP/1."
_EMPTY_LINES = re.compile(rb"[\r\n]+")  # between messages
_HEAD_END = re.compile(rb"\n\r?\n")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


class Budget:
    """How many bytes all connections together may have kept for later."""

    def __init__(self, limit: int = MAX_UNFINISHED_BYTES) -> None:
        self.limit = limit
        self.taken = 0

    def change(self, before: int, after: int) -> None:
        """Take `after` bytes where there were `before`. Raises `ProtocolError` if there is no room."""
        if after > before and self.taken + after - before > self.limit:
            raise ProtocolError("too much is unfinished on all connections together")
        self.taken += after - before


class Framing(Enum):
    """How the end of a body is found; `RAW` means that no HTTP follows."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    RAW = auto()


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of a message in its three parts, and the fields."""

    first: tuple[bytes, bytes, bytes]
    fields: list[Field]
    size: int

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a field, whose name is given in lower case."""
        return [value for other, value in self.fields if other.lower() == name]

    def framing(self) -> tuple[Framing, int]:
        """Return what the fields say about the body, and its length; `UNTIL_CLOSE` if they say nothing."""
        codings = b",".join(self.values(b"transfer-encoding")).lower()
        if b"chunked" in codings:
            return Framing.CHUNKED, 0
        lengths = self.values(b"content-length")
        if codings or not lengths:
            return Framing.UNTIL_CLOSE, 0
        if not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
            raise ProtocolError("Content-Length is malformed")
        length = int(lengths[0])
        return (Framing.LENGTH, length) if length else (Framing.NONE, 0)


class Sink(Protocol):
    """Who gets what a parser finds."""

    def on_head(self, head: Head) -> tuple[Framing, int]:
        """Take a head; tell how the end of the body is found, and its length."""

    def on_body(self, piece: memoryview) -> None:
        """Take a piece of the body, or of what is no HTTP any more."""

    def on_end(self) -> None:
        """Take note that a message has ended."""


class _At(Enum):
    """What is expected next."""

    HEAD = auto()
    LENGTH = auto()
    UNTIL_CLOSE = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    HELD = auto()  # nobody knows yet whether HTTP goes on
    RAW = auto()


class Parser:
    """One direction. `feed` raises `ProtocolError` when what comes is no HTTP/1; then nothing may follow."""

    def __init__(self, sink: Sink, budget: Budget, *, is_request: bool) -> None:
        self._sink = sink
        self._budget = budget
        self._is_request = is_request
        self._at = _At.HEAD
        self._rest = b""  # what needs more to be understood
        self._looked_at = 0  # bytes of `_rest` in which no end of a head was found
        self._left = 0  # bytes of the body, or of the chunk
        self._trailer_bytes = 0
        self._allowed_steps = SPARE_STEPS
        self._is_raw_next = False  # no HTTP follows this message

    def feed(self, data: bytes) -> None:
        """Read what comes next."""
        data = self._rest + data
        self._keep(b"")
        at = 0
        self._allowed_steps += 1 + len(data) // BYTES_PER_STEP
        while at < len(data):
            used = self._step(data, at)
            self._allowed_steps -= 1
            if self._allowed_steps < 0:
                raise ProtocolError("what comes consists of too little")
            if used is None:
                self._keep(data[at:])
                return
            at = used

    def hold(self) -> None:
        """Read nothing behind this message until `release` says what follows; for `on_end`."""
        self._at = _At.HELD

    def release(self, *, is_raw: bool) -> None:
        """Go on: no HTTP follows if `is_raw`."""
        self._is_raw_next = is_raw
        if self._at is _At.HELD or (is_raw and self._at is _At.HEAD):
            self._at = _At.RAW if is_raw else _At.HEAD
            self._looked_at = 0
            self.feed(b"")

    def end(self) -> None:
        """Take note that no more comes, in order."""
        self.drop()
        if self._at is _At.UNTIL_CLOSE:
            self._end_message()

    def drop(self) -> None:
        """Forget what is kept."""
        self._keep(b"")

    def _keep(self, rest: bytes) -> None:
        self._budget.change(len(self._rest), len(rest))
        self._rest = rest

    # ---- each returns where it has come to, None if more has to come before -------------------------------

    def _step(self, data: bytes, at: int) -> int | None:  # noqa: PLR0911  (a table)
        match self._at:
            case _At.HEAD:
                return self._take_head(data, at)
            case _At.LENGTH | _At.CHUNK:
                return self._take_counted(data, at)
            case _At.CHUNK_SIZE:
                return self._take_size(data, at)
            case _At.CHUNK_END:
                return self._take_chunk_end(data, at)
            case _At.TRAILERS:
                return self._take_trailer(data, at)
            case _At.HELD:
                return self._wait(data, at)
            case _:
                self._sink.on_body(memoryview(data)[at:])
                return len(data)

    def _wait(self, data: bytes, at: int) -> int | None:
        if len(data) - at > MAX_HEAD_BYTES:
            raise ProtocolError("too much has come behind a request for something else than HTTP")
        return None

    def _take_head(self, data: bytes, at: int) -> int | None:
        if empty := _EMPTY_LINES.match(data, at):
            self._looked_at = 0
            return empty.end()
        found = _HEAD_END.search(data, at + max(self._looked_at - 2, 0))
        end = found.end() if found else len(data)
        if end - at > MAX_HEAD_BYTES:
            raise ProtocolError("a head is too long")
        if found is None:
            if not self._looked_at or self._looked_at <= MAX_METHOD_BYTES:
                self._check_start(data[at : at + MAX_METHOD_BYTES + 1])
            self._looked_at = len(data) - at
            return None
        self._looked_at = 0
        self._begin(*self._sink.on_head(self._head(data[at:end])))
        return end

    def _check_start(self, start: bytes) -> None:
        """Raise `ProtocolError` as soon as it is clear that this is no head."""
        if not self._is_request:
            if start[: len(_STATUS_START)] != _STATUS_START[: len(start)]:
                raise ProtocolError("this is no answer of HTTP/1")
            return
        found = _METHOD.match(start)
        method = found[0] if found else b""
        if len(method) > MAX_METHOD_BYTES or start[len(method) : len(method) + 1] not in (b"", b" "):
            raise ProtocolError("this is no request of HTTP/1")

    def _head(self, raw: bytes) -> Head:
        lines = [line.rstrip(b"\r") for line in raw.split(b"\n")]
        line = _REQUEST_LINE if self._is_request else _STATUS_LINE
        if not line.fullmatch(lines[0]):
            raise ProtocolError("this is no HTTP/1")
        parts = [*lines[0].split(None, 2), b"", b""]
        if len(lines) > MAX_FIELDS + 3:
            raise ProtocolError("a head has too many fields")
        fields: list[Field] = []
        for each in lines[1:]:
            name, colon, value = each.partition(b":")
            if each[:1] in (b" ", b"\t") and fields:  # a line that goes on (obs-fold)
                fields[-1] = (fields[-1][0], fields[-1][1] + b" " + each.strip())
            elif colon:
                fields.append((name.strip(), value.strip()))
        return Head((parts[0], parts[1], parts[2]), fields, len(raw))

    def _begin(self, framing: Framing, length: int) -> None:
        match framing:
            case Framing.NONE:
                self._end_message()
            case Framing.LENGTH:
                self._at, self._left = _At.LENGTH, length
            case Framing.CHUNKED:
                self._at = _At.CHUNK_SIZE
            case Framing.UNTIL_CLOSE:
                self._at = _At.UNTIL_CLOSE
            case Framing.RAW:
                self._at = _At.RAW

    def _end_message(self) -> None:
        self._at = _At.RAW if self._is_raw_next else _At.HEAD
        self._sink.on_end()

    def _take_counted(self, data: bytes, at: int) -> int:
        end = min(at + self._left, len(data))
        self._left -= end - at
        self._sink.on_body(memoryview(data)[at:end])
        if not self._left:
            if self._at is _At.CHUNK:
                self._at = _At.CHUNK_END
            else:
                self._end_message()
        return end

    def _line(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """Return the next line, and where it ends."""
        end = data.find(b"\n", at, at + MAX_LINE_BYTES)
        if end < 0:
            if len(data) - at >= MAX_LINE_BYTES:
                raise ProtocolError("a line of a chunked body is too long")
            return None
        return data[at:end].rstrip(b"\r"), end + 1

    def _take_size(self, data: bytes, at: int) -> int | None:
        found = self._line(data, at)
        if found is None:
            return None
        text = found[0].partition(b";")[0].strip()
        if not _SIZE.fullmatch(text):
            raise ProtocolError("the size of a chunk is malformed")
        self._left = int(text, 16)
        self._at = _At.CHUNK if self._left else _At.TRAILERS
        self._trailer_bytes = 0
        return found[1]

    def _take_chunk_end(self, data: bytes, at: int) -> int | None:
        end = data[at : at + 2]
        if end == b"\r":
            return None
        if end != b"\r\n" and end[:1] != b"\n":
            raise ProtocolError("a chunk does not end where it should")
        self._at = _At.CHUNK_SIZE
        return at + (2 if end == b"\r\n" else 1)

    def _take_trailer(self, data: bytes, at: int) -> int | None:
        found = self._line(data, at)
        if found is None:
            return None
        self._trailer_bytes += found[1] - at
        if self._trailer_bytes > MAX_HEAD_BYTES:
            raise ProtocolError("the trailers are too long")
        if not found[0]:
            self._end_message()
        return found[1]
