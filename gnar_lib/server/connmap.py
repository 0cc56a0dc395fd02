"""The conn map: whoever waits for a data connection, by `conn_id`; knows no messages and touches no socket.

Claiming removes the entry, so that an entry is claimed once. An entry that nobody claims in time expires.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from gnar_lib.net import Conn

EXPIRY_S = 10.0


class Entry(Protocol):
    """Somebody who waits for a data connection."""

    @property
    def key(self) -> object:
        """What a data connection has to have in order to claim this entry; compared by `==`."""

    def deliver(self, conn: Conn) -> None:
        """Take the data connection that has claimed this entry. Must not wait."""

    def expire(self) -> None:
        """Take note that no data connection came in time. Must not wait."""


class ConnMap:
    """The entries by a fresh UUID4 each, in the order in which they came. Any thread may call any method."""

    def __init__(self, expiry_s: float = EXPIRY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: dict[str, tuple[float, Entry]] = {}  # with the time at which each expires
        self._lock = threading.Lock()
        self._expiry_s = expiry_s
        self._clock = clock

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> str:
        """Keep an entry until it is claimed, removed or expires, and return its `conn_id`."""
        conn_id = str(uuid.uuid4())
        with self._lock:
            self._entries[conn_id] = (self._clock() + self._expiry_s, entry)
        return conn_id

    def claim(self, conn_id: str, key: object) -> Entry | None:
        """Remove and return an entry; None if there is no such entry (any more) or `key` does not fit.

        An entry whose key is another one stays for whoever has that key.
        """
        with self._lock:
            found = self._entries.get(conn_id)
            if found is None or found[1].key != key:
                return None
            del self._entries[conn_id]
        return found[1]

    def remove(self, conn_id: str) -> None:
        """Remove an entry whose owner has stopped waiting; nothing happens if there is no such entry."""
        with self._lock:
            self._entries.pop(conn_id, None)

    def expire(self) -> int:
        """Remove and expire the entries whose time is over, and return how many; to be called often."""
        now = self._clock()
        late: list[tuple[str, Entry]] = []
        with self._lock:
            for conn_id, (until, entry) in self._entries.items():
                if until > now:  # all entries behind this one came later
                    break
                late.append((conn_id, entry))
            for conn_id, _ in late:
                del self._entries[conn_id]
        for _, entry in late:
            entry.expire()
        return len(late)
