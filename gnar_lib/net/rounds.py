"""Tells when this process itself was stopped for a while, so that it takes that for no silence of a peer."""

from __future__ import annotations

from time import monotonic

SLACK_S = 5.0  # by which a busy process may be late


class Rounds:
    """Something that this process does every `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last_s = monotonic()

    def was_stopped(self) -> bool:
        """Tell, at the beginning of each round, whether the last one was much longer ago than it should be.

        A stopped process (SIGSTOP, a frozen container, a machine that was suspended) has read nothing.
        """
        before_s, self._last_s = self._last_s, monotonic()
        return self._last_s - before_s > self._every_s + SLACK_S
