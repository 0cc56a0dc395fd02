"""Datagrams on a data connection: in binary between our own ends, as JSON with the Go programs; no I/O.

Both forms know a user by its packed address (`net.pack_address`). To the client that is only a name, which it
sends back with the answer.
"""

from __future__ import annotations

import base64
import binascii
import socket
import struct
import zlib
from typing import Protocol

from gnar_lib.errors import MessageTooLongError, ProtocolError
from gnar_lib.net.datagram import PACKED_ADDRESS_BYTES, pack_address, unpack_address
from gnar_lib.proto import packet
from gnar_lib.proto.msg import UDPDatagram, from_frame, to_frame

# Not one of `PacketType`: the body is no JSON, and it has no business outside of a UDP data connection.
DATAGRAM_TYPE = 0x13
MAX_PAYLOAD_BYTES = packet.MAX_BODY_BYTES - PACKED_ADDRESS_BYTES  # 65,513: more than UDP over IPv4 has

NOBODY = b""  # the address of an answer whose sender did not say whom it is for

Datagram = tuple[bytes, bytes]
"""A user's packed address, and the payload."""


class Framing(Protocol):
    """One form of datagrams on a stream."""

    def frame(self, packed: bytes, payload: bytes) -> tuple[bytes, ...]:
        """Return the parts of one frame; raises `MessageTooLongError`."""

    def parse(self, data: bytes) -> tuple[list[Datagram], int]:
        """Return the datagrams of all whole frames in `data`, and how many bytes those are.

        Raises `ProtocolError` when it is anything else.
        """


class BinaryFraming:
    """Type, length, 22 bytes of address, payload."""

    _HEADER = struct.Struct(">BH")
    _EMPTY_BYTES = _HEADER.size + PACKED_ADDRESS_BYTES

    def frame(self, packed: bytes, payload: bytes) -> tuple[bytes, ...]:
        """Return the parts of one frame; raises `MessageTooLongError`."""
        size = PACKED_ADDRESS_BYTES + len(payload)
        if size > packet.MAX_BODY_BYTES:
            raise MessageTooLongError(f"a datagram of {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES} fit")
        return self._HEADER.pack(DATAGRAM_TYPE, size), packed, payload

    def parse(self, data: bytes) -> tuple[list[Datagram], int]:
        """Return the datagrams of all whole frames in `data`, and how many bytes those are."""
        datagrams = []
        unpack, size = self._HEADER.unpack_from, len(data)
        start, last_start = 0, size - self._EMPTY_BYTES
        while start <= last_start:
            kind, length = unpack(data, start)
            if kind != DATAGRAM_TYPE or length < PACKED_ADDRESS_BYTES:
                raise ProtocolError(f"a frame of type 0x{kind:02x} and {length} bytes in place of a datagram")
            end = start + 3 + length
            if end > size:
                break
            datagrams.append((data[start + 3 : start + 25], data[start + 25 : end]))
            start = end
        if start == 0 and size and data[0] != DATAGRAM_TYPE:
            raise ProtocolError(f"a frame of type 0x{data[0]:02x} in place of a datagram")
        return datagrams, start


class JsonFraming:
    """UDPDatagram messages, as the Go programs send them.

    The Go client leaves the address of an answer out, and the Go server expects it so.
    """

    def __init__(self, *, with_address: bool) -> None:
        self._with_address = with_address

    def frame(self, packed: bytes, payload: bytes) -> tuple[bytes, ...]:
        """Return the parts of one frame; raises `MessageTooLongError`."""
        address = None
        if self._with_address:
            host, port, scope = unpack_address(packed)
            address = {"IP": host, "Port": port, "Zone": _zone(scope)}
        return (to_frame(UDPDatagram(base64.b64encode(payload).decode(), address)),)

    def parse(self, data: bytes) -> tuple[list[Datagram], int]:
        """Return the datagrams of all whole frames in `data`, and how many bytes those are."""
        datagrams: list[Datagram] = []
        start = 0
        while (size := packet.frame_size(data[start : start + packet.HEADER.size])) is not None:
            if start + size > len(data):
                break
            datagrams.append(self._datagram(data[start : start + size]))
            start += size
        return datagrams, start

    @staticmethod
    def _datagram(frame: bytes) -> Datagram:
        message = from_frame(frame)
        if not isinstance(message, UDPDatagram):
            raise ProtocolError(f"{type(message).__name__} in place of a datagram")
        try:
            payload = base64.b64decode(message.payload, validate=True)
            return _packed(message), payload
        except (binascii.Error, OSError, ValueError, struct.error) as exc:
            raise ProtocolError(f"UDPDatagram: {exc}") from exc


def _packed(message: UDPDatagram) -> bytes:
    if message.addr is None:
        return NOBODY
    zone = str(message.addr.get("Zone", ""))
    # The number of an interface of another machine means nothing here; it only tells users apart.
    scope = zlib.crc32(zone.encode()) if zone else 0
    return pack_address((message.addr["IP"], message.addr["Port"], 0, scope))


def _zone(scope: int) -> str:
    """Return the name of the interface of a link-local user."""
    try:
        return socket.if_indextoname(scope) if scope else ""
    except OSError:
        return str(scope)
