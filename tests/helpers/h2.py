"""Bytes of HTTP/2 for tests, in both directions."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import hpack

from gnar_lib.http.h2 import PREFACE

Field = tuple[bytes, bytes]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
ACK = END_STREAM = 1
END_HEADERS, PADDED, WITH_PRIORITY = 4, 8, 32
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a:81"), (b":path", b"/x?y")]


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(fields: Iterable[Field] = GET) -> bytes:
    """Return a header block, the first of a connection."""
    return bytes(hpack.Encoder().encode([*fields]))


def opening(fields: Iterable[Field] = GET, settings: bytes = b"", flags: int = END_STREAM) -> bytes:
    """Return the first bytes of a client."""
    return PREFACE + frame(SETTINGS, settings) + frame(HEADERS, block(fields), END_HEADERS | flags, 1)


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return the kind, the flags, the stream and the payload of each whole frame."""
    found, at = [], 0
    while at + 9 <= len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        kind, flags, stream = struct.unpack(">BBI", data[at + 3 : at + 9])
        found.append((kind, flags, stream, data[at + 9 : end]))
        at = end
    return found


def fields_of(data: bytes) -> dict[bytes, bytes]:
    """Return the header fields of the first answer among some frames."""
    payload = next(each[3] for each in frames(data) if each[0] == HEADERS)
    return {bytes(name): bytes(value) for name, value in hpack.Decoder().decode(payload, raw=True)}


def body_of(data: bytes) -> bytes:
    """Return the body among some frames."""
    return b"".join(each[3] for each in frames(data) if each[0] == DATA)


def goodbye(data: bytes) -> tuple[int, int, str]:
    """Return what the last frame says, which has to be GOAWAY: the last stream, the code and the words."""
    kind, _, _, payload = frames(data)[-1]
    assert kind == GOAWAY
    last, code = struct.unpack(">II", payload[:8])
    return last, code, payload[8:].decode()
