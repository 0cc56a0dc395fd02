"""How much memory the settings of all proxies may take, such as error pages; knows no proxy."""

from __future__ import annotations

from gnar_lib import memory

MAX_BYTES = 64 << 20
PART = 8  # they take one part of so many, at most, of what peers may take
TEXT_BYTES = 60  # of a text, besides its characters


class Room:
    """Counts the bytes of what clients have sent for their proxies, which is kept as long as they are."""

    def __init__(self, max_memory: int) -> None:
        limit_bytes = memory.for_peers(max_memory or memory.default_limit())
        self.most = min(MAX_BYTES, limit_bytes // PART)
        self.taken = 0
        self._of: dict[object, int] = {}  # by the key of the ingress

    def has(self, size: int) -> bool:
        """Tell whether so many bytes more can be kept."""
        return not size or self.taken + size <= self.most

    def take(self, key: object, size: int) -> None:
        """Note how many bytes are kept for one proxy now."""
        self.free(key)
        if size:
            self.taken += size
            self._of[key] = size

    def free(self, key: object) -> None:
        """Note that nothing is kept for a proxy; more than once does no harm."""
        self.taken -= self._of.pop(key, 0)
