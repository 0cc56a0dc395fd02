"""The beginning of a connection of HTTP/2, up to its first request, and words of refusal; does no I/O.

gnar passes such a connection on as a whole, so the first request is all that has to be understood (RFC 9113,
and RFC 7541 for its header block). `Opening` keeps the bytes that have come, for whoever is to get them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from gnar_lib.errors import ProtocolError
from gnar_lib.http.head import TOKEN

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
PREFACE_HEAD: Final = PREFACE[:18]  # where somebody who knows HTTP/1.1 alone finds the end of a head

MAX_OPENING_BYTES: Final = 64 * 1024  # up to the end of the first request's head
# Up to the answer to SETTINGS of this end. Until a client has those, it may send 64 KiB of bodies.
MAX_EARLY_BYTES: Final = 128 * 1024
MAX_BLOCK_BYTES: Final = 16 * 1024  # of a header block, as it comes
MAX_FIELDS_BYTES: Final = 32 * 1024  # of header fields, each with the 32 bytes that RFC 7541 counts for it
FRAME_BYTES: Final = 16 * 1024  # what a frame may have, and an answer: SETTINGS of this end allow no more

_HEADER_BYTES = 9
_DEFAULT_WINDOW_BYTES = 65535
_INITIAL_WINDOW_SIZE = 4  # a setting (RFC 9113, section 6.5.2)
_SETTING_BYTES = 6

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 5, 7, 9
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_PRIORITY_BYTES = 5
_NOT_FIRST = frozenset({_DATA, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION})

_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[^\x00\r\n]*")
_METHOD = re.compile(TOKEN)
_PATH = re.compile(rb"/[\x21\x22\x24-\x7e\x80-\xff]*")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=-]+)(?::[0-9]{0,5})?")


class Code(IntEnum):
    """Error codes (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11
    HTTP_1_1_REQUIRED = 13


class H2Error(ProtocolError):
    """A connection of HTTP/2 cannot go on; `code` says why to programs."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """The first request of a connection."""

    stream: int
    method: bytes
    authority: bytes  # host, and perhaps a port
    host: str  # in lower case, without a dot at the end; empty if the authority is malformed or missing
    target: bytes  # path and query; empty if malformed or missing
    pairs: list[tuple[bytes, bytes]]  # header fields: names, in lower case, and values

    @property
    def path(self) -> str:
        """The path of the target, as it came."""
        return self.target.partition(b"?")[0].decode("latin-1")

    def value(self, name: bytes) -> bytes:
        """Return the value of a header field, of the first one with this name; empty if there is none."""
        return next((value for each, value in self.pairs if each == name), b"")


class Opening:
    """The beginning of a connection, fed with bytes as they come. It is of no use after an error."""

    def __init__(self) -> None:
        self.has_begun = False  # the head of the first request
        self.has_settings = False  # the client has got SETTINGS
        self.window_bytes = _DEFAULT_WINDOW_BYTES  # of a body that the user takes without being asked
        self._data = bytearray()
        self._at = 0  # where the next frame begins
        self._awaits_ack = False
        self._stream = 0
        self._block: bytearray | None = None  # a header block of which more has to come
        self._request: FirstRequest | None = None

    def feed(self, data: bytes) -> FirstRequest | None:
        """Take further bytes; return the first request, or None if more is needed. Raises `H2Error`."""
        self._data += data
        if not self._at:
            if not PREFACE.startswith(self._data[: len(PREFACE)]):
                raise H2Error(Code.PROTOCOL_ERROR, "this is not the beginning of HTTP/2")
            if len(self._data) < len(PREFACE):
                return None
            self._at = len(PREFACE)
        while (self._request is None or self._awaits_ack) and self._take_frame():
            pass
        return None if self._awaits_ack else self._request

    @property
    def waits_for_settings(self) -> bool:
        """Whether the client has said all that it has to say before it gets SETTINGS, and has got none."""
        is_between_frames = len(PREFACE) < self._at == len(self._data)
        return is_between_frames and not self.has_begun and not self.has_settings

    def expect_ack(self) -> None:
        """Note that SETTINGS have been sent: the request is returned once the client has answered them.

        The answer is taken out, since whoever gets the bytes has not sent SETTINGS yet.
        """
        self.has_settings = self._awaits_ack = True

    def take_all(self) -> bytes:
        """Return all bytes that have come, and keep none."""
        data, self._data = bytes(self._data), bytearray()
        return data

    # ---- frames --------------------------------------------------------------------------------------------

    def _take_frame(self) -> bool:
        """Take the next frame, if the whole of it is there; returns whether it was."""
        data, start = self._data, self._at
        if len(data) < start + _HEADER_BYTES:
            return False
        size = int.from_bytes(data[start : start + 3], "big")
        kind, flags = data[start + 3], data[start + 4]
        stream = int.from_bytes(data[start + 5 : start + 9], "big") & 0x7FFFFFFF
        end = start + _HEADER_BYTES + size
        self._check_frame(kind, size, end)
        if kind == _HEADERS:
            self.has_begun = True
        if len(data) < end:
            return False
        self._at = end
        payload = bytes(data[start + _HEADER_BYTES : end])
        if self._block is not None:
            if kind != _CONTINUATION or stream != self._stream:
                raise H2Error(Code.PROTOCOL_ERROR, "a header block is not continued")
            self._add_to_block(payload, flags)
        elif kind == _SETTINGS and flags & _ACK:
            self._take_ack(start, size)
        elif kind == _SETTINGS:
            self._take_settings(stream, payload)
        elif kind == _HEADERS and self._request is None:
            self._begin_block(stream, flags, payload)
        return True

    def _check_frame(self, kind: int, size: int, end: int) -> None:
        """Raise `H2Error` if a frame must not come now."""
        if self._at == len(PREFACE) and kind != _SETTINGS:
            raise H2Error(Code.PROTOCOL_ERROR, "there have to be SETTINGS first")
        if size > FRAME_BYTES:
            raise H2Error(Code.FRAME_SIZE_ERROR, f"a frame is longer than {FRAME_BYTES} bytes")
        if end > (MAX_OPENING_BYTES if self._request is None else MAX_EARLY_BYTES):
            raise H2Error(Code.ENHANCE_YOUR_CALM, "too much has come before the first request")
        if self._request is not None or self._block is not None:
            return
        if kind == _GOAWAY:
            raise H2Error(Code.NO_ERROR, "the user leaves without a request")
        if kind in _NOT_FIRST:
            raise H2Error(Code.PROTOCOL_ERROR, "there has to be a request first")

    def _take_settings(self, stream: int, payload: bytes) -> None:
        if stream or len(payload) % _SETTING_BYTES:
            raise H2Error(Code.FRAME_SIZE_ERROR, "SETTINGS are malformed")
        for identifier, value in struct.iter_unpack(">HI", payload):
            if identifier == _INITIAL_WINDOW_SIZE:
                self.window_bytes = value

    def _take_ack(self, start: int, size: int) -> None:
        if size or not self._awaits_ack:
            raise H2Error(Code.PROTOCOL_ERROR, "SETTINGS are answered that nobody has sent")
        self._awaits_ack = False
        del self._data[start : self._at]
        self._at = start

    # ---- the header block ----------------------------------------------------------------------------------

    def _begin_block(self, stream: int, flags: int, payload: bytes) -> None:
        padding, start = 0, 0
        if flags & _PADDED:
            padding, start = (payload[0] if payload else 1), 1
        if flags & _PRIORITY:
            start += _PRIORITY_BYTES
        if not stream % 2 or start + padding > len(payload):
            raise H2Error(Code.PROTOCOL_ERROR, "HEADERS are malformed")
        self._stream, self._block = stream, bytearray()
        self._add_to_block(payload[start : len(payload) - padding], flags)

    def _add_to_block(self, part: bytes, flags: int) -> None:
        assert self._block is not None  # noqa: S101  (for the type checker)
        self._block += part
        if len(self._block) > MAX_BLOCK_BYTES:
            raise H2Error(Code.ENHANCE_YOUR_CALM, f"a header block is longer than {MAX_BLOCK_BYTES} bytes")
        if flags & _END_HEADERS:
            self._request = _request_of(self._stream, _decode(bytes(self._block)))
            self._block = None


def _decode(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return the header fields of the first header block of a connection. Raises `H2Error`."""
    import hpack  # most connections need none of it

    try:
        fields = hpack.Decoder(max_header_list_size=MAX_FIELDS_BYTES).decode(block, raw=True)
        return [(bytes(name), bytes(value)) for name, value in fields]
    except hpack.OversizedHeaderListError as exc:
        raise H2Error(Code.ENHANCE_YOUR_CALM, "the header fields of the request are too long") from exc
    except hpack.HPACKError as exc:
        raise H2Error(Code.COMPRESSION_ERROR, "the header block of the request is malformed") from exc


def _request_of(stream: int, fields: list[tuple[bytes, bytes]]) -> FirstRequest:
    """Return the request with these fields; raises `H2Error` (RFC 9113, sections 8.2 and 8.3)."""
    pseudo: dict[bytes, bytes] = {}
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if not _VALUE.fullmatch(value):
            raise H2Error(Code.PROTOCOL_ERROR, "a header field is malformed")
        if not name.startswith(b":"):
            if not _NAME.fullmatch(name):
                raise H2Error(Code.PROTOCOL_ERROR, "a header field is malformed")
            pairs.append((name, value))
        elif pairs or name in pseudo or name not in _PSEUDO:
            raise H2Error(Code.PROTOCOL_ERROR, "the request is malformed")
        else:
            pseudo[name] = value
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if not _METHOD.fullmatch(method) or (method != b"CONNECT" and not path):
        raise H2Error(Code.PROTOCOL_ERROR, "the request is malformed")
    hosts = {value for name, value in pairs if name == b"host"}
    if b":authority" in pseudo:
        hosts.add(pseudo[b":authority"])
    if len(hosts) > 1:
        raise H2Error(Code.PROTOCOL_ERROR, "the request is for two hosts")
    authority = next(iter(hosts), b"")
    found = _AUTHORITY.fullmatch(authority)
    host = found[1].decode().lower().removesuffix(".") if found else ""
    target = path if _PATH.fullmatch(path) or (path, method) == (b"*", b"OPTIONS") else b""
    return FirstRequest(stream, method, authority, host, target, pairs)


# ---- what this end says ------------------------------------------------------------------------------------


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


SETTINGS: Final = _frame(_SETTINGS, 0, 0)  # which change nothing; the first frame of either end


def is_settings(data: bytes) -> bool:
    """Tell whether the bytes with which a server begins may be its SETTINGS."""
    return data[3:4] in (b"", bytes([_SETTINGS]))


def goaway(code: Code, text: str, last_stream: int = 0) -> bytes:
    """Return the frame that ends a connection: up to `last_stream`, streams have been served."""
    return _frame(_GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + text.encode())


def answer(stream: int, fields: list[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    """Return the frames of a whole answer; fields and body have at most `FRAME_BYTES` each."""
    import hpack

    encoder = hpack.Encoder()
    encoder.header_table_size = 0  # so that it does not matter how much a client allows
    block = encoder.encode(fields, huffman=False)
    head = _frame(_HEADERS, _END_HEADERS | (0 if body else _END_STREAM), stream, block)
    return head + _frame(_DATA, _END_STREAM, stream, body) if body else head
