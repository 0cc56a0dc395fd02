"""The speed limit: a token bucket that all connections of a proxy share in one direction; knows no conn.

An ordinary token bucket cannot allow a burst of one second and keep the rate within 3 % over ten seconds: it
grants what it saved while idle and then the full rate, which is 110 % after ten seconds. So the burst is a
loan here. What an idle bucket has saved, up to one second's worth, is granted at once; then half of what
comes in pays the loan back. A transfer that begins with a burst has been granted exactly the rate after two
seconds, and from then on:

    after (seconds)            0     1     2     3    10
    through (seconds' worth)   1   1.5     2     3    10

So the rate over any ten seconds is within 3 % of the limit, except over ten seconds that begin just behind a
burst: the bytes of the burst, one second's worth at most, are missing there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.net import wait_for

BURST_S = 1.0  # what an idle bucket saves; as in the Go original
SLACK_S = 0.1  # of the burst need not be paid back: copying is never on time to the millisecond
GRANT_S = 0.05  # of the rate is granted at once at most, so that connections take turns often
SHARED_GRANT_BYTES = 64 * 1024  # are granted in one turn at most while others wait
MIN_WAIT_S = 0.002  # the loop's clock ticks in milliseconds; a shorter wait would only spin


class Tokens:
    """The arithmetic of a bucket: how many bytes may be moved, as time goes by. Waits for nothing.

    `earned` bytes have come in and were not used. `credit` bytes may be borrowed on top of them. `debt` bytes
    have been borrowed and not paid back.
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
        """Let time pass until `now`. While somebody waits (`wanted`), what comes in is kept as earned."""
        income = max(0.0, now - self._now) * self.rate
        self._now = now
        repaid = min(self.debt, income / 2)
        self.debt -= repaid
        income -= repaid
        self.earned += income
        if wanted:
            self.earned = min(self.earned, self.rate * BURST_S)
            return
        # Nobody waits: what was earned beyond the slack is saved little by little, as credit.
        saved = min(max(0.0, self.earned - self.rate * SLACK_S), 2 * income)
        self.earned -= saved
        repaid = min(self.debt, saved)
        self.debt -= repaid
        self.credit = min(self.credit + saved - repaid, self.rate * BURST_S - self.debt)

    def spend(self, count: float) -> None:
        """Use up `count` bytes: first what was earned, then credit, then what will come in later."""
        borrowed = min(max(0.0, count - max(0.0, self.earned)), self.credit)
        self.credit -= borrowed
        self.debt += borrowed
        self.earned -= count - borrowed

    def seconds_until(self, count: float) -> float:
        """Return how long it takes until `count` bytes may be moved."""
        missing = count - self.available
        return (missing + min(missing, self.debt)) / self.rate if missing > 0 else 0.0


class _Waiter:
    """A greenlet in the queue of a bucket; the bucket switches to it with this object as the token."""

    __slots__ = ("granted", "greenlet", "want")

    def __init__(self, want: int) -> None:
        self.want = want
        self.granted = 0
        self.greenlet: greenlet = getcurrent()


class Bucket:
    """A limit of `rate` bytes per second for all who take from it together; first come, first served.

    `clock` returns seconds and never goes back.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        if rate < 1:
            raise ValueError("a rate is at least 1 byte per second")
        self.rate = rate
        self._clock = clock
        self._tokens = Tokens(rate, clock())
        self._grant = max(1, int(rate * GRANT_S))  # bytes that are granted at once at most
        self._turn = min(self._grant, SHARED_GRANT_BYTES)  # bytes of one turn while others wait
        self._left = 0  # bytes that are left of the turn of the first in the queue; 0: it has yet to begin
        # The same for those whose turns were broken off: who had to wait for more to read, say.
        self._unused: WeakKeyDictionary[greenlet, int] = WeakKeyDictionary()
        self._waiters: deque[_Waiter] = deque()  # greenlets in `take`, first come first served
        self._timer: Any = None  # calls `_serve`; None if nobody waits

    @classmethod
    def of(cls, rate: int | None) -> Bucket | None:
        """Return a bucket of this rate; None if `rate` is None, which means no limit."""
        return None if rate is None else cls(rate)

    def __repr__(self) -> str:
        return f"<Bucket {self.rate} bytes/s, {len(self._waiters)} waiting>"

    def take_now(self, count: int) -> bool:
        """Tell whether a datagram of `count` bytes may be moved now, and use up the tokens if so.

        A datagram that is larger than a full bucket may be moved when the bucket is full, and leaves a debt.
        """
        self._advance()
        if self._waiters or self._tokens.available < min(count, self.rate * BURST_S):
            return False
        self._tokens.spend(count)
        return True

    # ---- waiting -------------------------------------------------------------------------------------------

    def take(self, want: int) -> int:
        """Wait until some of `want` bytes may be moved, and return how many (1 to `want`).

        To be called when the bytes are there: tokens that are taken earlier are kept from others.
        """
        if not self._waiters:
            self._advance()
            count = min(want, self._grant)
            if self._tokens.available >= count:
                self._tokens.spend(count)
                return count
        waiter = _Waiter(want)
        self._line_up(waiter)
        if self._timer is None:
            self._set_timer()
        try:
            wait_for(waiter)
        except BaseException:
            self._waiters.remove(waiter)
            raise
        return waiter.granted

    def _line_up(self, waiter: _Waiter) -> None:
        """Put a greenlet at the end of the queue, or at its beginning if some of its last turn is left."""
        left = self._unused.pop(waiter.greenlet, 0)
        if left:
            self._put_first(waiter, left)
        else:
            self._waiters.append(waiter)
        if left and self._timer is not None:
            self._set_timer()

    def _put_first(self, waiter: _Waiter, left: int) -> None:
        """Let a greenlet go on with what is left of its turn; whoever was the first keeps its own."""
        if self._waiters and self._left:
            self._unused[self._waiters[0].greenlet] = self._left
        self._waiters.appendleft(waiter)
        self._left = left

    def _serve(self) -> None:
        """Grant tokens to those who wait, one after the other, while there are enough; runs in the hub."""
        self._timer = None
        self._advance()
        for _ in range(len(self._waiters)):  # whoever comes back meanwhile waits for its next turn
            if not self._serve_turn():
                break
        if self._waiters:
            self._set_timer()

    def _serve_turn(self) -> bool:
        """Let the first in the queue have its turn; return False if there are not enough tokens.

        A greenlet that asks for few bytes and comes back at once goes on, so that a turn is as many bytes for
        everybody.
        """
        while (count := self._next_grant()) and self._tokens.available >= count:
            waiter = self._waiters.popleft()
            self._tokens.spend(count)
            left, self._left = self._left - count, 0
            waiter.granted = count
            waiter.greenlet.switch(waiter)
            is_back = bool(self._waiters) and self._waiters[-1].greenlet is waiter.greenlet
            if left <= 0:
                return True
            if not is_back:
                self._unused[waiter.greenlet] = left
                return True
            self._put_first(self._waiters.pop(), left)
        return False

    def _next_grant(self) -> int:
        """Return how many bytes the first in the queue is to get; 0 if nobody waits."""
        if not self._waiters:
            return 0
        if not self._left:
            self._left = self._unused.pop(self._waiters[0].greenlet, 0) or self._turn
        return min(self._waiters[0].want, self._grant if len(self._waiters) == 1 else self._left)

    def _set_timer(self) -> None:
        """Have `_serve` called when there are enough tokens for the first in the queue."""
        if self._timer is not None:
            self._timer.stop()
        wait_s = self._tokens.seconds_until(self._next_grant())
        self._timer = get_hub().loop.timer(max(wait_s, MIN_WAIT_S) if wait_s else 0.0)
        self._timer.start(self._serve)

    def _advance(self) -> None:
        self._tokens.advance(self._clock(), wanted=bool(self._waiters))
