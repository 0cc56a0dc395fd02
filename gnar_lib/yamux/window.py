"""How much a peer may send: the receive window of a stream, and what all windows of a session share.

A window begins with the size that every peer assumes. It doubles whenever the reader has consumed half of it
in less than about a round trip, because then the window is what holds the stream back. So it grows towards
bandwidth times delay without measuring either of them exactly. The window of a stream that nobody reads never
grows.
"""

from __future__ import annotations

from time import monotonic

from gnar_lib.errors import ProtocolError
from gnar_lib.yamux.frame import INITIAL_WINDOW_BYTES

MAX_WINDOW_BYTES = 16 << 20  # 2.5 Gbit/s over 50 ms
MAX_GROWTH_BYTES = 64 << 20  # of all windows of a session together, beyond their initial sizes
FAST_ROUND_TRIPS = 2.0  # half a window consumed in less: the window is the limit, not the reader
RTT_AGE_S = 5.0  # a round trip that was measured longer ago is measured again before it is used


class Path:
    """What the streams of one session share: the round trip time, and how much their windows may grow yet."""

    __slots__ = ("_measured_s", "rtt_s", "spare_bytes")

    def __init__(self) -> None:
        self.rtt_s = 0.0  # the round trip time as last measured; 0 if it was never measured
        self.spare_bytes = MAX_GROWTH_BYTES  # by which all windows together may still grow
        self._measured_s = 0.0  # when the round trip was measured

    def set_rtt(self, rtt_s: float) -> None:
        """Take note of a round trip that was just measured."""
        self._measured_s = monotonic()
        self.rtt_s = rtt_s

    @property
    def is_stale(self) -> bool:
        """Whether the round trip should be measured again before a window relies on it."""
        return not self.rtt_s or monotonic() - self._measured_s > RTT_AGE_S


class Window:
    """The receive window of one stream."""

    __slots__ = ("_consumed", "_granted_s", "_path", "_size", "room")

    def __init__(self, path: Path) -> None:
        self.room = INITIAL_WINDOW_BYTES  # bytes that the peer may send now
        self._path = path  # shared with the other windows of the session
        self._size = INITIAL_WINDOW_BYTES  # see `size`
        self._consumed = 0  # bytes read since the last grant
        self._granted_s = monotonic()  # when the last grant was made

    @property
    def size(self) -> int:
        """How many bytes may be on the way, or received and unread, at the same time."""
        return self._size

    def use_room(self, count: int) -> None:
        """Take note that the peer has sent `count` bytes; raises `ProtocolError` if they exceed the room."""
        if count > self.room:
            raise ProtocolError(f"{count} bytes for a window that has room for {self.room}")
        self.room -= count

    def consume(self, count: int) -> int:
        """Take note that the reader took `count` bytes, and return how many more the peer may send: mostly 0.

        The peer is granted half a window at a time. So grants are few, and the peer can send all the while.
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
        """Return how many more bytes the peer may send once this end ignores what comes."""
        self._consumed = self._size - self.room
        return self._grant(0)

    def release(self) -> None:
        """Give the growth of this window back to the other streams of the session."""
        self._path.spare_bytes += self._size - INITIAL_WINDOW_BYTES
        self._size = INITIAL_WINDOW_BYTES

    def _grant(self, growth: int) -> int:
        granted = self._consumed + growth
        self._consumed = 0
        self.room += granted
        return granted
