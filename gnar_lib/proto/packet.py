"""Frames: one byte of type, two bytes of length, and so many bytes of JSON; a codec that does no I/O."""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NoReturn

from gnar_lib.errors import MessageTooLongError, ProtocolError

HEADER = struct.Struct(">BH")
MAX_BODY_BYTES = 65535  # what the two length bytes can say


class PacketType(IntEnum):
    """The first byte of a frame. Those from 0x10 on are sent only to a peer that has said it knows them."""

    LOGIN = 0x01
    HEARTBEAT = 0x02
    PROXY_REQ = 0x03
    PROXY_RESP = 0x04
    PROXY_CANCEL = 0x05
    EXCHANGE = 0x06
    UDP_DATAGRAM = 0x07
    CHALLENGE = 0x10
    PROOF = 0x11
    WELCOME = 0x12


# How other protocols begin, and their names for people.
_OTHERS = {
    **dict.fromkeys((b"HTTP", b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"CONN"), "HTTP"),
    # A web server that takes what it gets for a request of HTTP/0.9 answers with the page alone.
    **dict.fromkeys((b"<!DO", b"<!do", b"<htm", b"<HTM"), "HTTP"),
    **dict.fromkeys((b"PROX", b"\r\n\r\n"), "the PROXY protocol"),
    b"SSH-": "SSH",
    b"\x15\x03": "TLS",
    b"\x16\x03": "TLS",
}
_TYPES = {int(member): member for member in PacketType}
_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not in JSON (RFC 8259, 6)")


_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


def encode(packet_type: PacketType, fields: dict[str, Any]) -> bytes:
    """Return one frame; raises `MessageTooLongError` if `fields` do not fit into it."""
    try:
        body = _encode_json(fields).encode()
    except UnicodeEncodeError as exc:
        raise MessageTooLongError("a message holds text that is not Unicode") from exc
    if len(body) > MAX_BODY_BYTES:
        raise MessageTooLongError(f"message too long: {len(body)} bytes, at most {MAX_BODY_BYTES} fit")
    return HEADER.pack(packet_type, len(body)) + body


def frame_size(data: bytes | bytearray) -> int | None:
    """Return the size in bytes of the frame with which `data` begins, header included.

    Returns None if `data` is shorter than a header. Raises `ProtocolError` if the first byte is no known
    type.
    """
    if data and data[0] not in _TYPES:
        other = _other(data)
        raise ProtocolError(f"this is {other}" if other else f"unknown packet type 0x{data[0]:02x}")
    if len(data) < HEADER.size:
        return None
    return HEADER.size + int.from_bytes(data[1:3], "big")


def protocol_of(data: bytes) -> str:
    """Return the name of the protocol that begins with `data`, for people."""
    return "an answer without TLS" if data and data[0] in _TYPES else _other(data) or "something unknown"


def _other(data: bytes | bytearray) -> str:
    return next((name for start, name in _OTHERS.items() if data.startswith(start)), "")


def decode(frame: bytes) -> tuple[PacketType, dict[str, Any]]:
    """Return the type and the JSON object of one whole frame; raises `ProtocolError` for other bodies."""
    packet_type = _TYPES[frame[0]]
    try:
        fields = _decode_json(frame[HEADER.size :].decode())  # json.loads would guess at UTF-16 and UTF-32
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise ProtocolError(f"{packet_type.name}: not JSON") from exc
    if not isinstance(fields, dict):
        raise ProtocolError(f"{packet_type.name}: not a JSON object")
    return packet_type, fields
