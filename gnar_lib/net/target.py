"""Where users are joined to: dialled again and again, without a look-up each time."""

from __future__ import annotations

import socket
import time

from gnar_lib.errors import DialError
from gnar_lib.net.address import Sockaddr, resolve
from gnar_lib.net.conn import SocketConn
from gnar_lib.net.datagram import DatagramConn, connect_udp, connect_unix_datagram, is_out_of_files
from gnar_lib.net.endpoint import dial, first_that_opens
from gnar_lib.net.greenlets import Crew

LOOK_UP_PAUSE_S = 1.0


class Target:
    """A host and TCP port.

    Keeps the address that answered last; looks the name up again only when that one fails.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._known: tuple[int, Sockaddr] | None = None

    def dial(self) -> SocketConn:
        """Return a conn to the first address that answers; raises the last `DialError`."""
        if self._known is not None:
            try:
                return dial(*self._known)
            except DialError:
                self._known = None
        return first_that_opens(resolve(self.host, self.port), self._dial_and_remember, self.host)

    def _dial_and_remember(self, family: int, address: Sockaddr) -> SocketConn:
        conn = dial(family, address)
        self._known = (family, address)
        return conn


class DatagramTarget:
    """Opens sockets to a UDP host and port, without a look-up and without waiting.

    A name's addresses are looked up by `look_up`, and again in the background, a second apart at least, when
    none of them answers.
    """

    def __init__(self, host: str, port: int, family: int = socket.AF_UNSPEC, source: str = "") -> None:
        self._host = host
        self._port = port
        self._family = family
        self._source = source
        self._known: list[tuple[int, Sockaddr]] = []
        self._refusals = 0
        self._next_look_up_s = 0.0
        self._crew = Crew("look-up")

    def look_up(self) -> None:
        """Look the name up; raises `DialError` when it is unknown, or has no address of the wanted kind."""
        self._next_look_up_s = time.monotonic() + LOOK_UP_PAUSE_S
        found = resolve(self._host, self._port, socket.SOCK_DGRAM)
        fitting = [each for each in found if self._family in (socket.AF_UNSPEC, each[0])]
        if not fitting:
            kind = "IPv4" if self._family == socket.AF_INET else "IPv6"
            raise DialError(f"{self._host} has no {kind} address")
        self._known, self._refusals = fitting, 0

    @property
    def is_known(self) -> bool:
        """Whether there is an address to open sockets to."""
        return bool(self._known)

    def open(self) -> DatagramConn:
        """Return a new socket connected to the target; raises `DialError`."""
        try:
            return first_that_opens(
                self._known, lambda family, address: connect_udp(family, address, self._source), self._host
            )
        except DialError as exc:
            if not is_out_of_files(exc):
                self.look_up_soon()
            raise

    def refused(self, conn: DatagramConn) -> bool:
        """Nobody receives where a socket is connected to: tell whether a new one is better."""
        if len(self._known) > 1 and self._known[0][1] == conn.address:
            self._known = [*self._known[1:], self._known[0]]
        self._refusals += 1
        if self._refusals >= len(self._known):
            self.look_up_soon()
        return bool(self._known) and self._known[0][1] != conn.address

    def look_up_soon(self) -> None:
        """Look the name up in the background, if that was not done just now."""
        if time.monotonic() >= self._next_look_up_s and not len(self._crew):
            self._crew.spawn(self.look_up)


class UnixDatagramTarget:
    """Opens sockets to a Unix path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self) -> DatagramConn:
        """Return a new socket connected to the target; raises `DialError`."""
        return connect_unix_datagram(self._path)

    @staticmethod
    def refused(_conn: DatagramConn) -> bool:
        """Return True: whoever comes back to the path has another socket there."""
        return True
