"""The pace of messages in a test: time stands still for it, and what is worked off is noted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from gnar_lib.net import Conn
from gnar_lib.proto import Message, recv
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


def note_received(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Message]:
    """Return the list of the messages that a module's loops receive from now on."""
    got: list[Message] = []

    def note(conn: Conn) -> Message:
        message = recv(conn)
        got.append(message)
        return message

    monkeypatch.setattr(module, "recv", note)
    return got
