"""What one direction of a proxy counts and may use; knows no conn."""

from __future__ import annotations

from typing import Protocol


class TakesTokens(Protocol):
    """A limit on bytes per second, shared by many directions."""

    def take(self, want: int) -> int:
        """Wait until some of `want` bytes may be moved, and return how many (at least one)."""

    def take_now(self, count: int) -> bool:
        """Tell whether a datagram of `count` bytes may be moved now, and use up its tokens if so."""


class Flow:
    """One direction, of one connection or of all those of a proxy.

    `bytes` grows while they flow; `bucket` limits them, None does not.
    """

    __slots__ = ("bucket", "bytes")

    def __init__(self, bucket: TakesTokens | None = None) -> None:
        self.bucket = bucket
        self.bytes = 0
