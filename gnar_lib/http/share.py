"""The share of this process's time that all HTTP connections have together; knows neither HTTP nor TLS.

All handshakes of TLS have another one.

Requests can come faster than anybody can answer them, on a thousand connections at once. So a connection
works only in its turn: it queues after each wait, and all turns in one round of the loop take some two
milliseconds together. The time that each takes is measured, not estimated. Networks take
turns, so that one that asks for much does not keep others waiting.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.net import wait_for

SHARE = 1 / 3  # of the process's time: users go before those who watch
MAX_CREDIT_S = 0.002  # of work in one round of the loop
MIN_WAIT_S = 0.001  # the loop's clock ticks in milliseconds; a shorter wait would only spin

_network: ContextVar[str] = ContextVar("network", default="")  # for which a greenlet works


class _Waiter:
    """A greenlet in the queue; the share switches to it with this object as the token."""

    __slots__ = ("greenlet", "network")

    def __init__(self, network: str) -> None:
        self.greenlet: greenlet = getcurrent()
        self.network = network


class Share:
    """Gives turns to greenlets, as long as there is credit, which grows as time goes by.

    A turn lasts until the greenlet waits for anything. `clock` returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._credit_s = MAX_CREDIT_S
        self._seen_s = clock()  # when the credit has grown last
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # by network, the next one first
        self._waiters: dict[greenlet, _Waiter] = {}  # the same by greenlet
        self._timer: Any = None  # calls `_serve`; None if nobody waits
        self._working: greenlet | None = None  # who has a turn
        self._end_s = 0.0  # when that turn should end

    def take(self, network: str) -> None:
        """Wait for a turn, to work for somebody from `network`."""
        _network.set(network)
        self._wait(network)

    def give_way(self) -> None:
        """Wait for another turn if this one has lasted for long enough; for loops that can be long."""
        if self._working is not getcurrent() or self._clock() >= self._end_s:
            self._wait(_network.get())

    def _wait(self, network: str) -> None:
        waiter = _Waiter(network)
        self._queues.setdefault(network, deque()).append(waiter)
        self._waiters[waiter.greenlet] = waiter
        if self._timer is None:
            self._set_timer()
        try:
            wait_for(waiter)
        except BaseException:
            self._forget(waiter)
            raise

    def end_wait(self, waiting: greenlet, error: Exception) -> None:
        """Raise `error` in a greenlet that waits for a turn; nothing happens to one that does not."""
        waiter = self._waiters.get(waiting)
        if waiter is not None:
            get_hub().loop.run_callback(self._throw, waiter, error)

    def _forget(self, waiter: _Waiter) -> None:
        if self._waiters.get(waiter.greenlet) is waiter:
            del self._waiters[waiter.greenlet]
            queue = self._queues[waiter.network]
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.network]

    # ---- in the hub ----------------------------------------------------------------------------------------

    def _throw(self, waiter: _Waiter, error: Exception) -> None:
        """Raise an error in a greenlet that still waits; another may serve somebody else by now."""
        if self._waiters.get(waiter.greenlet) is waiter:
            self._forget(waiter)
            waiter.greenlet.throw(error)

    def _serve(self) -> None:
        """Give turns, as far as the credit goes."""
        self._timer = None
        now_s = self._clock()
        self._credit_s = min(self._credit_s + SHARE * (now_s - self._seen_s), MAX_CREDIT_S)
        self._seen_s = now_s
        for _ in range(len(self._waiters)):  # who comes back waits for the next round
            if self._credit_s <= 0 or not self._queues:
                break
            began_s = self._clock()
            self._end_s = began_s + self._credit_s
            waiter = self._next()
            self._working = waiter.greenlet
            waiter.greenlet.switch(waiter)  # comes back when the greenlet waits for anything, or ends
            self._working = None
            self._credit_s -= self._clock() - began_s
        if self._queues and self._timer is None:
            self._set_timer()

    def _next(self) -> _Waiter:
        network, queue = self._queues.popitem(last=False)
        waiter = queue.popleft()
        del self._waiters[waiter.greenlet]
        if queue:
            self._queues[network] = queue  # behind the others
        return waiter

    def _set_timer(self) -> None:
        wait_s = 0.0 if self._credit_s > 0 else max(-self._credit_s / SHARE, MIN_WAIT_S)
        self._timer = get_hub().loop.timer(wait_s)
        self._timer.start(self._serve)


share = Share()  # the process has one loop, so there is one share
handshakes = Share()  # of TLS, each of which takes a millisecond, and anybody can ask for them


def end_waits(waiting: greenlet, error: Exception) -> None:
    """Raise `error` in a greenlet that waits for a turn of either kind; nothing happens to another one."""
    share.end_wait(waiting, error)
    handshakes.end_wait(waiting, error)
