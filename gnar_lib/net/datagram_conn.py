"""Datagram sockets that write to one address, the service's; callbacks of the hub read them.

Nothing here waits: what does not fit into a socket's buffer is dropped.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable

from gnar_lib import logger
from gnar_lib.errors import DialError
from gnar_lib.net.address import Sockaddr, format_address, unix_family
from gnar_lib.net.conn import socket_class
from gnar_lib.net.datagram import BATCH, MAX_DATAGRAM_BYTES, Datagram, Reader

# The errors that mean "port unreachable": Windows says that the connection was reset.
_REFUSED = (ConnectionRefusedError, ConnectionResetError)
# macOS sends no datagram that is larger than this buffer, which has 9 KiB unless gnar asks for more.
_SEND_BUFFER_BYTES = 128 * 1024 if sys.platform == "darwin" else None
# With the empty name Linux chooses a name, unix(7). Elsewhere a socket has no name, and gets no answers.
_CHOSEN_NAME = "" if sys.platform == "linux" else None

_log = logger.get("net")


class DatagramConn:
    """A socket that is connected to one address; the owner closes it."""

    __slots__ = ("_budget", "_handle", "_peer", "_reader", "address", "is_refused", "sock", "used_s")

    def __init__(self, sock: socket.socket, address: Sockaddr) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.address = address
        # Nobody receives there ("port unreachable"). That ends nothing, since the next datagram may arrive.
        # The owner sets this back to False.
        self.is_refused = False
        self.used_s = time.monotonic()  # when a datagram came, or was sent: the owner notes the latter
        self._budget = 1  # datagrams to read in the next turn
        self._peer = b""  # the packed address under which `_handle` gets what was received
        self._handle: Callable[[list[Datagram]], None] | None = None
        self._reader = Reader(sock)

    def serve(self, handle: Callable[[list[Datagram]], None], peer: bytes) -> None:
        """Call `handle` in the hub with the datagrams of each turn, 64 at most, as coming from `peer`."""
        self._handle, self._peer = handle, peer
        self._reader.start(self._on_readable)

    def pause(self, seconds: float) -> None:
        """Read nothing for some seconds; the kernel drops what it has no room for."""
        self._reader.pause(seconds)

    def send(self, payload: bytes) -> bool:
        """Send one datagram; return whether the kernel took it."""
        try:
            self.sock.send(payload)
        except _REFUSED:  # which is about an earlier datagram: this one was not sent
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
    """Return a socket that is connected to a UDP address; the caller closes it. Never waits.

    `source` is the local IP address from which to send, empty for any. Raises `DialError`.
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
    """Return a datagram socket that is connected to a Unix path; the caller closes it.

    On Linux the socket has a name of its own, to which the other end can answer. Raises `DialError`, or
    `UsageError` where there are no Unix sockets.
    """
    return _connect(unix_family(), path, _CHOSEN_NAME)
