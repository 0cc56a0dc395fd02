"""The delays between two tries."""

from __future__ import annotations

import pytest

from gnar_lib.client.backoff import Backoff


def test_delays_double_from_half_a_second_to_30_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 1.0)
    backoff = Backoff()
    assert [backoff.next() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert backoff.next() == 0.5


def test_clients_do_not_come_back_at_the_same_moment() -> None:
    delays = {Backoff().next() for _ in range(100)}
    assert len(delays) > 90
    assert all(0.4 <= delay <= 0.6 for delay in delays)
