"""What all sessions of the process hold for their peers together, and how much that may be; measures nothing.

Each session has limits of its own, which suffice while there are few sessions. Whoever opens many sessions
meets the limits here, which follow from the memory that the process may use.
"""

from __future__ import annotations

from typing import Final, Protocol

STREAM_BYTES: Final = 16 * 1024  # what a stream of the peer costs, with the greenlet that serves it
DEFAULT_LIMIT_BYTES: Final = 1 << 30
LOOK_EVERY_BYTES: Final = 64 * 1024  # a session that has grown by so much makes all sessions be counted


class Holder(Protocol):
    """A session, as far as it holds something for its peer."""

    @property
    def held_bytes(self) -> int:
        """What is kept for the peer: bytes that nobody has read, and frames that the peer does not take."""

    def shed(self) -> None:
        """Hold less: reset a stream, or end the session."""


class Holdings:
    """Counts what the sessions hold. Half of the limit is for streams, half for bytes."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.streams = 0  # of the peers of all sessions
        self.holders: set[Holder] = set()  # the sessions that have not ended
        self.limit_bytes = limit_bytes
        self.spare_growth = limit_bytes // 2  # by which all windows of all sessions may still grow

    def set_limit(self, limit_bytes: int) -> None:
        """Let the sessions hold `limit_bytes` from now on."""
        self.spare_growth += limit_bytes // 2 - self.limit_bytes // 2
        self.limit_bytes = limit_bytes

    @property
    def takes_streams(self) -> bool:
        """Whether there is room for one more stream of a peer."""
        return (self.streams + 1) * STREAM_BYTES <= self.limit_bytes // 2

    def look(self) -> None:
        """Have the session that holds most hold less if all together hold too much; O(sessions)."""
        held = sum(holder.held_bytes for holder in self.holders)
        if held > self.limit_bytes // 2:
            max(self.holders, key=lambda holder: holder.held_bytes).shed()


holdings = Holdings()  # the process has one memory, so there is one
