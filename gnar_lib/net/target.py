"""Where users are joined to: opens conns and datagram sockets to one place, without a look-up each time."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from gnar_lib.errors import DialError
from gnar_lib.net.address import Sockaddr, family_of, resolve, unix_family
from gnar_lib.net.conn import SocketConn
from gnar_lib.net.datagram import is_out_of_files
from gnar_lib.net.datagram_conn import DatagramConn, connect_udp, connect_unix_datagram
from gnar_lib.net.dialling import dial
from gnar_lib.net.greenlets import Crew

LOOK_UP_PAUSE_S = 1.0  # between two look-ups of a name whose addresses do not answer
SILENT_PAUSE_S = 5.0  # the same if they only say nothing: some services never answer, as syslog
MAX_AGE_S = 30.0  # of addresses; a name that is used is then looked up again, in the background

Opened = TypeVar("Opened")


class _Place:
    """The addresses of one place, in the order in which they are tried.

    `source` is a local IP address from which to open sockets, empty for any. Addresses of another family than
    that of `source`, or than `family`, are left out.
    """

    def __init__(self, host: str, port: int, family: int, source: str) -> None:
        self.host = host
        self.source = source
        self.known: list[tuple[int, Sockaddr]] = []  # family and address of each; empty before a look-up
        self._port = port
        self._family = family_of(source, family)
        self._looked_up_s = -math.inf  # when the last look-up began, as time.monotonic() says

    def look_up(self, kind: int) -> None:
        """Ask for the addresses; raises `DialError` if there are none. `kind` is a type of sockets."""
        self._looked_up_s = time.monotonic()
        before, self.known = self.known, resolve(self.host, self._port, kind, self._family)
        if before:
            self.prefer(before[0][1])

    @property
    def age_s(self) -> float:
        """How many seconds ago the last look-up began; infinite before the first one."""
        return time.monotonic() - self._looked_up_s

    @property
    def may_look_up(self) -> bool:
        """Whether the last look-up is long enough ago for another one."""
        return self.age_s >= LOOK_UP_PAUSE_S

    def has(self, address: Sockaddr) -> bool:
        """Tell whether the place still has this address."""
        return any(address == known for _, known in self.known)

    def prefer(self, address: Sockaddr) -> None:
        """Try this address first from now on."""
        if self.known and self.known[0][1] != address:
            self.known.sort(key=lambda each: each[1] != address)


class Target:
    """A host and TCP port, which is dialled for one user after the other.

    The address that answered last is tried first. When no address answers, the name is looked up again, at
    most once a second.
    """

    def __init__(self, host: str, port: int, family: int = socket.AF_UNSPEC, source: str = "") -> None:
        self._place = _Place(host, port, family, source)

    def look_up(self) -> None:
        """Look the name up, which `dial` does otherwise; raises `DialError` if that fails."""
        self._place.look_up(socket.SOCK_STREAM)

    def dial(self) -> SocketConn:
        """Return a conn to the first address that answers, which the caller closes; raises `DialError`."""
        if not self._place.known:
            self.look_up()
        try:
            return self._dial_known()
        except DialError:
            if not self._look_up_again():
                raise
        return self._dial_known()

    def _dial_known(self) -> SocketConn:
        place = self._place
        conn = _first_that_opens(
            [*place.known], lambda family, address: dial(family, address, source=place.source), place.host
        )
        place.prefer(conn.getpeername())
        return conn

    def _look_up_again(self) -> bool:
        """Look the name up if the last time is long enough ago; tell whether its addresses have changed."""
        if not self._place.may_look_up:
            return False
        before = {address for _, address in self._place.known}
        try:
            self.look_up()
        except DialError:
            return False
        return {address for _, address in self._place.known} != before


class UnixTarget:
    """A Unix path, which is dialled for one user after the other."""

    def __init__(self, path: str) -> None:
        self._path = path

    def dial(self) -> SocketConn:
        """Return a conn to the path; the caller closes it. Raises `DialError`."""
        return dial(unix_family(), self._path)


class DatagramTarget:
    """A host and UDP port. Opens sockets to it without a look-up and without waiting.

    The addresses are looked up by `look_up`, and again in the background: when they are used and half a
    minute old, and sooner when none of them answers. `any_source`: take answers from every address.
    """

    def __init__(
        self,
        host: str,
        port: int,
        family: int = socket.AF_UNSPEC,
        source: str = "",
        *,
        any_source: bool = False,
    ) -> None:
        self._place = _Place(host, port, family, source)
        self._any_source = any_source
        self._refusals = 0  # since the last look-up
        self._crew = Crew("look-up")  # one greenlet while a look-up runs in the background

    def look_up(self) -> None:
        """Look the name up; raises `DialError` if it is unknown, or has no address of the wanted family."""
        self._place.look_up(socket.SOCK_DGRAM)
        self._refusals = 0

    @property
    def is_known(self) -> bool:
        """Whether there is an address to open sockets to."""
        return bool(self._place.known)

    def open(self) -> DatagramConn:
        """Return a new socket that is connected to the target; the caller closes it. Raises `DialError`."""
        place = self._place
        if place.age_s >= MAX_AGE_S:
            self.look_up_soon()
        try:
            return _first_that_opens(
                place.known,
                lambda family, address: connect_udp(
                    family, address, place.source, any_source=self._any_source
                ),
                place.host,
            )
        except DialError as exc:
            if not is_out_of_files(exc):
                self.look_up_soon()
            raise

    def refused(self, conn: DatagramConn) -> bool:
        """Nobody receives where `conn` is connected to; tell whether a new socket is better."""
        known = self._place.known
        if len(known) > 1 and known[0][1] == conn.address:
            self._place.known = known = [*known[1:], known[0]]
        self._refusals += 1
        if self._refusals >= len(known):
            self.look_up_soon()
        return bool(known) and known[0][1] != conn.address

    def silent(self, conn: DatagramConn) -> bool:
        """Nothing has come from where `conn` writes to; tell whether the target has moved from there."""
        if self._place.age_s >= SILENT_PAUSE_S:
            self.look_up_soon()
        return not self._place.has(conn.address)

    def look_up_soon(self) -> None:
        """Look the name up in the background, if the last time is long enough ago."""
        if self._place.may_look_up and not len(self._crew):
            self._crew.spawn(self.look_up)


class UnixDatagramTarget:
    """A Unix path for datagrams."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self) -> DatagramConn:
        """Return a new socket that is connected to the path; the caller closes it. Raises `DialError`."""
        return connect_unix_datagram(self._path)

    @staticmethod
    def refused(_conn: DatagramConn) -> bool:
        """Return True: whoever receives at the path again has made another socket there."""
        return True

    @staticmethod
    def silent(_conn: DatagramConn) -> bool:
        """Return False: what is at the path now refuses datagrams when it has gone."""
        return False


def _first_that_opens(
    addresses: Iterable[tuple[int, Sockaddr]], open_one: Callable[[int, Sockaddr], Opened], name: object
) -> Opened:
    """Return what `open_one` makes of the first address for which it does not raise `DialError`.

    Raises the last of its errors, or one that says that `name` has no address.
    """
    error: DialError | None = None
    try:
        for family, address in addresses:
            try:
                return open_one(family, address)
            except DialError as exc:
                error = exc
        raise error or DialError(f"{name} has no address")
    finally:
        # The error refers to this call. If the call also referred to the error, only the garbage collector
        # would free the error's sockets.
        error = None
