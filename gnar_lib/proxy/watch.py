"""Looks at joined pairs, a few of them in each second: whether a peer has gone, of which no event tells.

One look at each of thousands of pairs is cheaper than timers for all of them, and takes little time at once.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from typing import Any, Protocol

from gevent.hub import get_hub

from gnar_lib.net.options import dead_after_s

TICK_S = 1.0
MAX_ROUND_S = 10.0  # within which every pair is looked at
ROUNDS = 8  # in the time after which a silent peer counts as dead


class Watched(Protocol):
    """A joined pair."""

    def look(self, now_s: float) -> None:
        """See whether the pair has to end; `now_s` is `time.monotonic`. Runs in the hub."""


class Watch:
    """The joined pairs of this process, in the order in which they are looked at."""

    def __init__(self) -> None:
        self._watched: OrderedDict[Watched, None] = OrderedDict()
        self._timer: Any = None  # None while there is nothing to look at

    def add(self, watched: Watched) -> None:
        """Look at this pair from now on."""
        self._watched[watched] = None
        if self._timer is None:
            self._timer = get_hub().loop.timer(TICK_S, TICK_S)
            self._timer.start(self._tick)

    def discard(self, watched: Watched) -> None:
        """Look at this pair no longer."""
        self._watched.pop(watched, None)

    def _tick(self) -> None:
        round_s = min(MAX_ROUND_S, dead_after_s() / ROUNDS)
        now_s = time.monotonic()
        for _ in range(math.ceil(len(self._watched) * TICK_S / max(round_s, TICK_S))):
            if not self._watched:  # the end of one pair may have ended others
                break
            watched = next(iter(self._watched))
            self._watched.move_to_end(watched)
            watched.look(now_s)
        if not self._watched:
            self._timer.stop()
            self._timer = None


watch = Watch()  # the process has one loop, so there is one
