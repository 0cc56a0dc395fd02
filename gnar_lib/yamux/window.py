"""How much a peer may send: the receive window of one stream, and what all streams know of their path.

A window begins as every peer assumes it. It grows while the reader consumes what it allows in less than about
a round trip, since then the window is what holds the stream back: bandwidth times delay, without measuring
either more closely than needed. A stream that nobody reads never grows.
"""

from __future__ import annotations

from time import monotonic

from gnar_lib.errors import ProtocolError
from gnar_lib.yamux.frame import INITIAL_WINDOW_BYTES

MAX_WINDOW_BYTES = 16 << 20  # 2.5 Gbit/s over 50 ms
MAX_GROWTH_BYTES = 64 << 20  # of all windows of a session together, beyond what they begin with
FAST_ROUND_TRIPS = 2.0  # half a window consumed in less: the window, not the reader, is what limits
RTT_AGE_S = 5.0  # a round trip measured before that is measured again when it matters


class Path:
    """What the streams of one session share: its round trip time, and how much their windows may yet grow."""

    __slots__ = ("_measured_s", "rtt_s", "spare_bytes")

    def __init__(self) -> None:
        self.rtt_s = 0.0  # 0: not known yet
        self.spare_bytes = MAX_GROWTH_BYTES
        self._measured_s = 0.0

    def measured(self, rtt_s: float) -> None:
        """Take note of a round trip."""
        self._measured_s = monotonic()
        self.rtt_s = rtt_s

    @property
    def is_stale(self) -> bool:
        """Whether the round trip should be measured again before a window relies on it."""
        return not self.rtt_s or monotonic() - self._measured_s > RTT_AGE_S


class Window:
    """The receive window of one stream: `room` is what the peer may still send."""

    __slots__ = ("_consumed", "_granted_s", "_path", "_size", "room")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = self.room = INITIAL_WINDOW_BYTES
        self._consumed = 0  # since the last grant
        self._granted_s = monotonic()

    @property
    def size(self) -> int:
        """What the peer may have sent that nobody has read."""
        return self._size

    def charge(self, count: int) -> None:
        """Count what a Data frame brings; `ProtocolError` when that is more than was allowed."""
        if count > self.room:
            raise ProtocolError(f"{count} bytes for a window that has room for {self.room}")
        self.room -= count

    def consume(self, count: int) -> int:
        """Count what the reader took, and return by how much the peer may now send more: mostly 0.

        Half a window at a time, so that updates are few and the sender does not run dry meanwhile.
        """
        self._consumed += count
        if self._consumed < self._size >> 1:
            return 0
        now = monotonic()
        growth = 0
        if now - self._granted_s < FAST_ROUND_TRIPS * self._path.rtt_s:
            growth = min(self._size, MAX_WINDOW_BYTES - self._size, self._path.spare_bytes)
            self._size += growth
            self._path.spare_bytes -= growth
        self._granted_s = now
        return self._grant(growth)

    def refill(self) -> int:
        """Return by how much the peer may send more when nobody cares any longer what."""
        self._consumed = self._size - self.room
        return self._grant(0)

    def release(self) -> None:
        """Give the growth back to the streams that remain."""
        self._path.spare_bytes += self._size - INITIAL_WINDOW_BYTES
        self._size = INITIAL_WINDOW_BYTES

    def _grant(self, growth: int) -> int:
        granted = self._consumed + growth
        self._consumed = 0
        self.room += granted
        return granted
