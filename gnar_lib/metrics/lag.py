"""How late the loop is: what waits for its turn waits as long; knows nobody who reads it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from gevent.hub import get_hub

EVERY_S = 0.25  # between two measurements; a pause that is longer is seen for certain
KEPT_S = 60.0  # for which the longest lag is remembered


class LoopLag:
    """Measures by how much a timer of the hub is late, from `start` to `close`."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self._recent: deque[float] = deque(maxlen=round(KEPT_S / EVERY_S))
        self._timer: Any = None
        self._due_s = 0.0

    @property
    def longest_s(self) -> float:
        """The longest lag of the last `KEPT_S`."""
        return max(self._recent, default=0.0)

    def start(self) -> None:
        """Measure from now on; a second call has no effect."""
        if self._timer is None:
            self._timer = get_hub().loop.timer(EVERY_S, EVERY_S)
            self._wait()

    def close(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _wait(self) -> None:
        self._due_s = time.monotonic() + EVERY_S
        # Not `start`, which would go on with what was left of the time: nothing, so that the loop would spin.
        self._timer.again(self._measure, update=True)  # else the time of this turn would count as waited

    def _measure(self) -> None:
        self.last_s = max(0.0, time.monotonic() - self._due_s)
        self._recent.append(self.last_s)
        self._wait()
