"""The pace of messages in a test: time stands still for it, so that what is worked off can be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gnar_lib.proto.pace import MAX_CREDIT_S, pace


@contextmanager
def standing_pace() -> Iterator[None]:
    """Let no time pass for the pace in the block: no more is worked off than in one turn of the loop."""
    clock, now_s = pace._clock, pace._clock()
    pace._clock = lambda: now_s
    pace._credit_s, pace._seen_s = MAX_CREDIT_S, now_s
    try:
        yield
    finally:
        pace._clock = clock


def count_in_one_turn(cost_s: float) -> int:
    """Return how many messages of this cost one turn of the loop may have; one more is begun."""
    return int(MAX_CREDIT_S / cost_s) + 1
