"""Datagrams on a data connection: in binary between gnar's own ends, as JSON with the Go programs; no I/O.

Both forms name a user by the packed address (`net.pack_address`). To the client the address is only a name,
which the client sends back with the answer.
"""

from __future__ import annotations

import base64
import binascii
import socket
import struct
import zlib
from typing import Protocol

from gnar_lib.errors import MessageTooLongError, ProtocolError
from gnar_lib.net.datagram import BATCH, PACKED_ADDRESS_BYTES, Datagram, pack_address, unpack_address
from gnar_lib.proto import packet
from gnar_lib.proto.msg import UDPDatagram, from_frame, to_frame

# Not one of `PacketType`, since the body is not JSON; only on a UDP data connection.
DATAGRAM_TYPE = 0x13
MAX_PAYLOAD_BYTES = packet.MAX_BODY_BYTES - PACKED_ADDRESS_BYTES  # 65,513: more than UDP over IPv4 has

NOBODY = b""  # the address of an answer that does not say for which user it is


class Framing(Protocol):
    """One form of datagrams on a stream."""

    def frame(self, datagrams: list[Datagram]) -> bytes:
        """Return the frames in a row; raises `MessageTooLongError` if a datagram does not fit."""

    def parse(self, data: bytes) -> tuple[list[Datagram], int]:
        """Return the datagrams in the first whole frames of `data`, and the size of those frames in bytes.

        That is a batch at most. 0 bytes mean that no frame is whole. Raises `ProtocolError` if `data` holds
        anything else.
        """


class BinaryFraming:
    """Type, length, 22 bytes of address, payload."""

    _BEGINNING = struct.Struct(f">BH{PACKED_ADDRESS_BYTES}s")

    def frame(self, datagrams: list[Datagram]) -> bytes:
        """Return the frames in a row; raises `MessageTooLongError` if a datagram does not fit."""
        parts: list[bytes] = []
        add, begin = parts.append, self._BEGINNING.pack
        try:
            for packed, payload in datagrams:
                add(begin(DATAGRAM_TYPE, PACKED_ADDRESS_BYTES + len(payload), packed))
                add(payload)
        except struct.error as exc:
            raise MessageTooLongError(f"a datagram is larger than {MAX_PAYLOAD_BYTES} bytes") from exc
        return b"".join(parts)

    def parse(self, data: bytes) -> tuple[list[Datagram], int]:
        """Return the datagrams in the first whole frames of `data`, and the size of those frames in bytes."""
        datagrams: list[Datagram] = []
        add, unpack, beginning = datagrams.append, self._BEGINNING.unpack_from, self._BEGINNING.size
        start, size = 0, len(data)
        for _ in range(BATCH):
            payload = start + beginning
            if payload > size:
                break
            kind, length, packed = unpack(data, start)
            end = payload - PACKED_ADDRESS_BYTES + length
            if kind != DATAGRAM_TYPE or length < PACKED_ADDRESS_BYTES or end > size:
                break
            add((packed, data[payload:end]))
            start = end
        if start < size:
            self._check(data[start : start + packet.HEADER.size])
        return datagrams, start

    @staticmethod
    def _check(header: bytes) -> None:
        """Raise `ProtocolError` if no datagram begins like this, as far as the header has come."""
        kind, length = header[0], int.from_bytes(header[1:], "big")
        is_whole = len(header) == packet.HEADER.size
        if kind != DATAGRAM_TYPE or (is_whole and length < PACKED_ADDRESS_BYTES):
            raise ProtocolError(f"a frame of type 0x{kind:02x} and {length} bytes in place of a datagram")


class JsonFraming:
    """UDPDatagram messages, as the Go programs send them.

    The Go client leaves the address of an answer out, and the Go server expects it so.
    """

    def __init__(self, *, with_address: bool) -> None:
        self._with_address = with_address

    def frame(self, datagrams: list[Datagram]) -> bytes:
        """Return the frames in a row; raises `MessageTooLongError` if a datagram does not fit."""
        return b"".join(
            to_frame(UDPDatagram(base64.b64encode(payload).decode(), self._address(packed)))
            for packed, payload in datagrams
        )

    def _address(self, packed: bytes) -> dict[str, str | int] | None:
        if not self._with_address:
            return None
        host, port, scope = unpack_address(packed)
        return {"IP": host, "Port": port, "Zone": _zone(scope)}

    def parse(self, data: bytes) -> tuple[list[Datagram], int]:
        """Return the datagrams in the first whole frames of `data`, and the size of those frames in bytes."""
        datagrams: list[Datagram] = []
        start = 0
        while (size := packet.frame_size(data[start : start + packet.HEADER.size])) is not None:
            if start + size > len(data) or len(datagrams) == BATCH:
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
    # An interface of another machine means nothing here, but keeps two users with one address apart.
    scope = zlib.crc32(zone.encode()) if zone else 0
    return pack_address((message.addr["IP"], message.addr["Port"], 0, scope))


def _zone(scope: int) -> str:
    """Return the name of the network interface by which a link-local user has come."""
    try:
        return socket.if_indextoname(scope) if scope else ""
    except OSError:
        return str(scope)
