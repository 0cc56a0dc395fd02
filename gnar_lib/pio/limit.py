"""The speed limit: a token bucket that the connections of one proxy and direction share; knows no conn.

A burst of one second and a rate that is right within 3 % over ten seconds contradict each other: a bucket
that lets through what it saved while idle, and then the full rate, is at 110 % after ten seconds. So here the
burst is a loan. What an idle bucket saved, up to one second's worth, is there at once; then half of what
comes in pays it back. A transfer that begins with a burst is level with the rate after two seconds, and stays
level:

    after (seconds)            0     1     2     3    10
    through (seconds' worth)   1   1.5     2     3    10

So any ten seconds are within 3 %, unless they begin in the two seconds behind a burst and leave the burst
itself out: those are short of it by up to one second's worth.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.net import wait_for

BURST_S = 1.0  # what an idle bucket saves; as in the Go original
SLACK_S = 0.1  # of it, what needs no paying back: copying is never on time to the millisecond
GRANT_S = 0.05  # the most at once, so that connections which share a slow bucket take turns often
SHARED_GRANT_BYTES = 64 * 1024  # the most at once, and in one turn, while others wait
MIN_WAIT_S = 0.002  # the loop's clock ticks in milliseconds; a shorter wait would only spin


class Tokens:
    """The arithmetic of a bucket: time goes in, bytes come out; it waits for nothing.

    `earned` is what came in and was not used; `credit` what may be borrowed on top; `debt` what was.
    """

    __slots__ = ("_now", "credit", "debt", "earned", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.earned = 0.0
        self.credit = rate * BURST_S
        self.debt = 0.0
        self._now = now

    @property
    def available(self) -> float:
        """Bytes that may be moved now."""
        return self.earned + self.credit

    def advance(self, now: float, *, wanted: bool) -> None:
        """Let time pass until `now`. What comes in while somebody waits is late, not saved: none is lost."""
        income = max(0.0, now - self._now) * self.rate
        self._now = now
        repaid = min(self.debt, income / 2)
        self.debt -= repaid
        income -= repaid
        self.earned += income
        if wanted:
            self.earned = min(self.earned, self.rate * BURST_S)
            return
        # Nobody wants it: all above the slack is saved, and what was late becomes savings as time goes by.
        saved = min(max(0.0, self.earned - self.rate * SLACK_S), 2 * income)
        self.earned -= saved
        repaid = min(self.debt, saved)
        self.debt -= repaid
        self.credit = min(self.credit + saved - repaid, self.rate * BURST_S - self.debt)

    def spend(self, count: float) -> None:
        """Use up `count` bytes: what was earned first, then on credit, then from what comes in later."""
        borrowed = min(max(0.0, count - max(0.0, self.earned)), self.credit)
        self.credit -= borrowed
        self.debt += borrowed
        self.earned -= count - borrowed

    def seconds_until(self, count: float) -> float:
        """Return how long it takes until `count` bytes may be moved."""
        missing = count - self.available
        return (missing + min(missing, self.debt)) / self.rate if missing > 0 else 0.0


class _Waiter:
    """A greenlet in the queue of a bucket; wakes by being switched to with its own waiter."""

    __slots__ = ("granted", "greenlet", "want")

    def __init__(self, want: int) -> None:
        self.want = want
        self.granted = 0
        self.greenlet: greenlet = getcurrent()


class Bucket:
    """A limit of `rate` bytes per second, over all who take from it together; first come, first served.

    `clock` tells seconds and never goes back.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        if rate < 1:
            raise ValueError("a rate is at least 1 byte per second")
        self.rate = rate
        self._clock = clock
        self._tokens = Tokens(rate, clock())
        self._grant = max(1, int(rate * GRANT_S))
        self._turn = min(self._grant, SHARED_GRANT_BYTES)
        self._left = self._turn  # of the turn of the first in the queue
        self._waiters: deque[_Waiter] = deque()
        self._timer: Any = None

    @classmethod
    def of(cls, rate: int | None) -> Bucket | None:
        """Return a bucket of that rate, None when there is no limit."""
        return None if rate is None else cls(rate)

    def __repr__(self) -> str:
        return f"<Bucket {self.rate} bytes/s, {len(self._waiters)} waiting>"

    def take_now(self, count: int) -> bool:
        """Tell whether a datagram of `count` bytes may be moved now, all of it, and use up the tokens if so.

        One that is larger than the whole bucket passes when the bucket is full, and is paid off afterwards.
        """
        self._advance()
        if self._waiters or self._tokens.available < min(count, self.rate * BURST_S):
            return False
        self._tokens.spend(count)
        return True

    # ---- waiting -------------------------------------------------------------------------------------------

    def take(self, want: int) -> int:
        """Wait until some of `want` bytes may be moved, and return how many (1 to `want`).

        Ask when there is something to move: who holds tokens while it waits for bytes keeps them from others.
        """
        if not self._waiters:
            self._advance()
            count = min(want, self._grant)
            if self._tokens.available >= count:
                self._tokens.spend(count)
                return count
        waiter = _Waiter(want)
        self._waiters.append(waiter)
        if self._timer is None:
            self._set_timer()
        try:
            wait_for(waiter)
        except BaseException:
            self._waiters.remove(waiter)
            raise
        return waiter.granted

    def _serve(self) -> None:
        """Grant to each who waits now, in turn, as far as the tokens reach; runs in the hub."""
        self._timer = None
        self._advance()
        for _ in range(len(self._waiters)):  # who comes back meanwhile has its turn when others had theirs
            if not self._serve_turn():
                break
        if self._waiters:
            self._set_timer()

    def _serve_turn(self) -> bool:
        """Grant to the first in the queue; False when the tokens do not reach.

        Who asks for little and comes back at once goes on: a turn is as many bytes for one as for another.
        """
        while (count := self._next_grant()) and self._tokens.available >= count:
            waiter = self._waiters.popleft()
            self._tokens.spend(count)
            self._left -= count
            waiter.granted = count
            waiter.greenlet.switch(waiter)
            is_back = bool(self._waiters) and self._waiters[-1].greenlet is waiter.greenlet
            if self._left <= 0 or not is_back:
                self._left = self._turn
                return True
            self._waiters.rotate()
        return False

    def _next_grant(self) -> int:
        """Return how many bytes the first in the queue gets."""
        if not self._waiters:
            return 0
        return min(self._waiters[0].want, self._grant if len(self._waiters) == 1 else self._left)

    def _set_timer(self) -> None:
        """Serve again when there is enough for the first in the queue."""
        if self._timer is not None:
            self._timer.stop()
        wait_s = self._tokens.seconds_until(self._next_grant())
        self._timer = get_hub().loop.timer(max(wait_s, MIN_WAIT_S) if wait_s else 0.0)
        self._timer.start(self._serve)

    def _advance(self) -> None:
        self._tokens.advance(self._clock(), wanted=bool(self._waiters))
