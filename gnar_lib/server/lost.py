"""The proxies that a client has lost just now: one who goes is said to have had them; knows no client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

JUST_S = 5.0
MAX_LOST = 1000  # proxies of one client


class Lost:
    """Names and ports of proxies that a client had: it has left or cancelled them, or they were ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lost: deque[tuple[float, str, int]] = deque(maxlen=MAX_LOST)
        self._clock = clock

    def add(self, name: str, port: int) -> None:
        """Note a proxy that is lost now."""
        self._lost.append((self._clock(), name, port))

    def just_now(self) -> list[tuple[str, int]]:
        """Return those of the last `JUST_S` seconds."""
        since_s = self._clock() - JUST_S
        return [(name, port) for at_s, name, port in self._lost if at_s >= since_s]
