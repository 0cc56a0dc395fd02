"""How many wrong passwords have come from where, and who has to wait before the next."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_WRONG = 10  # from one network within a period
PERIOD_S = 60.0
MAX_NETWORKS = 4096  # that are remembered; whoever has been wrong longest ago is forgotten


class Attempts:
    """The wrong passwords of the last minute, by the network from which they came; `most` are taken."""

    def __init__(self, most: int = MAX_WRONG, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()  # when; the network that was last is last
        self._clock = clock

    def count(self, network: str) -> None:
        """Note a wrong password."""
        times = self._wrong.setdefault(network, deque(maxlen=self._most))
        times.append(self._clock())
        self._wrong.move_to_end(network)
        if len(self._wrong) > MAX_NETWORKS:
            self._wrong.popitem(last=False)

    def wait_s(self, network: str) -> float:
        """Return for how many seconds no password is taken from there; 0 if one is taken now.

        That is a minute from the last wrong one that is taken on, if these have come within a minute.
        """
        times = self._wrong.get(network)
        if times is None or len(times) < self._most or times[-1] - times[0] > PERIOD_S:
            return 0.0
        return max(times[-1] + PERIOD_S - self._clock(), 0.0)
