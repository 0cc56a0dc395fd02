"""The clients that an administrator has ended, so that one who has not heard of that is told once more."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

KEPT_S = 3600.0
MAX_DISMISSED = 1000


class Dismissed:
    """The ids of clients that were ended within an hour. A client that is started anew has a new id."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._since_s: OrderedDict[str, float] = OrderedDict()  # the first ended is the first
        self._clock = clock

    def add(self, client_id: str) -> None:
        """Note that a client is ended now; one without a name, which is Go's, cannot be known again."""
        if client_id:
            self._since_s[client_id] = self._clock()
            self._since_s.move_to_end(client_id)
            if len(self._since_s) > MAX_DISMISSED:
                self._since_s.popitem(last=False)

    def has(self, client_id: str) -> bool:
        """Tell whether a client was ended lately."""
        since_s = self._since_s.get(client_id)
        return since_s is not None and self._clock() - since_s < KEPT_S
