"""Counts of bytes and users: of one connection, of a proxy, of all proxies; knows nobody who reads them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib.config import Rate
from gnar_lib.net import Sockaddr
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket

NO_LIMIT = Rate()

_numbers = itertools.count(1)  # of meters and connections, each its own


@dataclass(frozen=True, slots=True)
class Totals:
    """What a meter and all meters below it have counted until now."""

    up: int
    down: int
    users: int  # of TCP and of UDP
    users_total: int
    dropped: int
    sessions: int = 0  # those of the users who are users of UDP
    sessions_total: int = 0


class LiveConnection:
    """One user's connection while it is carried: what it has moved, since when, and how to end it.

    A context: `with meter.connection(user, conn.abort) as live`. Copy loops count into `up` and `down`.
    """

    __slots__ = ("_end", "_meter", "began_s", "down", "ended_by", "number", "up", "user")

    def __init__(self, meter: Meter, user: Sockaddr, end: Callable[[], None]) -> None:
        self.number = next(_numbers)  # which no other connection of this process has
        self.user = user
        self.ended_by = ""  # who has called `end`
        self.began_s = time.monotonic()
        self.up = Flow(parent=meter.up)
        self.down = Flow(parent=meter.down)
        self._meter = meter
        self._end = end

    def __enter__(self) -> LiveConnection:
        self._meter.users_total += 1
        self._meter.connections.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.leave(self)

    def end(self, ended_by: str) -> None:
        """End the connection at once, whatever is under way; `ended_by` says whose wish that is."""
        self.ended_by = ended_by
        self._end()


class Meter:
    """Counts of one proxy, or of all the meters whose `parent` this one is.

    Adding to the `bytes` of a flow is all that the hot path does; sums are made when somebody reads them.
    """

    __slots__ = (
        "_dropped_taken",
        "_is_ended",
        "_parent",
        "_parts",
        "began_s",
        "connections",
        "down",
        "dropped",
        "limit",
        "number",
        "sessions",
        "sessions_total",
        "up",
        "users_total",
    )

    def __init__(self, parent: Meter | None = None, limit: Rate = NO_LIMIT) -> None:
        self.number = next(_numbers)  # which no other meter of this process has
        self.began_s = time.monotonic()
        self.limit = limit
        self.up = Flow(Bucket.of(limit.up))  # from users: bytes of datagrams, and of connections that ended
        self.down = Flow(Bucket.of(limit.down))  # to users: the same
        self.connections: set[LiveConnection] = set()  # users of TCP who are there
        self.sessions = 0  # users of UDP who are there
        self.sessions_total = 0  # users of UDP, since the beginning
        self.users_total = 0  # of both kinds, since the beginning
        self.dropped = 0  # datagrams that were not passed on
        self._dropped_taken = 0
        self._parent = parent
        self._parts: set[Meter] = set()  # the meters whose parent this one is
        self._is_ended = False
        if parent is not None:
            parent._parts.add(self)

    def connection(self, user: Sockaddr, end: Callable[[], None]) -> LiveConnection:
        """Return the context that counts the connection of `user`; `end` has to end that connection."""
        return LiveConnection(self, user, end)

    def leave(self, connection: LiveConnection) -> None:
        """Take the counts of a connection over, which has ended."""
        self.connections.discard(connection)
        self.up.bytes += connection.up.bytes
        self.down.bytes += connection.down.bytes
        if self._is_ended:
            self._hand_over_if_over()

    def begin_session(self) -> None:
        """Count a user of UDP that came."""
        self.sessions += 1
        self.sessions_total += 1
        self.users_total += 1

    def end_session(self) -> None:
        """Count a user of UDP that left."""
        self.sessions -= 1
        self._hand_over_if_over()

    def take_dropped(self) -> int:
        """Return how many datagrams were dropped since the last call."""
        fresh = self.dropped - self._dropped_taken
        self._dropped_taken = self.dropped
        return fresh

    def end(self) -> None:
        """The proxy is gone: hand the counts over to the parent, once the last user has left."""
        self._is_ended = True
        self._hand_over_if_over()

    @property
    def is_over(self) -> bool:
        """Whether the proxy is gone and has no user any more: nothing will be counted from now on."""
        return self._is_ended and not self.connections and not self.sessions

    def totals(self) -> Totals:
        """Return the counts of this meter and of all below it."""
        up, down, dropped = self.up.bytes, self.down.bytes, self.dropped
        users, users_total = len(self.connections) + self.sessions, self.users_total
        sessions, sessions_total = self.sessions, self.sessions_total
        for connection in self.connections:
            up += connection.up.bytes
            down += connection.down.bytes
        for part in self._parts:
            totals = part.totals()
            up, down, dropped = up + totals.up, down + totals.down, dropped + totals.dropped
            users, users_total = users + totals.users, users_total + totals.users_total
            sessions, sessions_total = sessions + totals.sessions, sessions_total + totals.sessions_total
        return Totals(up, down, users, users_total, dropped, sessions, sessions_total)

    def _hand_over_if_over(self) -> None:
        parent = self._parent
        if not self.is_over or parent is None or self not in parent._parts:
            return
        parent._parts.discard(self)
        mine = self.totals()
        parent.up.bytes += mine.up
        parent.down.bytes += mine.down
        parent.users_total += mine.users_total
        parent.sessions_total += mine.sessions_total
        parent.dropped += mine.dropped
