"""How many connections an HTTP service has, and who has to go for a new one; knows no HTTP."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnClosed
from gnar_lib.http.limits import Limits
from gnar_lib.http.share import end_waits
from gnar_lib.net import Conn, network_of


class _Network:
    """The connections from one network."""

    __slots__ = ("conns", "waiting")

    def __init__(self) -> None:
        self.conns: set[Conn] = set()
        self.waiting: OrderedDict[Conn, greenlet] = OrderedDict()  # who has waited longest is first


class Crowd:
    """The connections of one service. Those that wait for their peers can be closed at any time.

    No network has more than its part of the places. When all are taken, room is made by the network that has
    most of those who wait, so that whoever comes from elsewhere gets a place, and keeps it.
    """

    def __init__(self, limits: Limits) -> None:
        self.streams = 0  # connections on which an event stream runs
        self._limits = limits
        self._network_of: dict[Conn, str] = {}
        self._networks: dict[str, _Network] = {}

    def __len__(self) -> int:
        return len(self._network_of)

    def enter(self, conn: Conn) -> bool:
        """Take a conn in, if need be in place of one that has waited longest.

        Returns False if there is no place.
        """
        key = network_of(conn.getpeername())
        network = self._networks.get(key)
        is_full = network is not None and len(network.conns) >= self._limits.connections_of_network
        if is_full and not self._close_one(network):
            return False
        if len(self) >= self._limits.connections and not self._close_one(self._most_waiting()):
            return False
        self._network_of[conn] = key
        self._networks.setdefault(key, _Network()).conns.add(conn)
        return True

    def leave(self, conn: Conn) -> None:
        """Forget a conn, if it is known."""
        key = self._network_of.pop(conn, None)
        if key is None:
            return
        network = self._networks[key]
        network.conns.discard(conn)
        network.waiting.pop(conn, None)
        if not network.conns:
            del self._networks[key]

    @contextmanager
    def waiting(self, conn: Conn) -> Iterator[None]:
        """Say that during the block `conn` waits for its peer: it is closed if a new one needs its place."""
        self.begin_wait(conn)
        try:
            yield
        finally:
            self.end_wait(conn)

    def begin_wait(self, conn: Conn) -> None:
        """Say that from now on, until `end_wait`, `conn` waits for its peer."""
        if (key := self._network_of.get(conn)) is not None:
            self._networks[key].waiting[conn] = getcurrent()

    def end_wait(self, conn: Conn) -> None:
        """Say that `conn` waits no longer; one that does not is ignored."""
        if (key := self._network_of.get(conn)) is not None:
            self._networks[key].waiting.pop(conn, None)

    def close_waiting(self) -> None:
        """Close all conns that wait for their peers."""
        while self._close_one(self._most_waiting()):
            pass

    def _most_waiting(self) -> _Network | None:
        return max(self._networks.values(), key=lambda network: len(network.waiting), default=None)

    def _close_one(self, network: _Network | None) -> bool:
        """Close who has waited longest of a network; returns False if nobody waits."""
        if network is None or not network.waiting:
            return False
        conn, waiting = next(iter(network.waiting.items()))
        self.leave(conn)
        conn.close()
        end_waits(waiting, ConnClosed(f"{conn}: closed for another one"))
        return True

    @contextmanager
    def stream(self) -> Iterator[bool]:
        """Count an event stream for the time of the block; yields False if there are too many."""
        if self.streams >= self._limits.streams:
            yield False
            return
        self.streams += 1
        try:
            yield True
        finally:
            self.streams -= 1
