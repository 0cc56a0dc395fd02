"""The pace at which this process works off messages that peers send without being asked; knows no peer.

A peer can send messages faster than anybody can handle them, and thousands of peers can do so at once. All
message loops of the process together have a share of its time, and two milliseconds of it in one turn of the
loop. Whoever would exceed that waits in a queue, so that users' bytes have their turn, and so that nobody is
refused for having much to say. TCP slows down a peer whose messages wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.net import Conn, wait_for
from gnar_lib.proto import recv
from gnar_lib.proto.msg import Exchange, Message, ProxyCancel, ProxyReq, ProxyResp

SHARE = 0.5  # of the process's time, for the messages of all peers together
MAX_CREDIT_S = 0.002  # of work in one turn of the loop
MIN_WAIT_S = 0.001  # the loop's clock ticks in milliseconds; a shorter wait would only spin

# What handling a message costs, as seconds of work: up to four times what a machine of 2020 takes, so that
# slower ones keep within the share, too.
MESSAGE_S = 20e-6  # a message that changes nothing, such as a heartbeat; also a port that is closed
COSTS_S: dict[type[Message], float] = {
    ProxyReq: 200e-6,  # a port is opened, in about 125 us with all that follows
    ProxyCancel: 200e-6,
    ProxyResp: 200e-6,
    Exchange: 100e-6,  # a greenlet that dials
}


class _Waiter:
    """A greenlet in the queue; the pace switches to it with this object as the token."""

    __slots__ = ("cost_s", "greenlet")

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.greenlet: greenlet = getcurrent()


class Pace:
    """Lets work begin, first come, first served, as long as there is credit, which grows as time goes by.

    `clock` returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._credit_s = MAX_CREDIT_S
        self._seen_s = clock()  # when the credit has grown last
        self._waiters: deque[_Waiter] = deque()
        self._timer: Any = None  # calls `_serve`; None if nobody waits

    def take(self, cost_s: float) -> None:
        """Wait until work that takes `cost_s` seconds may begin."""
        if self.take_now(cost_s):
            return
        waiter = _Waiter(cost_s)
        self._waiters.append(waiter)
        if self._timer is None:
            self._set_timer()
        try:
            wait_for(waiter)
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def take_now(self, cost_s: float) -> bool:
        """Tell whether work that takes `cost_s` seconds may begin now, without waiting; then it counts."""
        if self._waiters:
            return False
        self._grow()
        if self._credit_s <= 0:
            return False
        self._credit_s -= cost_s
        return True

    def _grow(self) -> None:
        now_s = self._clock()
        self._credit_s = min(self._credit_s + SHARE * (now_s - self._seen_s), MAX_CREDIT_S)
        self._seen_s = now_s

    def _serve(self) -> None:
        """Let the first in the queue go on, as far as the credit goes; runs in the hub."""
        self._timer = None
        self._grow()  # once: what grows while those work is for the next turn of the loop
        for _ in range(len(self._waiters)):  # whoever comes back meanwhile waits for the next turn
            if self._credit_s <= 0 or not self._waiters:
                break
            waiter = self._waiters.popleft()
            self._credit_s -= waiter.cost_s
            waiter.greenlet.switch(waiter)
        if self._waiters and self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer = get_hub().loop.timer(max(-self._credit_s / SHARE, MIN_WAIT_S))
        self._timer.start(self._serve)


pace = Pace()  # the process has one loop, so there is one pace


def recv_paced(conn: Conn) -> Message:
    """Wait for one message, and until there is time for it, and return it; raises what `recv` raises.

    For loops that handle whatever a peer sends.
    """
    message = recv(conn)
    pace.take(COSTS_S.get(type(message), MESSAGE_S))
    return message
