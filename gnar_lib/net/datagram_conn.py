"""Datagram sockets that write to one address, the service's; callbacks of the hub read them.

Nothing here waits: what does not fit into a socket's buffer is dropped.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from gnar_lib import logger
from gnar_lib.errors import DialError
from gnar_lib.net.address import Sockaddr, format_address, unix_family
from gnar_lib.net.conn import socket_class
from gnar_lib.net.datagram import BATCH, MAX_DATAGRAM_BYTES, Datagram, Reader, pack_address
from gnar_lib.net.descriptors import descriptors
from gnar_lib.net.options import try_option
from gnar_lib.net.peer_table import Entry

SILENT_S = 3.0  # a service that is asked and has said nothing for so long may have moved

# The errors that mean "port unreachable": Windows says that the connection was reset.
_REFUSED = (ConnectionRefusedError, ConnectionResetError)
# macOS sends no datagram that is larger than this buffer, which has 9 KiB unless gnar asks for more.
_SEND_BUFFER_BYTES = 128 * 1024 if sys.platform == "darwin" else None
_IS_LINUX = sys.platform == "linux"
# With the empty name Linux chooses a name, unix(7). Elsewhere a socket has no name, and gets no answers.
_CHOSEN_NAME = "" if _IS_LINUX else None

# Linux, ip(7) and ipv6(7): tell a socket that is not connected of unreachable ports, too. The socket module
# lacks the names.
_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_ERROR_QUEUE: int = getattr(socket, "MSG_ERRQUEUE", 0)

_ANYWHERE: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_V4_IN_V6 = b"\0" * 10 + b"\xff\xff"
_MULTICAST_V4 = range(224, 240)  # the first byte of such an address
_MULTICAST_V6 = 0xFF

_log = logger.get("net")


class DatagramConn(Entry):
    """A socket that writes to one address and takes its answers; the owner closes it.

    A socket that is connected gets datagrams from that address alone: the kernel drops all others without a
    trace. `to` is the address of a socket that is not connected. The first answer from that address connects
    the socket, and until then `serve` tells of datagrams from elsewhere. With `any_source` all datagrams are
    answers. The first answer then decides where to go on writing to, as TFTP needs it (RFC 1350), unless
    `is_group`: nobody answers from the address of a group.
    """

    __slots__ = (
        "_any_source",
        "_checks_source",
        "_handle",
        "_is_decided",
        "_on_stray",
        "_peer",
        "_reader",
        "_recvmsg",
        "_to",
        "address",
        "is_asked",
        "is_refused",
        "look_s",
        "sock",
    )

    def __init__(
        self,
        sock: socket.socket,
        address: Sockaddr,
        *,
        to: Sockaddr | None = None,
        any_source: bool = False,
        is_group: bool = False,
    ) -> None:
        super().__init__()
        sock.setblocking(False)
        self.sock = sock
        self.address = address
        # Nobody receives there ("port unreachable"). That ends nothing, since the next datagram may arrive.
        # The owner sets this back to False.
        self.is_refused = False
        # When the owner should look at this conn again: at once when it is refused. Answers put that off.
        self.look_s = 0.0
        self.is_asked = False  # whether the owner has looked at it since the last answer
        self._to = to
        self._any_source = any_source
        self._is_decided = is_group  # whether answers change `_to` no more
        self._checks_source = to is not None  # whether datagrams from elsewhere may be among what is read
        self._recvmsg: Any = getattr(sock, "recvmsg", None)  # None on Windows, where nobody needs it
        self._peer = b""  # the packed address under which `_handle` gets what was received
        self._handle: Callable[[list[Datagram]], None] | None = None
        self._on_stray: Callable[[DatagramConn, Sockaddr], None] | None = None
        self._reader = Reader(sock)

    def serve(
        self,
        handle: Callable[[list[Datagram]], None],
        peer: bytes,
        on_stray: Callable[[DatagramConn, Sockaddr], None] | None = None,
    ) -> None:
        """Call `handle` in the hub with the datagrams of each turn, 64 at most, as coming from `peer`.

        Calls `on_stray` with this conn and the source of each datagram that is dropped, since it came from
        elsewhere.
        """
        self._handle, self._peer, self._on_stray = handle, peer, on_stray
        self._reader.start(self._on_readable)

    def pause(self, seconds: float) -> None:
        """Read nothing for some seconds; the kernel drops what it has no room for."""
        self._reader.pause(seconds)

    def send(self, payload: bytes) -> bool:
        """Send one datagram; return whether the kernel took it."""
        try:
            if self._to is None:
                self.sock.send(payload)
            else:
                self.sock.sendto(payload, self._to)
        except _REFUSED:  # which is about an earlier datagram: this one was not sent
            self._note_refused()
            return self._send_again(payload)
        except OSError as exc:
            _log.debug("nothing sent to %s: %s", format_address(self.address), exc.strerror)
            self._forget_errors()
            return False
        return True

    def _send_again(self, payload: bytes) -> bool:
        try:
            if self._to is None:
                self.sock.send(payload)
            else:
                self.sock.sendto(payload, self._to)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop reading and close."""
        if self.sock.fileno() >= 0:
            self._reader.stop()
            self.sock.close()
            descriptors.taken -= 1

    # ---- in the hub ----------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        received: list[Datagram] = []
        self.used_s = time.monotonic()
        try:
            if self._checks_source:
                self._receive_from_anywhere(received)
            else:
                recv, peer, add = self.sock.recv, self._peer, received.append
                for _ in range(self._reader.budget):
                    add((peer, recv(MAX_DATAGRAM_BYTES)))
            self._reader.was_full()
        except BlockingIOError:
            self._reader.ran_out(len(received))
            self._checks_source = self._to is not None  # what came before the socket was connected is read
        except _REFUSED:
            self._note_refused()
        except OSError as exc:
            _log.debug("reading datagrams: %s", exc.strerror)
            self._forget_errors()
        if received and self._handle is not None:
            self.is_asked, self.look_s = False, self.used_s + SILENT_S
            self._handle(received)

    def _receive_from_anywhere(self, received: list[Datagram]) -> None:
        recvfrom, peer, add = self.sock.recvfrom, self._peer, received.append
        # Once the socket is connected, only what came before has a source to be checked: read all of that.
        for _ in range(BATCH if self._to is None else self._reader.budget):
            payload, source = recvfrom(MAX_DATAGRAM_BYTES)
            if self._is_answer(source):
                add((peer, payload))
            elif self._on_stray is not None:
                self._on_stray(self, source)

    def _is_answer(self, source: Sockaddr) -> bool:
        """Tell whether a datagram from `source` is an answer; the first answer decides where to write to."""
        if not self._any_source and pack_address(source) != pack_address(self.address):
            return False
        if not self._is_decided:
            self._is_decided = True
            if self._any_source:
                self._to = source
            else:
                self._connect()
        return True

    def _connect(self) -> None:
        """Have the kernel drop what does not come from the address, and send without looking for a way."""
        with suppress(OSError):  # there is no way any more: the next datagram tells
            self.sock.connect(self.address)
            self._to = None
            _tell_errors(self.sock, 0)

    def _note_refused(self) -> None:
        """Nobody receives at the address, or at the one that has answered: then go back to the former."""
        self._forget_errors()
        if self._to in (None, self.address):
            self.is_refused, self.look_s = True, 0.0
        else:
            self._to, self._is_decided = self.address, False

    def _forget_errors(self) -> None:
        """Take the kernel's reports of errors: while there are any, the socket counts as readable."""
        if _IS_LINUX and self._to is not None:
            with suppress(OSError):  # BlockingIOError: there is none any more
                for _ in range(BATCH):
                    self._recvmsg(1, 0, _ERROR_QUEUE)


def _tell_errors(sock: socket.socket, value: int) -> None:
    """Have Linux tell a socket that is not connected that a port is unreachable (1), or not any more (0)."""
    if _IS_LINUX:
        level, option = _RECVERR[socket.AddressFamily(sock.family)]
        try_option(sock, level, option, value)


# ---- opening -----------------------------------------------------------------------------------------------


def connect_udp(
    family: int, address: Sockaddr, source: str = "", *, any_source: bool = False
) -> DatagramConn:
    """Return a socket that writes to a UDP address; the caller closes it. Never waits.

    `source` is the local IP address from which to send, empty for any. `any_source`: take answers from every
    address, as is done for broadcast and multicast addresses. Raises `DialError`.
    """
    local = (source, 0) if source else None
    packed = pack_address(address)
    try:
        is_broadcast = _check(family, address, local)
        is_group = is_broadcast or _is_multicast(packed)
        if not is_group and not any_source and not (_IS_LINUX and _is_own_address(family, packed)):
            return _connect(family, address, local)
        with _opening(family, local or (_ANYWHERE[family], 0)) as sock:
            _tell_errors(sock, 1)
            if is_broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            takes_all = any_source or is_group
            return DatagramConn(sock, address, to=address, any_source=takes_all, is_group=is_group)
    except OSError as exc:
        raise _dial_error(address, exc) from exc


def _check(family: int, address: Sockaddr, local: Sockaddr | None) -> bool:
    """Tell whether this is the address of a broadcast; raises `OSError` if there is no way to it."""
    with _opening(family, local) as sock, closing(sock):
        try:
            sock.connect(address)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.connect(address)
            return True
    return False


def _is_multicast(packed: bytes) -> bool:
    """Tell whether a packed address is one of many receivers, RFC 1112 and RFC 4291."""
    return packed[12] in _MULTICAST_V4 if packed.startswith(_V4_IN_V6) else packed[0] == _MULTICAST_V6


def _is_own_address(family: int, packed: bytes) -> bool:
    """Tell whether answers come from this very address: those to 0.0.0.0 and :: come from loopback."""
    raw, is_v4 = packed[:16], packed.startswith(_V4_IN_V6)
    return any(raw[12:] if is_v4 else raw) and is_v4 == (family == socket.AF_INET)


@contextmanager
def _opening(family: int, local: Sockaddr | None) -> Iterator[socket.socket]:
    """Open a socket that never waits, bound to `local`; an error in the block closes it. Raises `OSError`."""
    sock = socket_class(family, socket.SOCK_DGRAM)
    try:
        if local is not None:
            sock.bind(local)
        if _SEND_BUFFER_BYTES is not None:
            try_option(sock, socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sock.setblocking(False)
        yield sock
    except BaseException:
        sock.close()
        raise


def _connect(family: int, address: Sockaddr, local: Sockaddr | None) -> DatagramConn:
    """Return a socket that is connected; the caller closes it. Raises `OSError`."""
    with _opening(family, local) as sock:
        sock.connect(address)
        return DatagramConn(sock, address)


def _dial_error(address: Sockaddr, cause: OSError) -> DialError:
    return DialError(f"cannot connect to {format_address(address)}: {cause.strerror or cause}")


def connect_unix_datagram(path: str) -> DatagramConn:
    """Return a datagram socket that is connected to a Unix path; the caller closes it.

    On Linux the socket has a name of its own, to which the other end can answer. Raises `DialError`, or
    `UsageError` where there are no Unix sockets.
    """
    try:
        return _connect(unix_family(), path, _CHOSEN_NAME)
    except OSError as exc:
        raise _dial_error(path, exc) from exc
