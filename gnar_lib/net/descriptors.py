"""The budget of descriptors: how many the process has open, and whether there is room for further users.

Users pause first. A part of the limit is a reserve, which users do not get: so there is always a descriptor
for a control connection, a data connection that a user waits for, and a look-up.
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent.hub import get_hub

if sys.platform != "win32":
    import resource

MIN_RESERVE, MAX_RESERVE = 32, 1024
USER_COSTS = 2  # descriptors: the user's own, and that of the data connection or the service
MAX_IN_LINE = 1024  # who wait for room; each costs memory, and a hostile server can send any number of users
ASK_EVERY_S = 0.05  # while somebody waits for room
KNOWN_FOR_S = 0.05  # after a look at the limit of the process, while there is room: thousands ask in a second
COUNT_EVERY_S = 1.0  # between two counts of all that the process has open, while room is short
OTHERS = 16  # descriptors that are not gnar's sockets, where nobody can count them
WINDOWS_LIMIT = 1024  # sockets that the event loop can watch there


def limit_of_process() -> int:
    """Return how many descriptors the process may have at the moment."""
    limit = WINDOWS_LIMIT
    if sys.platform != "win32":
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    return limit


class Descriptors:
    """The descriptors of this process. Whoever opens or closes a socket or a pipe says so here."""

    def __init__(self, limit: Callable[[], int] = limit_of_process) -> None:
        self.taken = 0  # sockets and pipes that are open
        self.promised = 0  # users who are there, and whose second descriptor is on the way
        self._limit = limit
        self._others = -1  # what else is open; -1 until it is counted
        self._counted_s = 0.0  # when all was counted
        self._room = 0  # how many users may have, with what is promised, at the last look at the limit
        self._known_until_s = 0.0  # then the limit may be another one
        # Who waits for room, in the order in which they came: for how much, and what is called then.
        self._line: OrderedDict[object, tuple[int, Callable[[], None]]] = OrderedDict()
        self._timer: Any = None  # asks for room, while somebody waits

    @property
    def limit(self) -> int:
        """How many descriptors the process may have."""
        return self._limit()

    @property
    def reserve(self) -> int:
        """How many of them users do not get."""
        limit = self._limit()
        return min(max(limit // 4, MIN_RESERVE), MAX_RESERVE, limit // 2)

    @property
    def for_clients(self) -> int:
        """How many control connections there may be, so that clients leave users their part."""
        return self.limit // 4

    @property
    def for_ports(self) -> int:
        """How many proxied ports there may be, so that there are users who can come to them."""
        return (self.limit - self.reserve) // 2

    @property
    def is_short(self) -> bool:
        """Whether users wait for room."""
        return bool(self._line)

    @property
    def is_crowded(self) -> bool:
        """Whether so many wait for room that whoever comes now should rather give up."""
        return len(self._line) >= MAX_IN_LINE

    @property
    def is_tight(self) -> bool:
        """Whether users have more than half of what they may have: nothing is opened in advance then."""
        return not self.has_room((self.limit - self.reserve) // 2)

    @contextmanager
    def promise(self) -> Iterator[None]:
        """Keep a descriptor free for what the block waits for; it is open when the block ends."""
        self.promised += 1
        try:
            yield
        finally:
            self.promised -= 1

    @property
    def why_short(self) -> str:
        """What to do when users wait, in words."""
        return f"{self.limit} descriptors are too few for more of them; raise the limit (ulimit -n)"

    def has_room(self, count: int = USER_COSTS) -> bool:
        """Tell whether a user may have so many descriptors more."""
        wanted, now_s = self.taken + self.promised + count, time.monotonic()
        if wanted <= self._room and now_s < self._known_until_s:
            return True
        if self._others < 0:
            self._count()
        room = self.limit - self.reserve
        if wanted + self._others > room and now_s - self._counted_s > COUNT_EVERY_S:
            self._count()
        self._room, self._known_until_s = room - self._others, now_s + KNOWN_FOR_S
        return wanted <= self._room

    def _count(self) -> None:
        """Count what is open besides the sockets and pipes."""
        self._counted_s = time.monotonic()
        try:
            self._others = max(0, len(os.listdir("/dev/fd")) - 1 - self.taken)
        except OSError:
            self._others = OTHERS

    # ---- waiting for room ----------------------------------------------------------------------------------

    def wait(self, who: object, go_on: Callable[[], None], count: int = USER_COSTS) -> None:
        """Call `go_on` once in the hub when a user may have `count` more; who has waited longer is first."""
        self._line[who] = count, go_on
        if self._timer is None:
            self._timer = get_hub().loop.timer(ASK_EVERY_S, ASK_EVERY_S)
            self._timer.start(self._ask)

    def leave(self, who: object) -> None:
        """Wait no longer; somebody who does not wait is ignored."""
        self._line.pop(who, None)

    def _ask(self) -> None:
        for _ in range(len(self._line)):
            who, (count, go_on) = next(iter(self._line.items()))
            if not self.has_room(count):
                break
            self._line.pop(who)
            go_on()
            if not self._line:
                break
        if not self._line:
            self._timer.stop()
            self._timer = None


descriptors = Descriptors()  # of this process
