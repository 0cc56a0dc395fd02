"""Byte and user counts of a proxy, and of all proxies together; knows nobody who counts or reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Counter(Protocol):
    """What a copy loop adds to: one direction."""

    bytes: int


class Count:
    """A counter and nothing else."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What a meter and those below it counted until now."""

    up: int
    down: int
    users: int
    users_total: int
    dropped: int


class Meter:
    """Counts of one proxy, or of those whose `parent` it is.

    Copy loops add to `up.bytes` (from the user) and `down.bytes` (to the user), and that is all the hot path
    does: sums over proxies are made when somebody reads them. `dropped` are datagrams that did not go on.
    """

    __slots__ = ("_ended", "_parent", "_parts", "down", "dropped", "up", "users", "users_total")

    def __init__(
        self, parent: Meter | None = None, up: Counter | None = None, down: Counter | None = None
    ) -> None:
        self.up: Counter = Count() if up is None else up
        self.down: Counter = Count() if down is None else down
        self.users = 0
        self.users_total = 0
        self.dropped = 0
        self._parent = parent
        self._parts: set[Meter] = set()
        self._ended = False
        if parent is not None:
            parent._parts.add(self)

    @property
    def root(self) -> Meter:
        """The meter that all others are below of."""
        return self if self._parent is None else self._parent.root

    def enter(self) -> None:
        """Count a user that came."""
        self.users += 1
        self.users_total += 1

    def leave(self) -> None:
        """Count a user that left."""
        self.users -= 1
        if self._ended and not self.users:
            self._hand_over()

    def end(self) -> None:
        """Leave the counts to the parent, when the last user has left: the proxy is gone."""
        self._ended = True
        if not self.users:
            self._hand_over()

    def totals(self) -> Totals:
        """Return the counts of this meter and all below it."""
        parts = [part.totals() for part in self._parts]
        return Totals(
            self.up.bytes + sum(part.up for part in parts),
            self.down.bytes + sum(part.down for part in parts),
            self.users + sum(part.users for part in parts),
            self.users_total + sum(part.users_total for part in parts),
            self.dropped + sum(part.dropped for part in parts),
        )

    def _hand_over(self) -> None:
        parent = self._parent
        if parent is None or self not in parent._parts:
            return
        mine = self.totals()
        parent._parts.discard(self)
        parent.up.bytes += mine.up
        parent.down.bytes += mine.down
        parent.users_total += mine.users_total
        parent.dropped += mine.dropped
