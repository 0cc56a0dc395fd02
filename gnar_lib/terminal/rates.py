"""Rates of counters that somebody looks at now and then; does not know what is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

PERIOD_S = 0.9  # the least time between two values from which a rate is made: a view is drawn at keys, too
FORGET_S = 5.0  # after which a counter that nobody has looked at is a new one


@dataclass(slots=True)
class _Last:
    at_s: float
    seen_s: float
    counts: tuple[int, ...]
    rates: tuple[float, ...]


class Rates:
    """Remembers what counters were; `clock` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[Hashable, _Last] = {}
        self._cleared_s = clock()

    def of(self, key: Hashable, *counts: int) -> tuple[float, ...]:
        """Return by how much the counters of `key` grow in a second; 0 for those seen for the first time."""
        now = self._clock()
        self._forget(now)
        last = self._last.get(key)
        if last is None:
            last = self._last[key] = _Last(now, now, counts, (0.0,) * len(counts))
        last.seen_s = now
        if (passed_s := now - last.at_s) >= PERIOD_S:
            pairs = zip(counts, last.counts, strict=True)
            last.rates = tuple(max(0.0, (count - before) / passed_s) for count, before in pairs)
            last.at_s, last.counts = now, counts
        return last.rates

    def _forget(self, now: float) -> None:
        if now - self._cleared_s < FORGET_S:
            return
        self._cleared_s = now
        self._last = {key: last for key, last in self._last.items() if now - last.seen_s < FORGET_S}
