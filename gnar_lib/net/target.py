"""Where users are joined to: opens conns and datagram sockets to one place, without a look-up each time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from gnar_lib.errors import DialError
from gnar_lib.net.address import Sockaddr, unix_family
from gnar_lib.net.conn import SocketConn
from gnar_lib.net.datagram import is_out_of_files
from gnar_lib.net.datagram_conn import DatagramConn, connect_udp, connect_unix_datagram
from gnar_lib.net.dialling import AS_USUAL, DialSettings, Race, begin, dial
from gnar_lib.net.place import Place

TURN_PAUSE_S = 1.0  # between two changes to another address that does not refuse datagrams
SILENCE_S = 1.0  # of all addresses of a name, after which it is looked up again

Opened = TypeVar("Opened")


class Target:
    """A host and TCP port, which is dialled for one user after the other; without a host, this machine's.

    The address that answered last is tried first, the next one 250 ms later or when it has failed. The name
    is looked up again every 30 s of use, and when no address answers.
    """

    def __init__(
        self, host: str, port: int, family: int = socket.AF_UNSPEC, how: DialSettings = AS_USUAL
    ) -> None:
        self._place = Place(host, port, socket.SOCK_STREAM, family, how.source)
        self._how = how

    def look_up(self) -> None:
        """Look the name up, which `dial` does otherwise; raises `DialError` if that fails."""
        self._place.look_up()

    def dial(self) -> SocketConn:
        """Return a conn to the first address that answers, which the caller closes; raises `DialError`."""
        place = self._place
        addresses = place.addresses()
        family, address = addresses[0]
        conn, under_way, failure = begin(family, address, self._how)
        if conn is not None:  # at once, as on this machine
            place.prefer(address)
            return conn
        with Race(self._how) as race:
            race.take_over(address, under_way, failure)
            conn = race.run(addresses[1:], SILENCE_S)
            if conn is None:
                place.look_up_again()
                conn = race.run([each for each in place.known if each not in addresses], self._how.timeout_s)
            if conn is None:
                raise race.error()
        place.prefer(conn.getpeername())
        return conn


class UnixTarget:
    """A Unix path, which is dialled for one user after the other."""

    def __init__(self, path: str, how: DialSettings = AS_USUAL) -> None:
        self._path = path
        self._how = how

    def dial(self) -> SocketConn:
        """Return a conn to the path; the caller closes it. Raises `DialError`."""
        return dial(unix_family(), self._path, self._how.timeout_s, options=self._how.options)


class DatagramTarget:
    """A host and UDP port. Opens sockets to it without a look-up and without waiting.

    The addresses are looked up by `look_up`, and again in the background: every 30 s while users come, and
    when an address refuses or is silent. `any_source`: take answers from every address.
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
        self._place = Place(host, port, socket.SOCK_DGRAM, family, source)
        self._any_source = any_source
        self._refusals = 0  # since the last look-up
        self._turned_s = 0.0  # when another address has become the first
        self._tried: Sockaddr | None = None  # that address, until it refuses

    def look_up(self) -> None:
        """Look the name up; raises `DialError` if it is unknown, or has no address of the wanted family."""
        self._place.look_up()
        self._refusals = 0

    @property
    def is_known(self) -> bool:
        """Whether there is an address to open sockets to."""
        return bool(self._place.known)

    def open(self) -> DatagramConn:
        """Return a new socket that writes to the target; the caller closes it. Raises `DialError`."""
        place = self._place
        place.refresh()
        try:
            return _first_that_opens(
                place.known,
                lambda family, address: connect_udp(
                    family, address, place.source, any_source=self._any_source
                ),
                place.host or "localhost",
            )
        except DialError as exc:
            if not is_out_of_files(exc):
                self.look_up_soon()
            raise

    def refused(self, conn: DatagramConn) -> bool:
        """Nobody receives where `conn` writes to; tell whether a new socket is better."""
        self._turn(conn.address)
        self._refusals += 1
        if self._refusals >= len(self._place.known):
            self.look_up_soon()
        known = self._place.known
        return bool(known) and known[0][1] != conn.address

    def _turn(self, address: Sockaddr) -> None:
        """Put this address last, but not too often: another socket costs more than a datagram.

        If the next address refuses as well, back at once: a service that is down most often comes back where
        it was.
        """
        known, now_s = self._place.known, time.monotonic()
        if not known or known[0][1] != address:
            return
        is_way_back = address == self._tried
        if is_way_back or now_s - self._turned_s >= TURN_PAUSE_S:
            self._turned_s = now_s
            self._place.put_last(address)
            self._tried = None if is_way_back else self._place.known[0][1]

    def silent(self, conn: DatagramConn) -> bool:
        """Nothing has come from where `conn` writes to; tell whether the target has moved from there."""
        self._place.note_silence()
        return not self._place.has(conn.address)

    def look_up_soon(self) -> None:
        """Look the name up in the background, if the last time is long enough ago."""
        self._refusals = 0
        self._place.look_up_soon()


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
