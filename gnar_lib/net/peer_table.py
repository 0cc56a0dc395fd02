"""Who has sent datagrams lately, and who of them is forgotten first; touches no socket.

A datagram costs its sender next to nothing, and anybody can put another's address on it. So a peer earns its
place: by an answer, and by going on after an answer, which shows that the peer receives at its address. When
there are too many peers, those who have earned least go first, and among these the one that was idle longest.
A flood of strangers then ends strangers only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from gevent.hub import get_hub

UNANSWERED, ANSWERED, CONVERSING = range(3)  # what a peer has earned; CONVERSING: has sent again since

MIN_SWEEP_S = 0.01  # between two looks for idle peers
SWEPT = 64  # peers that one look ends at most, so that nobody waits while thousands end


class Entry:
    """A peer of a table. Whoever carries its datagrams notes the time of each, and promotes the peer."""

    __slots__ = ("placed_s", "standing", "used_s")

    def __init__(self) -> None:
        self.standing = UNANSWERED
        self.used_s = time.monotonic()  # when the last datagram came from the peer, or was sent to it
        self.placed_s = self.used_s  # what `used_s` was when the table last put the peer at the end


E = TypeVar("E", bound=Entry)


class PeerTable(Generic[E]):
    """Peers by packed address, `most` of them at most; each ends after `timeout_s` without a datagram.

    `on_end` is called with each peer that ends, in the hub or by whoever adds another, and must not wait.

    The order of the peers is only mended when somebody asks who is the first (as a CLOCK does it): a datagram
    costs the table nothing.
    """

    def __init__(self, most: int, timeout_s: float, on_end: Callable[[bytes, E], None]) -> None:
        self.most = most
        self.timeout_s = timeout_s
        self._on_end = on_end
        self._entries: dict[bytes, E] = {}
        # The peers of each standing; of two, the one that was placed earlier is the first.
        self._order: tuple[OrderedDict[bytes, E], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._sweeper: Any = None  # the timer for the first peer to become idle; None without peers
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> Iterable[E]:
        """Return the peers, in no particular order."""
        return self._entries.values()

    def add(self, key: bytes, entry: E) -> None:
        """Take in a peer that has sent its first datagram; when there are too many, another one ends."""
        while len(self._entries) >= self.most:
            self.end_first()
        self._entries[key] = entry
        self._order[entry.standing][key] = entry
        if self._sweeper is None:
            self._sweep_in(self.timeout_s)

    def promote(self, key: bytes, entry: E) -> None:
        """Raise the standing of a peer: UNANSWERED gets an answer, or ANSWERED has sent again."""
        del self._order[entry.standing][key]
        entry.standing += 1
        entry.placed_s = entry.used_s
        self._order[entry.standing][key] = entry

    def end(self, key: bytes) -> None:
        """End a peer."""
        entry = self._entries.pop(key)
        del self._order[entry.standing][key]
        if not self._entries:
            self._stop_sweeping()
        self._on_end(key, entry)

    def end_first(self) -> None:
        """End the peer that has to go first; there has to be one."""
        self.end(next(_first(order) for order in self._order if order))

    def close(self) -> None:
        """End all peers."""
        while self._entries:
            self.end(next(iter(self._entries)))
        for emptied in (self._entries, *self._order):
            emptied.clear()  # which gives the memory of the many back that have been there

    # ---- idle peers ----------------------------------------------------------------------------------------

    def _sweep_in(self, seconds: float) -> None:
        self._sweeper = get_hub().loop.timer(max(seconds, MIN_SWEEP_S))
        self._sweeper.start(self._sweep)

    def _stop_sweeping(self) -> None:
        if self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper = None

    def _sweep(self) -> None:
        """End idle peers, and set the timer to when the next one would become idle."""
        now_s = time.monotonic()
        for _ in range(SWEPT):
            firsts = [_first(order) for order in self._order if order]
            key = min(firsts, key=lambda key: self._entries[key].used_s)
            left_s = self._entries[key].used_s + self.timeout_s - now_s
            if left_s > 0:
                self._sweep_in(left_s)
                return
            self.end(key)
            if not self._entries:
                return
        self._sweep_in(MIN_SWEEP_S)


def _first(order: OrderedDict[bytes, E]) -> bytes:
    """Return the key of the peer that was not used since it was placed; places all before it anew."""
    while True:
        key, entry = next(iter(order.items()))
        if entry.used_s <= entry.placed_s:
            return key
        entry.placed_s = entry.used_s
        order.move_to_end(key)
