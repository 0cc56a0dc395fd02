"""Finds where a chunked body ends, and refuses whatever two programs could read differently; knows no conn.

The bytes themselves are passed on as they came (RFC 9112, section 7.1): sizes, extensions and trailers are
only looked at.
"""

from __future__ import annotations

import re
from enum import Enum

from gnar_lib.errors import ProtocolError
from gnar_lib.http.head import TOKEN
from gnar_lib.http.heads import FORWARDED, plain_name

MAX_LINE_BYTES = 1024  # of a size with its extensions, or of one trailer
MAX_TRAILERS = 32
# A size, then extensions (RFC 9112, section 7.1.1), without the white space that could stand between them and
# that not everybody takes. More than 15 digits would be more than anybody sends.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
# Whole chunks of 1 to 15 bytes in a row, so that whoever sends a body in such chunks costs little more.
_EXTENSIONS = rb"(?:;[\t\x20-\x7e\x80-\xff]{0,1000})?\r\n"
_TINY = re.compile(
    rb"(?:0{0,14}(?:%b))+"
    % b"|".join(b"[%x%X]%b[\\x00-\\xff]{%d}\\r\\n" % (size, size, _EXTENSIONS, size) for size in range(1, 16))
)
_TRAILER = re.compile(rb"(" + TOKEN + rb"):[^\x00-\x08\x0a-\x1f\x7f]*")
# Fields that say how a message is to be read, or who may do what, come too late in trailers (RFC 9110,
# section 6.5.1). Some services take trailers for header fields, and so for what gnar has said there.
_NO_TRAILERS = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"proxy-authorization",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-real-ip",
    }
)
_CRLF = b"\r\n"


class _State(Enum):
    SIZE = "the line with the size of a chunk"
    DATA = "the bytes of a chunk, and the end of their line"
    TRAILERS = "trailers, and the empty line"
    END = "what follows the body"


class Chunks:
    """Reads one chunked body as it comes, in pieces of any size."""

    def __init__(self, no_trailers: frozenset[bytes] = frozenset()) -> None:
        """Refuse `no_trailers` besides those that never are ones; each is a `plain_name`."""
        self.count = 0  # chunks that have begun
        self._state = _State.SIZE
        self._left = 0  # bytes of the chunk that are still to come, with the two that end it
        self._line = b""  # the beginning of a line whose end is still to come
        self._trailers = 0
        self._no_trailers = no_trailers

    @property
    def has_ended(self) -> bool:
        """Whether the end of the body has come."""
        return self._state is _State.END

    def feed(self, data: bytes) -> int:
        """Take the next bytes, and return how many of them belong to the body: all, unless it ends there.

        Raises `ProtocolError`.
        """
        at = 0
        while at < len(data) and self._state is not _State.END:
            if self._state is _State.DATA:
                at = self._skip(data, at)
            elif self._state is _State.SIZE and not self._line and (tiny := _TINY.match(data, at)):
                self.count += tiny[0].count(_CRLF) // 2  # or more, which does no harm
                at = tiny.end()
            else:
                at = self._take_line(data, at)
        return at

    def _skip(self, data: bytes, at: int) -> int:
        """Pass over bytes of a chunk; the two that end the chunk have to be what they should."""
        count = min(self._left, len(data) - at)
        self._left -= count
        end = _CRLF[max(2 - self._left - count, 0) : 2 - self._left] if self._left < len(_CRLF) else b""
        if end and data[at + count - len(end) : at + count] != end:
            raise ProtocolError("a chunk is longer than its size")
        if not self._left:
            self._state = _State.SIZE
        return at + count

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        piece = data[at : end + 1] if end >= 0 else data[at:]
        if len(self._line) + len(piece) > MAX_LINE_BYTES:
            raise ProtocolError("a line of a chunked body is too long")
        self._line += piece
        if end < 0:
            self._refuse_early()
            return len(data)
        line, self._line = self._line, b""
        if line[-2:] != _CRLF:
            raise ProtocolError("a line does not end with carriage return and line feed")
        if self._state is _State.SIZE:
            self._begin_chunk(line[:-2])
        else:
            self._take_trailer(line[:-2])
        return end + 1

    def _refuse_early(self) -> None:
        """Raise an error for a size that cannot become one, without waiting for the end of its line."""
        if self._state is _State.SIZE and not _SIZE.fullmatch(self._line.removesuffix(b"\r")):
            raise ProtocolError("the size of a chunk is malformed")

    def _begin_chunk(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            raise ProtocolError("the size of a chunk is malformed")
        self.count += 1
        size = int(found[1], 16)
        if size:
            self._state, self._left = _State.DATA, size + len(_CRLF)
        else:
            self._state = _State.TRAILERS

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self._state = _State.END
            return
        self._trailers += 1
        found = _TRAILER.fullmatch(line)
        if found is None or self._trailers > MAX_TRAILERS:
            raise ProtocolError("a trailer is malformed")
        name = plain_name(found[1])
        if name in _NO_TRAILERS or name in self._no_trailers or name.startswith(FORWARDED):
            raise ProtocolError(f"{found[1].decode()} cannot be a trailer")
