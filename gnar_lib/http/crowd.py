"""How many connections an HTTP service has, and who has to go for a new one; knows no HTTP."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from gnar_lib.http.limits import Limits
from gnar_lib.net import Conn


class Crowd:
    """The connections of one service. Those that wait for their peers can be closed at any time."""

    def __init__(self, limits: Limits) -> None:
        self.streams = 0  # connections on which an event stream runs
        self._limits = limits
        self._conns: set[Conn] = set()
        self._waiting: OrderedDict[Conn, None] = OrderedDict()  # who has waited longest is first

    def __len__(self) -> int:
        return len(self._conns)

    def enter(self, conn: Conn) -> bool:
        """Take a conn in, in place of the one that has waited longest if there are too many.

        Returns False if there is no place.
        """
        if len(self._conns) >= self._limits.connections and not self._close_one():
            return False
        self._conns.add(conn)
        return True

    def leave(self, conn: Conn) -> None:
        """Forget a conn, if it is known."""
        self._conns.discard(conn)
        self._waiting.pop(conn, None)

    @contextmanager
    def waiting(self, conn: Conn) -> Iterator[None]:
        """Say that during the block `conn` waits for its peer: it is closed if a new one needs its place."""
        if conn in self._conns:
            self._waiting[conn] = None
        try:
            yield
        finally:
            self._waiting.pop(conn, None)

    def close_waiting(self) -> None:
        """Close all conns that wait for their peers."""
        while self._close_one():
            pass

    def _close_one(self) -> bool:
        if not self._waiting:
            return False
        conn, _ = self._waiting.popitem(last=False)
        self._conns.discard(conn)
        conn.close()
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
