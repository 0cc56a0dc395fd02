"""The local address to which a datagram came, and from which an answer has to leave (Linux)."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable

from gnar_lib.net.options import try_option

CONTROL_BYTES = 64  # of ancillary data: room for either structure below

_IP_PKTINFO = 8  # ip(7); the socket module lacks it
_IN_PKTINFO = struct.Struct("=i4s4s")  # interface, local address, destination in the header
_IN6_PKTINFO = struct.Struct("=16si")  # local address, interface (RFC 3542, section 6)

Ancillary = tuple[int, int, bytes]
"""Level, type and data: what `recvmsg` and `sendmsg` call ancillary data."""


def ask_for_local_address(sock: socket.socket) -> Callable[[bytes], Ancillary] | None:
    """Have a socket on a wildcard address tell with each datagram to which local address the datagram came.

    Returns a function that makes, of the data that `recvmsg` returns, the ancillary data with which `sendmsg`
    answers from that address. Returns None for a socket on one address, which has no choice, and where the
    system is not Linux or does not tell.
    """
    if sys.platform == "linux":
        if sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::":
            tells = try_option(sock, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            return _from_v6 if tells else None
        if sock.family == socket.AF_INET and sock.getsockname()[0] == "0.0.0.0":
            tells = try_option(sock, socket.IPPROTO_IP, _IP_PKTINFO, 1)
            return _from_v4 if tells else None
    return None


# The interface is left open: the way back need not be the way there.


def _from_v6(info: bytes) -> Ancillary:
    local, _ = _IN6_PKTINFO.unpack(info)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(local, 0)


def _from_v4(info: bytes) -> Ancillary:
    _, local, _ = _IN_PKTINFO.unpack(info)
    return socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, local, b"\0" * 4)
