"""The conn map: whoever waits to be claimed, by `conn_id`; knows nothing of messages.

Claiming removes the entry, so that it happens once; what nobody claims in time expires.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

EXPIRY_S = 10.0


class Entry(Protocol):
    """What waits to be claimed: a user, or the place of a data connection that was asked for."""

    def expire(self) -> None:
        """Nobody claimed it in time, or its control connection ended; it closes what it holds."""


E = TypeVar("E", bound=Entry)


class ConnMap(Generic[E]):
    """Entries by a fresh UUID4, in the order in which they came."""

    def __init__(self, expiry_s: float = EXPIRY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: dict[str, tuple[float, E]] = {}
        self._lock = threading.Lock()
        self._expiry_s = expiry_s
        self._clock = clock

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: E) -> str:
        """Keep an entry and return its `conn_id`."""
        conn_id = str(uuid.uuid4())
        with self._lock:
            self._entries[conn_id] = (self._clock() + self._expiry_s, entry)
        return conn_id

    def claim(self, conn_id: str, may_claim: Callable[[E], bool]) -> E | None:
        """Remove and return an entry; None when it is not there (any more) or `may_claim` says no.

        An entry that the caller may not claim stays for whoever may.
        """
        with self._lock:
            found = self._entries.get(conn_id)
            if found is None or not may_claim(found[1]):
                return None
            del self._entries[conn_id]
        return found[1]

    def expire(self) -> int:
        """Expire what has waited too long, and return how many there were; to be called now and then."""
        now = self._clock()
        late = []
        with self._lock:
            for conn_id, (until, entry) in self._entries.items():
                if until > now:  # all that follow came later
                    break
                late.append((conn_id, entry))
            for conn_id, _ in late:
                del self._entries[conn_id]
        for _, entry in late:
            entry.expire()
        return len(late)

    def drop(self, is_gone: Callable[[E], bool]) -> None:
        """Expire at once every entry of which `is_gone` is true."""
        with self._lock:
            gone = [(conn_id, entry) for conn_id, (_, entry) in self._entries.items() if is_gone(entry)]
            for conn_id, _ in gone:
                del self._entries[conn_id]
        for _, entry in gone:
            entry.expire()
