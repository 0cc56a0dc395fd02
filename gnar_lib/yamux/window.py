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
from gnar_lib.yamux.holdings import holdings

MAX_WINDOW_BYTES = 16 << 20  # 2.5 Gbit/s over 50 ms
MAX_GROWTH_BYTES = 64 << 20  # of all windows of a session together, beyond their initial sizes
FAST_ROUND_TRIPS = 2.0  # half a window consumed in less: the window is the limit, not the reader
RTT_AGE_S = 5.0  # a round trip that was measured longer ago is measured again before it is used


class Path:
    """What the streams of one session share: the round trip time, and how much their windows have grown."""

    __slots__ = ("_measured_s", "grown_bytes", "rtt_s")

    def __init__(self) -> None:
        self.rtt_s = 0.0  # the round trip time as last measured; 0 if it was never measured
        self.grown_bytes = 0  # by how many bytes all windows together have grown
        self._measured_s = 0.0  # when the round trip was measured

    def set_rtt(self, rtt_s: float) -> None:
        """Take note of a round trip that was just measured."""
        self._measured_s = monotonic()
        self.rtt_s = rtt_s

    @property
    def is_stale(self) -> bool:
        """Whether the round trip should be measured again before a window relies on it."""
        return not self.rtt_s or monotonic() - self._measured_s > RTT_AGE_S

    def take_growth(self, wanted: int) -> int:
        """Return by how many of the `wanted` bytes a window may grow, as far as all windows leave room."""
        growth = max(0, min(wanted, MAX_GROWTH_BYTES - self.grown_bytes, holdings.spare_growth))
        self.grown_bytes += growth
        holdings.spare_growth -= growth
        return growth

    def give_growth(self, count: int) -> None:
        """Take back what a window has grown by."""
        self.grown_bytes -= count
        holdings.spare_growth += count

    def close(self) -> None:
        """The session has ended: its windows hold nothing any more, and grow no more."""
        self.give_growth(self.grown_bytes)
        self.rtt_s = 0.0


class Window:
    """The receive window of a stream that was opened at `now_s` (`time.monotonic`)."""

    __slots__ = ("_granted_s", "_path", "consumed", "half", "room", "size")

    def __init__(self, path: Path, now_s: float) -> None:
        self.room = INITIAL_WINDOW_BYTES  # bytes that the peer may send now
        self._path = path  # shared with the other windows of the session
        self.size = INITIAL_WINDOW_BYTES  # bytes on the way, or received and unread, at the same time
        self.half = INITIAL_WINDOW_BYTES >> 1  # of `size`
        self.consumed = 0  # bytes that the reader has taken since the last grant; whoever reads adds to it
        self._granted_s = now_s  # when the last grant was made

    def use_room(self, count: int) -> None:
        """Take note that the peer has sent `count` bytes; raises `ProtocolError` if they exceed the room."""
        if count > self.room:
            raise ProtocolError(f"{count} bytes for a window that has room for {self.room}")
        self.room -= count

    def grant(self) -> int:
        """Return how many more bytes the peer may send, now that the reader has taken `half` of the window.

        The peer is granted half a window at a time. So grants are few, and the peer can send all the while.
        """
        now = monotonic()
        growth = 0
        if now - self._granted_s < FAST_ROUND_TRIPS * self._path.rtt_s:
            growth = self._path.take_growth(min(self.size, MAX_WINDOW_BYTES - self.size))
            self._resize(self.size + growth)
        self._granted_s = now
        return self._grant(growth)

    def refill(self) -> int:
        """Return how many more bytes the peer may send once this end ignores what comes."""
        self.consumed = self.size - self.room
        return self._grant(0)

    def release(self) -> None:
        """Give the growth of this window back to the other streams of the session."""
        self._path.give_growth(self.size - INITIAL_WINDOW_BYTES)
        self._resize(INITIAL_WINDOW_BYTES)

    def _resize(self, size: int) -> None:
        self.size, self.half = size, size >> 1

    def _grant(self, growth: int) -> int:
        granted = self.consumed + growth
        self.consumed = 0
        self.room += granted
        return granted
