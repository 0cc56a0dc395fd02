"""The connections that have not said yet what they are for: how many, for how long, and how many a second."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Protocol

from greenlet import greenlet

from gnar_lib.errors import ConnClosed
from gnar_lib.http.share import end_waits
from gnar_lib.net import Sockaddr, descriptors, network_of
from gnar_lib.proto.numbers import LOGIN_DEADLINE_S

# Past that, or half the reserve of descriptors, the network that has most of them loses its oldest one.
MAX_IN_PROGRESS = 1024
MAX_TRIES_PER_S = 200  # logins of gnar's own clients from one network, whether they succeed or not


class Closable(Protocol):
    """A connection, or a multiplexed session."""

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end."""

    def abort(self) -> None:
        """Close at once."""


class InProgress:
    """The connections that are logging in, in the order in which they came.

    One look at all of them each second is cheaper than a timer for each of thousands. The network that has
    most of them makes room, so that one host, or one IPv6 network, cannot keep others from logging in.
    """

    def __init__(self, limit: int = MAX_IN_PROGRESS, clock: Callable[[], float] = time.monotonic) -> None:
        # When each came, from which network, and who serves it.
        self._begun: dict[Closable, tuple[float, str, greenlet | None]] = {}
        self._of_network: defaultdict[str, dict[Closable, None]] = defaultdict(dict)  # the oldest first
        self._tries: Counter[str] = Counter()  # logins of each network since the last `expire`
        self._limit = limit
        self._clock = clock

    def __len__(self) -> int:
        return len(self._begun)

    def add(self, conn: Closable, server: greenlet | None = None) -> None:
        """Note a connection that has come; if there are too many, abort the oldest of one network.

        That is the network with most connections. `server` is the greenlet that serves the connection until
        `discard`: it may wait for a turn to shake hands, of which the end of the connection tells nothing.
        """
        network = network_of(conn.getpeername())
        self._begun[conn] = self._clock(), network, server
        self._of_network[network][conn] = None
        if len(self._begun) > min(self._limit, descriptors.reserve // 2):
            most = max(self._of_network.values(), key=len)
            self._close(next(iter(most)))

    def discard(self, conn: Closable) -> None:
        """Forget a connection that has said what it is for, or that is closed."""
        _, network, _ = self._begun.pop(conn, (0.0, None, None))
        if network is None:
            return
        del self._of_network[network][conn]
        if not self._of_network[network]:
            del self._of_network[network]

    def has_come_within(self, seconds: float) -> bool:
        """Tell whether there is a connection that has come within the last `seconds`."""
        return bool(self._begun) and self._clock() - next(reversed(self._begun.values()))[0] < seconds

    def may_try(self, conn: Closable) -> bool:
        """Count a login; False if there have been too many from this network in this second."""
        network = network_of(conn.getpeername())
        self._tries[network] += 1
        return self._tries[network] <= MAX_TRIES_PER_S

    def expire(self) -> None:
        """Close the connections that take too long, and begin another second; to be called once a second."""
        self._tries.clear()
        now = self._clock()
        for conn in [conn for conn, begun in self._begun.items() if now - begun[0] > LOGIN_DEADLINE_S]:
            self._close(conn)

    def _close(self, conn: Closable) -> None:
        """Close a connection, and forget it."""
        _, _, server = self._begun[conn]
        self.discard(conn)
        conn.abort()
        if server is not None:
            end_waits(server, ConnClosed("the connection has not said in time what it is for"))
