"""Datagram sockets that are bound, to which many peers write.

Callbacks of the hub read them. Nothing here waits: what does not fit into a socket's buffer is dropped, as
routers do with datagrams, too.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.errors import ConnError, DialError, ListenError
from gnar_lib.net.address import Sockaddr, format_address, resolve
from gnar_lib.net.conn import socket_class
from gnar_lib.net.descriptors import descriptors
from gnar_lib.net.endpoint import listen_error
from gnar_lib.net.local_address import CONTROL_BYTES, Ancillary, ask_for_local_address
from gnar_lib.net.options import SocketOption, set_options, try_option
from gnar_lib.net.peer_table import ANSWERED, UNANSWERED, Entry, PeerTable
from gnar_lib.net.switching import read_watcher

BATCH = 64  # datagrams of a socket in one turn of the loop, so that a flood does not starve others
MAX_PEERS = 8192  # that are remembered: twice as many as a proxy has sessions
PEER_AGE_S = 3600.0  # a peer is remembered for so long, unless `forget_after` says otherwise
MAX_DATAGRAM_BYTES = 65536  # more than any datagram has, so that no datagram is cut
BUFFER_BYTES = 1 << 20  # of a bound socket, where bursts of all peers arrive; Linux may give less
PACKED_ADDRESS_BYTES = 22

_PACKED = struct.Struct(">16sHI")
_V4_IN_V6 = b"\0" * 10 + b"\xff\xff"

_IS_LINUX = sys.platform == "linux"
_SO_MEMINFO = 55  # of Linux since 4.12; the socket module lacks it
_MEMINFO = struct.Struct("=9I")  # the last number counts the datagrams that were dropped
_EXCLUSIVE_PORT: int | None = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)  # Windows: no port is shared

_log = logger.get("net")


def pack_address(address: Sockaddr | bytes | None) -> bytes:
    """Return an IP address and port as 22 bytes: 16 of address (IPv4 mapped to IPv6), 2 of port, 4 of scope.

    Returns the path of a Unix socket as it is; empty for a peer that has no path.
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
    """Return host, port and scope of the 22 bytes of `pack_address`; a mapped IPv4 address as IPv4."""
    raw, port, scope = _PACKED.unpack(packed)
    if raw.startswith(_V4_IN_V6):
        return socket.inet_ntop(socket.AF_INET, raw[12:]), port, scope
    return str(ipaddress.IPv6Address(raw)), port, scope


Datagram = tuple[bytes, bytes]
"""The packed address of a peer, by which the peer is known everywhere, and the payload."""


class _Peer(Entry):
    """Somebody who writes to a bound socket."""

    __slots__ = ("address", "came_to", "control", "packed")

    def __init__(self, address: Sockaddr) -> None:
        super().__init__()
        self.address = address
        self.packed = pack_address(address)
        self.came_to = b""  # the local address of the last datagram, as the kernel tells it
        self.control: list[Ancillary] | None = None  # has an answer leave from there


class Reader:
    """Calls back whenever a socket can be read, except during a pause; knows how often to read then.

    A read that finds nothing costs as much as one that brings a datagram. So each turn of the loop has a
    budget: one datagram while they come one by one, 64 in a flood. The budget doubles when it was used up in
    two turns running, and becomes what there was when there was less.
    """

    __slots__ = ("_full_turn", "_loop", "_pause", "_read", "_watcher", "budget")

    def __init__(self, sock: socket.socket) -> None:
        self.budget = 1  # datagrams to read in the next turn
        self._full_turn = -2  # the last turn of the loop that has used the budget up; none, and none before
        self._loop: Any = get_hub().loop
        self._watcher: Any = read_watcher(self._loop, sock)
        self._pause: Any = None  # the timer that ends a pause
        self._read: Callable[[], None] | None = None

    def was_full(self) -> None:
        """This turn has read as many datagrams as its budget allows."""
        before, self._full_turn = self._full_turn, self._loop.iteration  # always -1 with libuv (Windows)
        if self._full_turn <= before + 1 and self.budget < BATCH:
            self.budget = min(2 * self.budget, BATCH)

    def ran_out(self, received: int) -> None:
        """This turn has read so many datagrams, and then found nothing."""
        self.budget = received or 1

    def start(self, read: Callable[[], None]) -> None:
        """Call `read` from now on."""
        self._read = read
        if not self._watcher.active and self._pause is None:
            self._watcher.start(read)

    def pause(self, seconds: float) -> None:
        """Call nobody for some seconds."""
        if self._watcher.active:
            self._watcher.stop()
            self._pause = self._loop.timer(seconds)
            self._pause.start(self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._read is not None:
            self._watcher.start(self._read)

    def stop(self) -> None:
        """Call nobody any more."""
        self._watcher.stop()
        if self._pause is not None:
            self._pause.stop()
            self._pause = None


# The errors that mean that nothing can be sent from an address, such as that of a broadcast.
_NOT_OURS = {errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL}


class DatagramSocket:
    """A bound socket, which can only answer peers that have written lately; the owner closes it.

    A socket on a wildcard address answers each peer from the local address to which the peer wrote. It needs
    `recvmsg` and `sendmsg` for that, which cost 0.3 us more each; a socket on one address does not.

    `before_close` is called by `close`, while the socket is still open. `on_come` and `on_gone` are told of
    each peer that begins to write, and of each that has not written for long; they must not wait.
    """

    def __init__(self, sock: socket.socket, before_close: Callable[[], None] | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.on_come: Callable[[Sockaddr], None] | None = None
        self.on_gone: Callable[[], None] | None = None
        self._peers = PeerTable(MAX_PEERS, PEER_AGE_S, self._forget)  # who has written lately
        self._by_address: dict[Sockaddr, _Peer] = {}  # the same, by the kernel's address
        self._reader = Reader(sock)
        self._handle: Callable[[list[Datagram]], None] | None = None  # takes what was received
        self._overflow = 0  # datagrams that the kernel has dropped until the last look
        self.began_s = 0.0  # when this turn's work on datagrams began, for the `handle` of `serve`
        self._before_close = before_close
        self._control = ask_for_local_address(sock)  # None: answers always leave from the same address
        self._sendmsg: Any = getattr(sock, "sendmsg", None)  # None on Windows, where nobody needs it
        self._recvmsg: Any = getattr(sock, "recvmsg", None)

    @property
    def port(self) -> int:
        """The UDP port that is listened on."""
        return int(self.sock.getsockname()[1])

    def serve(self, handle: Callable[[list[Datagram]], None]) -> None:
        """From now on, call `handle` in the hub with the datagrams of each turn of the loop, 64 at most."""
        self._handle = handle
        if self.sock.fileno() >= 0:
            self._reader.start(self._on_readable)

    def call_on_next(self, call: Callable[[], None]) -> None:
        """Read nothing until `serve` is called again; `call` is called in the hub when something has come."""
        self._reader.stop()

        def stop_and_call() -> None:
            self._reader.stop()
            call()

        if self.sock.fileno() >= 0:
            self._reader.start(stop_and_call)

    def rest(self) -> None:
        """Read nothing until `serve` is called again; the kernel drops what it has no room for."""
        self._reader.stop()

    def pause(self, seconds: float) -> None:
        """Read nothing for some seconds; the kernel drops what it has no room for."""
        self._reader.pause(seconds)

    def forget_after(self, seconds: float) -> None:
        """Forget a peer, who gets no answers any more, so long after the last datagram from it or to it."""
        self._peers.timeout_s = seconds

    @property
    def has_peers(self) -> bool:
        """Whether there is anybody to whom an answer could be sent."""
        return len(self._peers) > 0

    def recent_peers(self, within_s: float) -> int:
        """Return how many peers have written, or got an answer, within the last `within_s` seconds."""
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
        """Send each to its peer; return how many the kernel refused, or are for a peer that is not known."""
        find, sendto, failed, now_s = self._peers.get, self.sock.sendto, 0, time.monotonic()
        for packed, payload in datagrams:
            peer = find(packed)
            if peer is None or not peer.address:  # a Unix socket may have no name to write to
                failed += 1
                continue
            peer.used_s = now_s
            if peer.standing == UNANSWERED:
                self._peers.promote(packed, peer)
            try:
                if peer.control is None:
                    sendto(payload, peer.address)
                else:
                    self._sendmsg((payload,), peer.control, 0, peer.address)
            except OSError as exc:
                if exc.errno in _NOT_OURS and peer.control is not None:  # the peer wrote to a broadcast
                    peer.control = None
                    failed += self.send([(packed, payload)])
                    continue
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
        descriptors.taken -= 1
        self._peers.close()

    # ---- in the hub ----------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        """Read what is there, as far as the budget of this turn goes."""
        received: list[Datagram] = []
        self.began_s = now_s = time.monotonic()
        try:
            if self._control is None:
                self._receive(received, now_s)
            else:
                self._receive_with_local_address(received, now_s, self._control)
            self._reader.was_full()
        except BlockingIOError:
            self._reader.ran_out(len(received))
        except OSError as exc:  # an earlier answer did not arrive, about which nobody here can do anything
            _log.debug("reading datagrams: %s", exc.strerror)
        if received and self._handle is not None:
            self._handle(received)

    def _receive(self, received: list[Datagram], now_s: float) -> None:
        recvfrom, find, add = self.sock.recvfrom, self._by_address.get, received.append
        for _ in range(self._reader.budget):
            payload, address = recvfrom(MAX_DATAGRAM_BYTES)
            peer = find(address) or self._meet(address)
            peer.used_s = now_s
            if peer.standing == ANSWERED:
                self._peers.promote(peer.packed, peer)
            add((peer.packed, payload))

    def _receive_with_local_address(
        self, received: list[Datagram], now_s: float, control_for: Callable[[bytes], Ancillary]
    ) -> None:
        recvmsg, find, add = self._recvmsg, self._by_address.get, received.append
        for _ in range(self._reader.budget):
            payload, ancillary, _, address = recvmsg(MAX_DATAGRAM_BYTES, CONTROL_BYTES)
            peer = find(address) or self._meet(address)
            peer.used_s = now_s
            if peer.standing == ANSWERED:
                self._peers.promote(peer.packed, peer)
            if ancillary and ancillary[0][2] != peer.came_to:
                peer.came_to = ancillary[0][2]
                peer.control = [control_for(peer.came_to)]
            add((peer.packed, payload))

    def _meet(self, address: Sockaddr) -> _Peer:
        peer = _Peer(address)
        if self._peers.get(peer.packed) is not None:  # the kernel spells the address in another way
            self._peers.end(peer.packed)
        self._by_address[address] = peer
        self._peers.add(peer.packed, peer)
        if self.on_come is not None:
            self.on_come(address)
        return peer

    def _forget(self, _packed: bytes, peer: _Peer) -> None:
        del self._by_address[peer.address]
        if self.on_gone is not None:
            self.on_gone()


def bind_udp(host: str, port: int, options: Iterable[SocketOption] = ()) -> DatagramSocket:
    """Return a socket that receives at a UDP address; the caller closes it.

    An empty host means every address, of IPv4 and IPv6; port 0 has the system choose a port. Raises
    `PortTakenError` when another socket has the port, `ListenError` when gnar must not use it or the host is
    unknown.
    """
    if host:
        try:
            family, address = resolve(host, port, socket.SOCK_DGRAM)[0]
        except DialError as exc:
            raise ListenError(str(exc)) from exc
        return _bind(family, address, options)
    try:
        return _bind(socket.AF_INET6, ("::", port), options)
    except ListenError as exc:
        if exc.__cause__ is None or getattr(exc.__cause__, "errno", None) not in _NO_IPV6:
            raise
        return _bind(socket.AF_INET, ("0.0.0.0", port), options)


_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


def _bind(family: int, address: Sockaddr, options: Iterable[SocketOption]) -> DatagramSocket:
    sock = None
    try:
        sock = socket_class(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            try_option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        # Without SO_REUSEADDR: on Linux two UDP sockets that have it share a port, and one gets nothing.
        if _EXCLUSIVE_PORT is not None:
            try_option(sock, socket.SOL_SOCKET, _EXCLUSIVE_PORT, 1)
        with_buffers(sock)
        set_options(sock, options)
        sock.bind(address)
        return DatagramSocket(sock)
    except (OSError, OverflowError) as exc:
        if sock is not None:
            sock.close()
        raise listen_error(address, exc) from exc


def with_buffers(sock: socket.socket) -> socket.socket:
    """Give a socket that is bound, or is to be bound, room for bursts; return the socket."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try_option(sock, socket.SOL_SOCKET, option, BUFFER_BYTES)
    return sock


def is_out_of_files(error: ConnError) -> bool:
    """Tell whether the process or the system has too many descriptors, so that no socket could be made."""
    return getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE)
