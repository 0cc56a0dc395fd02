"""Waits in tests that run gevent's loop themselves: for a fact, or until all that has come is handled."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

WAIT_S = 20.0  # the bound of every wait: a healthy machine takes milliseconds


def turn() -> None:
    """Return when the loop has handled all that has come, and what that made ready.

    What a test sends within its own process has come at once. So after a turn a test may say that something
    did not happen: but for timers, nothing is left that could make it happen.
    """
    for _ in range(4):
        gevent.idle()


def wait_until(fact: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until `fact()` holds, while other greenlets go on; fails the test when it never does."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s:g} s: {what}"
        gevent.sleep(0.002)  # the pace of asking, not a guess of how long it takes
