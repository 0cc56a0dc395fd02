"""One direction of a connection, or of all connections of a proxy: what is counted and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Limit(Protocol):
    """A limit on bytes per second, which many flows may share; `limit.Bucket` is one."""

    def take(self, want: int) -> int:
        """Wait until some of `want` bytes may be moved, and return how many (at least one)."""

    def take_now(self, count: int) -> bool:
        """Tell whether a datagram of `count` bytes may be moved now, and use up the tokens if so."""


class Flow:
    """One direction: copy loops add to `bytes`, and ask `limit` before they send unless it is None.

    The flow of one connection has the proxy's flow as its `parent`: the parent's limit holds for the
    connection too, beside the connection's own. The parent's `bytes` do not contain those of its children; a
    `Meter` adds them up.
    """

    __slots__ = ("bytes", "limit", "on_first")

    def __init__(self, limit: Limit | None = None, parent: Flow | None = None) -> None:
        self.limit = limit
        if parent is not None and parent.limit is not None:
            self.limit = parent.limit if limit is None else _Both(limit, parent.limit)
        self.bytes = 0
        self.on_first: Callable[[], None] | None = None  # called once, when the first byte has come

    def tell_first(self) -> None:
        """Call `on_first`, if nobody has done so yet."""
        on_first, self.on_first = self.on_first, None
        if on_first is not None:
            on_first()


class _Both:
    """Two limits at once: `own`, and the one `shared` with others."""

    __slots__ = ("_own", "_shared")

    def __init__(self, own: Limit, shared: Limit) -> None:
        self._own = own
        self._shared = shared

    def take(self, want: int) -> int:
        """Wait until both limits allow some of `want` bytes, and return how many."""
        granted = left = self._own.take(want)
        while left:  # what the own limit has granted cannot be given back
            left -= self._shared.take(left)
        return granted

    def take_now(self, count: int) -> bool:
        """Tell whether both limits allow `count` bytes now; the own limit may use its tokens up in vain."""
        return self._own.take_now(count) and self._shared.take_now(count)
