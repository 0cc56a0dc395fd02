"""The events of one hook that wait, and how soon the next command may run; knows no way to deliver them."""

from __future__ import annotations

import time
from collections import deque

from gnar_lib import events
from gnar_lib.events import Event

MAX_QUEUED = 1000  # events of one hook that wait; what comes then is dropped
MAX_FREQUENT = MAX_QUEUED // 4  # of them, of the types that strangers can make many of

FREQUENT: frozenset[type[Event]] = frozenset(
    {
        events.LoginRefused,
        events.LoginGivenUp,
        events.UserCame,
        events.UserConnected,
        events.UserAnswered,
        events.UserLeft,
        events.UserRefused,
        events.UdpUserCame,
        events.DatagramsDropped,
        events.ServiceUnreachable,
        events.ServiceReached,
        events.DescriptorsShort,
    }
)
"""The types of events that need no client and no administrator to happen: users and strangers are enough."""

Entry = tuple[Event, float]  # an event, and when it happened


class Queue:
    """Events that wait. Those of `FREQUENT` types wait behind all others, and leave room for them."""

    def __init__(self) -> None:
        self._rare: deque[Entry] = deque()
        self._frequent: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._rare) + len(self._frequent)

    def put(self, event: Event, at: float) -> int:
        """Add an event that happened `at` a time; if there is no place for it, return how many wait there."""
        is_frequent = type(event) in FREQUENT
        line, most = (
            (self._frequent, MAX_FREQUENT) if is_frequent else (self._rare, MAX_QUEUED - MAX_FREQUENT)
        )
        if len(line) >= most:
            return most
        line.append((event, at))
        return 0

    def take(self) -> Entry:
        """Remove the event that is to be delivered next, and return it; there has to be one."""
        return (self._rare or self._frequent).popleft()


class Pace:
    """Lets something happen `burst` times at once, and then once in `pause_s` seconds on average."""

    def __init__(self, burst: int, pause_s: float) -> None:
        self._burst, self._pause_s = burst, pause_s
        self._used = 0.0  # of the burst
        self._since_s = time.monotonic()  # when that was so

    def wait_s(self) -> float:
        """Return how long it takes until the next time may be; 0 if that is now."""
        now_s = time.monotonic()
        self._used = max(0.0, self._used - (now_s - self._since_s) / self._pause_s)
        self._since_s = now_s
        return max(0.0, (self._used + 1 - self._burst) * self._pause_s)

    def use(self) -> None:
        """Take note that it happens now."""
        self._used += 1
