"""The PROXY protocol: the header in front of a connection that says from where to where it is.

Knows no conn, but for `receive`, and not who may send a header. Source of all facts: haproxy's
doc/proxy-protocol.txt, "The PROXY protocol, Versions 1 & 2". A receiver must not guess whether a header comes
(section 2): whoever calls `receive` has to know.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.net import EventedConn, Sockaddr

V1: Final = "v1"  # a line of text, for TCP alone
V2: Final = "v2"  # binary, with further facts (TLVs)

MAX_LINE_BYTES: Final = 107  # of version 1, with the end of the line (section 2.1)
MAX_BYTES: Final = 4096  # of version 2; senders are to keep below 536 (section 2)

AUTHORITY: Final = 0x02  # PP2_TYPE_AUTHORITY: the host name by which the user has come
CRC32C: Final = 0x03  # PP2_TYPE_CRC32C: a checksum of the header
PROXY_NAME: Final = 0xE0  # gnar's own, of those that applications may use: the proxy's name, in UTF-8

Tlv = tuple[int, bytes]
"""A fact of version 2: its type, and its value."""

Endpoint = tuple[str, int]
"""An IP address and a port."""

_LINE_START: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_UNKNOWN: Final = b"PROXY UNKNOWN"
_PORT: Final = rb"(0|[1-9][0-9]{0,4})"  # no zero in front, which some read as octal
_LINE: Final = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + b" " + _PORT)
_MAX_PORT: Final = 0xFFFF

_FIXED: Final = struct.Struct(">12sBBH")  # signature, version and command, family and transport, what follows
_TLV: Final = struct.Struct(">BH")  # type, and bytes of the value
_PORTS: Final = struct.Struct(">HH")
_VERSION_2: Final = 2
_LOCAL, _PROXY = 0, 1  # commands
_INET, _INET6 = 1, 2  # families; 0 is unknown, and 3 is Unix
_STREAM, _DATAGRAM = 1, 2  # transports; 0 is unknown
_ADDRESSES_BYTES: Final = {0: 0, _INET: 12, _INET6: 36, 3: 216}  # by family
_MAX_VALUE_BYTES: Final = 0xFFFF
_CRC_BYTES: Final = 4
_CASTAGNOLI: Final = 0x82F63B78  # the polynomial of CRC32C, its bits in reverse (RFC 4960, appendix B)


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. Without a `source`, the addresses of the connection itself hold.

    That is so if the sender speaks for itself (`is_local`), as health checks do, or if it does not know the
    addresses, or if they are no IP addresses. `size` is that of the header, in bytes.
    """

    source: Endpoint | None
    destination: Endpoint | None
    size: int
    tlvs: tuple[Tlv, ...] = ()
    is_local: bool = False
    is_datagram: bool = False


# ---- writing -----------------------------------------------------------------------------------------------


def encode(
    version: str,
    source: Sockaddr | None,
    destination: Sockaddr | None,
    *,
    is_datagram: bool = False,
    tlvs: Iterable[Tlv] = (),
) -> bytes:
    """Return the header of a connection, or of datagrams, which only `V2` has.

    Without a `source` that is an IP address, the header says nothing: UNKNOWN, or LOCAL. In the place of a
    `destination` that is missing, or of another family than the source, stands the unspecified address of
    the source's family (0.0.0.0 or ::). IPv4 that is written as IPv6 counts as IPv4. `V1` has no `tlvs`;
    raises `ProtocolError` if they are too long.
    """
    source_ip, destination_ip = _ip_of(source), _ip_of(destination)
    if version == V1:
        return _line(source_ip, _port_of(source), destination_ip, _port_of(destination))
    if source_ip is None:
        return _FIXED.pack(_SIGNATURE, _VERSION_2 << 4 | _LOCAL, 0, 0)
    addresses = source_ip.packed + _of_one_family(source_ip, destination_ip).packed
    body = addresses + _PORTS.pack(_port_of(source), _port_of(destination))
    for kind, value in tlvs:
        if len(value) > _MAX_VALUE_BYTES:
            raise ProtocolError("a fact is too long for a header of the PROXY protocol")
        body += _TLV.pack(kind, len(value)) + value
    if _FIXED.size + len(body) > MAX_BYTES:
        raise ProtocolError(f"a header of the PROXY protocol would be longer than {MAX_BYTES} bytes")
    family = _INET if source_ip.version == 4 else _INET6  # noqa: PLR2004  (IPv4)
    transport = _DATAGRAM if is_datagram else _STREAM
    return _FIXED.pack(_SIGNATURE, _VERSION_2 << 4 | _PROXY, family << 4 | transport, len(body)) + body


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _line(source: _Ip | None, source_port: int, destination: _Ip | None, destination_port: int) -> bytes:
    if source is None:
        return _UNKNOWN + b"\r\n"
    destination = _of_one_family(source, destination)
    addresses = f"TCP{source.version} {source} {destination} {source_port} {destination_port}"
    return _LINE_START + addresses.encode() + b"\r\n"


def _ip_of(address: Sockaddr | None) -> _Ip | None:
    """Return the IP address of a socket's address, without the scope; None if there is none."""
    if not isinstance(address, tuple):
        return None
    try:
        return _plain(ipaddress.ip_address(str(address[0]).partition("%")[0]))
    except ValueError:
        return None


def _plain(ip: _Ip) -> _Ip:
    return (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip


def _port_of(address: Sockaddr | None) -> int:
    return int(address[1]) & _MAX_PORT if isinstance(address, tuple) else 0


def _of_one_family(source: _Ip, destination: _Ip | None) -> _Ip:
    if destination is not None and destination.version == source.version:
        return destination
    return type(source)(0)


# ---- reading -----------------------------------------------------------------------------------------------


def parse(data: bytes) -> Header | None:
    """Return the header with which `data` begins; None if more of it has to come.

    Raises `ProtocolError` if no header begins so, as early as that is known.
    """
    for start, read in ((_LINE_START, _parse_line), (_SIGNATURE, _parse_binary)):
        if data.startswith(start):
            return read(data)
        if start.startswith(data):
            return None
    raise ProtocolError("this is no header of the PROXY protocol")


def _parse_line(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MAX_LINE_BYTES)
    if end < 0:
        if len(data) >= MAX_LINE_BYTES:
            raise ProtocolError(f"a header of the PROXY protocol is longer than {MAX_LINE_BYTES} bytes")
        return None
    line, size = data[:end], end + 2
    if line == _UNKNOWN or line.startswith(_UNKNOWN + b" "):  # the rest is to be ignored
        return Header(None, None, size)
    found = _LINE.fullmatch(line)
    if found is None:
        raise ProtocolError("the line of the PROXY protocol is not as it should be")
    version, *hosts, source_port, destination_port = (each.decode() for each in found.groups())
    source, destination = (_address_of(host, version) for host in hosts)
    ports = int(source_port), int(destination_port)
    if max(ports) > _MAX_PORT:
        raise ProtocolError("a port of the PROXY protocol is too high")
    return Header((source, ports[0]), (destination, ports[1]), size)


def _address_of(text: str, version: str) -> str:
    """Return an IP address of version 1, IPv4 in IPv6 as IPv4. Raises `ProtocolError`."""
    try:
        ip = ipaddress.IPv4Address(text) if version == "4" else ipaddress.IPv6Address(text)
    except ValueError:
        raise ProtocolError(f"{text!r} is no address of IPv{version}") from None
    return str(_plain(ip))


def _parse_binary(data: bytes) -> Header | None:
    if len(data) < _FIXED.size:
        return None
    _, version_command, family_transport, length = _FIXED.unpack_from(data)
    version, command = divmod(version_command, 16)
    family, transport = divmod(family_transport, 16)
    size = _FIXED.size + length
    if version != _VERSION_2 or command not in (_LOCAL, _PROXY):
        raise ProtocolError(f"the PROXY protocol has no version {version} with a command {command}")
    if size > MAX_BYTES:
        raise ProtocolError(f"a header of the PROXY protocol is longer than {MAX_BYTES} bytes")
    if len(data) < size:
        return None
    if command == _LOCAL:  # what follows is to be ignored, the family as well
        return Header(None, None, size, is_local=True)
    if family not in _ADDRESSES_BYTES or transport > _DATAGRAM:
        raise ProtocolError(f"the PROXY protocol has no family {family} with a transport {transport}")
    addresses_end = _FIXED.size + _ADDRESSES_BYTES[family]
    if addresses_end > size:
        raise ProtocolError("a header of the PROXY protocol is shorter than its addresses")
    tlvs = _tlvs(data[:size], addresses_end)
    is_datagram = transport == _DATAGRAM
    if family not in (_INET, _INET6) or not transport:
        return Header(None, None, size, tlvs, is_datagram=is_datagram)
    source, destination = _endpoints(data[_FIXED.size : addresses_end])
    return Header(source, destination, size, tlvs, is_datagram=is_datagram)


def _endpoints(block: bytes) -> tuple[Endpoint, Endpoint]:
    """Return source and destination of a block of IP addresses and ports."""
    half = (len(block) - _PORTS.size) // 2
    hosts = [str(_plain(ipaddress.ip_address(each))) for each in (block[:half], block[half : 2 * half])]
    ports = _PORTS.unpack_from(block, 2 * half)
    return (hosts[0], ports[0]), (hosts[1], ports[1])


def _tlvs(header: bytes, at: int) -> tuple[Tlv, ...]:
    """Return the facts of a whole header from a place on; raises `ProtocolError`, also for the checksum."""
    found: list[Tlv] = []
    crc_at = 0
    while at < len(header):
        if len(header) < at + _TLV.size:
            raise ProtocolError("a header of the PROXY protocol ends within a fact")
        kind, length = _TLV.unpack_from(header, at)
        at += _TLV.size
        value = header[at : at + length]
        if len(value) < length:
            raise ProtocolError("a header of the PROXY protocol ends within a fact")
        if kind == CRC32C:
            if length != _CRC_BYTES or crc_at:
                raise ProtocolError("a header of the PROXY protocol has no proper checksum")
            crc_at = at
        found.append((kind, value))
        at += length
    if crc_at:
        without = header[:crc_at] + bytes(_CRC_BYTES) + header[crc_at + _CRC_BYTES :]
        if crc32c(without) != int.from_bytes(header[crc_at : crc_at + _CRC_BYTES], "big"):
            raise ProtocolError("the checksum of a header of the PROXY protocol is wrong")
    return tuple(found)


def crc32c(data: bytes) -> int:
    """Return the CRC32C of some bytes (RFC 4960, appendix B); takes half a millisecond for 4 KiB."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@lru_cache(1)
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return table


def receive(conn: EventedConn) -> Header:
    """Take a header off a conn, and leave in it what follows; the caller sets a deadline.

    Raises `ProtocolError` if something else comes, and `ConnError`; the caller closes the conn then. A header
    for datagrams names no source here.
    """
    data = b""
    while (header := parse(data)) is None:
        more = conn.recv(MAX_BYTES)
        if not more:
            raise ConnClosed(f"{conn}: the other end has gone before a header of the PROXY protocol")
        data += more
    if len(data) > header.size:
        conn.unread(data[header.size :])
    return replace(header, source=None, destination=None) if header.is_datagram else header
