"""Datagram sockets: a bound one that many peers write to, and those connected to one; read in the hub.

Nothing here waits: what does not fit into a socket's buffer is dropped, as it would be further on.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.errors import ConnError, DialError, ListenError
from gnar_lib.net.address import Sockaddr, format_address, resolve, unix_family
from gnar_lib.net.conn import socket_class
from gnar_lib.net.endpoint import listen_error
from gnar_lib.net.switching import read_watcher

BATCH = 64  # datagrams per turn of the loop, so that a flood of them does not starve the others
MAX_PEERS = 4096  # at least as many of the latest are remembered, and at most twice as many
MAX_DATAGRAM_BYTES = 65536  # more than any datagram has, so that none is cut
BUFFER_BYTES = 1 << 20  # of a bound socket, where bursts of all peers arrive; Linux cuts it to its own limit
PACKED_ADDRESS_BYTES = 22

_PACKED = struct.Struct(">16sHI")
_V4_IN_V6 = b"\0" * 10 + b"\xff\xff"

_IS_LINUX = sys.platform == "linux"
_IP_PKTINFO = 8  # ip(7); the socket module lacks it
_IN_PKTINFO = struct.Struct("=i4s4s")  # interface, local address, destination in the header
_IN6_PKTINFO = struct.Struct("=16si")  # local address, interface (RFC 3542, 6)
_CONTROL_BYTES = 64  # room for either
_SO_MEMINFO = 55  # of Linux since 4.12; the socket module lacks it
_MEMINFO = struct.Struct("=9I")  # the last is what was dropped
# How "port unreachable" is told: Windows says that the connection was reset.
_REFUSED = (ConnectionRefusedError, ConnectionResetError)
_EXCLUSIVE: int | None = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)  # Windows: nobody else may share a port
# macOS sends no datagram larger than this buffer, and gives 9 KiB.
_SEND_BUFFER_BYTES = 128 * 1024 if sys.platform == "darwin" else None
# The empty name has Linux choose one, unix(7); elsewhere a socket without a name can only send.
_CHOSEN_NAME = "" if _IS_LINUX else None

_log = logger.get("net")


def pack_address(address: Sockaddr | bytes | None) -> bytes:
    """Return an IP address and port as 22 bytes: 16 of address (IPv4 mapped into IPv6), 2 port, 4 scope.

    The path of a Unix socket is returned as it is, empty for a peer that has none.
    """
    if not isinstance(address, tuple):
        return os.fsencode(address or b"")
    host = address[0].partition("%")[0]
    if ":" in host:
        raw = socket.inet_pton(socket.AF_INET6, host)
    else:
        raw = _V4_IN_V6 + socket.inet_pton(socket.AF_INET, host)
    return _PACKED.pack(raw, address[1], address[3] if len(address) > 3 else 0)  # noqa: PLR2004  (the scope's place)


def unpack_address(packed: bytes) -> tuple[str, int, int]:
    """Return host, port and scope of 22 bytes, IPv4 as IPv4."""
    raw, port, scope = _PACKED.unpack(packed)
    if raw.startswith(_V4_IN_V6):
        return socket.inet_ntop(socket.AF_INET, raw[12:]), port, scope
    return str(ipaddress.IPv6Address(raw)), port, scope


Datagram = tuple[bytes, bytes]
"""A peer's packed address, by which it is known everywhere, and the payload."""


class _Peer:
    """Somebody who writes to a bound socket.

    `came_to` is the local address of the last datagram, as the kernel tells it, and `control` what has
    answers leave from there.
    """

    __slots__ = ("address", "came_to", "control", "packed", "used_s")

    def __init__(self, address: Sockaddr) -> None:
        self.address = address
        self.packed = pack_address(address)
        self.came_to = b""
        self.control: list[tuple[int, int, bytes]] | None = None
        self.used_s = 0.0


class _Reader:
    """Has a socket read in the hub, but for the pauses that its owner wants."""

    __slots__ = ("_pause", "_read", "_watcher")

    def __init__(self, sock: socket.socket) -> None:
        self._watcher: Any = read_watcher(get_hub().loop, sock)
        self._pause: Any = None
        self._read: Callable[[], None] | None = None

    def start(self, read: Callable[[], None]) -> None:
        self._read = read
        if not self._watcher.active and self._pause is None:
            self._watcher.start(read)

    def pause(self, seconds: float) -> None:
        if self._watcher.active:
            self._watcher.stop()
            self._pause = get_hub().loop.timer(seconds)
            self._pause.start(self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._read is not None:
            self._watcher.start(self._read)

    def stop(self) -> None:
        self._watcher.stop()
        if self._pause is not None:
            self._pause.stop()


class DatagramSocket:
    """A bound socket; its owner closes it. It answers those alone that it has heard of lately.

    On a wildcard address it answers each peer from the address that the peer wrote to. That takes recvmsg and
    sendmsg (0.3 us more, each); a socket on one address has no choice and does without.
    """

    def __init__(self, sock: socket.socket, before_close: Callable[[], None] | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._peers: dict[Sockaddr, _Peer] = {}
        self._by_packed: dict[bytes, _Peer] = {}
        self._reader = _Reader(sock)
        self._handle: Callable[[list[Datagram]], None] | None = None
        self._budget = 1
        self._overflow = 0
        self.began_s = 0.0  # when the turn under way did
        self._before_close = before_close
        self._control = _ask_for_local_address(sock)
        self._sendmsg: Any = getattr(sock, "sendmsg", None)  # only used with the former; Windows has neither
        self._recvmsg: Any = getattr(sock, "recvmsg", None)

    @property
    def port(self) -> int:
        """The UDP port that is listened on."""
        return int(self.sock.getsockname()[1])

    def getsockname(self) -> Sockaddr:
        """Return the address that is listened on."""
        name: Sockaddr = self.sock.getsockname()
        return name

    def serve(self, handle: Callable[[list[Datagram]], None]) -> None:
        """From now on, call `handle` in the hub with the datagrams of each turn, 64 at most."""
        self._handle = handle
        if self.sock.fileno() >= 0:
            self._reader.start(self._on_readable)

    def pause(self, seconds: float) -> None:
        """Read nothing for a while: what the kernel has no room for is dropped there."""
        self._reader.pause(seconds)

    def recent_peers(self, within_s: float) -> int:
        """Return how many peers were heard of in the last seconds."""
        since = time.monotonic() - within_s
        return sum(peer.used_s >= since for peer in self._peers.values())

    def take_overflow(self) -> int:
        """Return how many datagrams the kernel has dropped since the last call, for want of room (Linux)."""
        if not _IS_LINUX:
            return 0
        drops: int = _MEMINFO.unpack(self.sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
        fresh = (drops - self._overflow) % (1 << 32)
        self._overflow = drops
        return fresh

    def send(self, datagrams: list[Datagram]) -> int:
        """Send each to its peer; return how many the kernel did not take, or have a peer unheard of."""
        find, sendto, failed = self._by_packed.get, self.sock.sendto, 0
        for packed, payload in datagrams:
            peer = find(packed)
            if peer is None or not peer.address:  # a Unix socket may have no name to write to
                failed += 1
                continue
            try:
                if peer.control is None:
                    sendto(payload, peer.address)
                else:
                    self._sendmsg((payload,), peer.control, 0, peer.address)
            except OSError as exc:
                _log.debug("nothing sent to %s: %s", format_address(peer.address), exc.strerror)
                failed += 1
        return failed

    def close(self) -> None:
        """Stop reading and close; more than once does no harm."""
        if self.sock.fileno() < 0:
            return
        self._reader.stop()
        if self._before_close is not None:
            self._before_close()
        self.sock.close()

    # ---- in the hub ----------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        """Read what is there: a lone datagram alone, a flood 64 at a time.

        A read that fails costs as much as one that works, so try for no more than twice as many as last time.
        """
        received: list[Datagram] = []
        self.began_s = now_s = time.monotonic()
        try:
            if self._control is None:
                self._receive(received, now_s)
            else:
                self._receive_with_local_address(received, now_s, self._control)
            self._budget = min(2 * self._budget, BATCH)
        except BlockingIOError:
            self._budget = len(received) or 1
        except OSError as exc:  # what became of an earlier answer: nobody here can do anything about it
            _log.debug("reading datagrams: %s", exc.strerror)
        if received and self._handle is not None:
            self._handle(received)

    def _receive(self, received: list[Datagram], now_s: float) -> None:
        recvfrom, find, add = self.sock.recvfrom, self._peers.get, received.append
        for _ in range(self._budget):
            payload, address = recvfrom(MAX_DATAGRAM_BYTES)
            peer = find(address) or self._meet(address)
            peer.used_s = now_s
            add((peer.packed, payload))

    def _receive_with_local_address(
        self, received: list[Datagram], now_s: float, control_for: Callable[[bytes], tuple[int, int, bytes]]
    ) -> None:
        recvmsg, find, add = self._recvmsg, self._peers.get, received.append
        for _ in range(self._budget):
            payload, ancillary, _, address = recvmsg(MAX_DATAGRAM_BYTES, _CONTROL_BYTES)
            peer = find(address) or self._meet(address)
            peer.used_s = now_s
            if ancillary and ancillary[0][2] != peer.came_to:
                peer.came_to = ancillary[0][2]
                peer.control = [control_for(peer.came_to)]
            add((peer.packed, payload))

    def _meet(self, address: Sockaddr) -> _Peer:
        if len(self._peers) >= 2 * MAX_PEERS:
            self._forget_half()
        peer = self._peers[address] = _Peer(address)
        self._by_packed[peer.packed] = peer
        return peer

    def _forget_half(self) -> None:
        """Forget those that were silent longest."""
        latest = sorted(self._peers.values(), key=lambda peer: peer.used_s)[-MAX_PEERS:]
        self._peers = {peer.address: peer for peer in latest}
        self._by_packed = {peer.packed: peer for peer in latest}


def _ask_for_local_address(sock: socket.socket) -> Callable[[bytes], tuple[int, int, bytes]] | None:
    """Have a wildcard socket tell the local address of each datagram; return what makes a source of that."""
    if sys.platform == "linux":
        if sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            return _source_v6
        if sock.family == socket.AF_INET and sock.getsockname()[0] == "0.0.0.0":
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            return _source_v4
    return None


# The interface is left open: the way back need not be the way there.


def _source_v6(info: bytes) -> tuple[int, int, bytes]:
    local, _ = _IN6_PKTINFO.unpack(info)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(local, 0)


def _source_v4(info: bytes) -> tuple[int, int, bytes]:
    _, local, _ = _IN_PKTINFO.unpack(info)
    return socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, local, b"\0" * 4)


def bind_udp(host: str, port: int) -> DatagramSocket:
    """Receive datagrams at a UDP address; an empty host means every address, IPv4 and IPv6. Port 0: any.

    Raises `PortTakenError` when another socket has it, `ListenError` when it may not be used.
    """
    if host:
        try:
            family, address = resolve(host, port, socket.SOCK_DGRAM)[0]
        except DialError as exc:
            raise ListenError(str(exc)) from exc
        return _bind(family, address)
    try:
        return _bind(socket.AF_INET6, ("::", port))
    except ListenError as exc:
        if exc.__cause__ is None or getattr(exc.__cause__, "errno", None) not in _NO_IPV6:
            raise
        return _bind(socket.AF_INET, ("0.0.0.0", port))


_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


def _bind(family: int, address: Sockaddr) -> DatagramSocket:
    sock = None
    try:
        sock = socket_class(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        # No SO_REUSEADDR: on Linux two UDP sockets with it share a port, and one gets nothing.
        if _EXCLUSIVE is not None:
            sock.setsockopt(socket.SOL_SOCKET, _EXCLUSIVE, 1)
        sock.bind(address)
        return DatagramSocket(with_buffers(sock))
    except (OSError, OverflowError) as exc:
        if sock is not None:
            sock.close()
        raise listen_error(address, exc) from exc


def with_buffers(sock: socket.socket) -> socket.socket:
    """Give a bound socket room for bursts."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    return sock


class DatagramConn:
    """A socket connected to one address; its owner closes it.

    `is_refused` says that nobody receives there ("port unreachable"), until somebody resets it: that ends
    nothing, the next datagram may arrive. `used_s` is when something came or, which its owner
    notes, was sent.
    """

    __slots__ = ("_budget", "_handle", "_peer", "_reader", "address", "is_refused", "sock", "used_s")

    def __init__(self, sock: socket.socket, address: Sockaddr) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.address = address
        self.is_refused = False
        self.used_s = time.monotonic()
        self._budget = 1
        self._peer = b""
        self._handle: Callable[[list[Datagram]], None] | None = None
        self._reader = _Reader(sock)

    def serve(self, handle: Callable[[list[Datagram]], None], peer: bytes) -> None:
        """Call `handle` in the hub with the datagrams of each turn, 64 at most, as `peer`'s."""
        self._handle, self._peer = handle, peer
        self._reader.start(self._on_readable)

    def pause(self, seconds: float) -> None:
        """Read nothing for a while: what the kernel has no room for is dropped there."""
        self._reader.pause(seconds)

    def send(self, payload: bytes) -> bool:
        """Send one datagram, and tell whether the kernel took it."""
        try:
            self.sock.send(payload)
        except _REFUSED:  # of an earlier datagram, on UDP: this one was not tried
            self.is_refused = True
            return self._send_again(payload)
        except OSError as exc:
            _log.debug("nothing sent to %s: %s", format_address(self.address), exc.strerror)
            return False
        return True

    def _send_again(self, payload: bytes) -> bool:
        try:
            self.sock.send(payload)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop reading and close."""
        if self.sock.fileno() >= 0:
            self._reader.stop()
            self.sock.close()

    def _on_readable(self) -> None:
        received: list[Datagram] = []
        self.used_s = time.monotonic()
        recv, peer, add = self.sock.recv, self._peer, received.append
        try:
            for _ in range(self._budget):
                add((peer, recv(MAX_DATAGRAM_BYTES)))
            self._budget = min(2 * self._budget, BATCH)
        except BlockingIOError:
            self._budget = len(received) or 1
        except _REFUSED:
            self.is_refused = True
        except OSError as exc:
            _log.debug("reading datagrams: %s", exc.strerror)
        if received and self._handle is not None:
            self._handle(received)


def connect_udp(family: int, address: Sockaddr, source: str = "") -> DatagramConn:
    """Return a socket connected to a UDP address, optionally from the local address `source`; never waits.

    Raises `DialError`.
    """
    return _connect(family, address, (source, 0) if source else None)


def _connect(family: int, address: Sockaddr, source: Sockaddr | None) -> DatagramConn:
    sock = None
    try:
        sock = socket_class(family, socket.SOCK_DGRAM)
        if source is not None:
            sock.bind(source)
        if _SEND_BUFFER_BYTES is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sock.setblocking(False)
        sock.connect(address)
        return DatagramConn(sock, address)
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise DialError(f"cannot connect to {format_address(address)}: {exc.strerror or exc}") from exc


def connect_unix_datagram(path: str) -> DatagramConn:
    """Return a datagram socket connected to a Unix path.

    On Linux it has a name of its own, so that it can be answered. Raises `DialError`, or `UsageError` where
    there are no Unix sockets.
    """
    return _connect(unix_family(), path, _CHOSEN_NAME)


def is_out_of_files(error: ConnError) -> bool:
    """Tell whether a socket could not be made because the process or the system has too many."""
    return getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE)
