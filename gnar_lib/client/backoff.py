"""How long to wait before the next try; waits for nothing itself."""

from __future__ import annotations

import random

FIRST_S, LAST_S = 0.5, 30.0
JITTER = 0.2  # either way, so that many clients do not come back at the same moment


class Backoff:
    """Delays that double from 0.5 s to 30 s."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def reset(self) -> None:
        """Begin with the shortest delay again: a try has succeeded."""
        self._next_s = FIRST_S

    def next(self) -> float:
        """Return the seconds to wait now."""
        base, self._next_s = self._next_s, min(self._next_s * 2, LAST_S)
        return base * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  (no secret)
