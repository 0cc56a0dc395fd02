"""Rates of counters that are looked at now and then."""

from __future__ import annotations

from gnar_lib.terminal import rates
from gnar_lib.terminal.rates import Rates
from tests.helpers.clock import Clock


def test_a_rate_is_the_growth_in_a_second() -> None:
    clock = Clock()
    found = Rates(clock)
    assert found.of("web", 100, 0) == (0.0, 0.0)
    clock.now_s += 2
    assert found.of("web", 300, 10) == (100.0, 5.0)
    assert found.of("other", 5, 5) == (0.0, 0.0)


def test_a_look_soon_after_another_shows_the_same() -> None:
    clock = Clock()
    found = Rates(clock)
    found.of("web", 0)
    clock.now_s += 1
    assert found.of("web", 1000) == (1000.0,)
    clock.now_s += 0.1
    assert found.of("web", 5000) == (1000.0,)
    clock.now_s += 0.9
    assert found.of("web", 5000) == (4000.0,)


def test_counters_that_nobody_looks_at_are_forgotten() -> None:
    clock = Clock()
    found = Rates(clock)
    for number in range(100):
        found.of(number, 0)
    clock.now_s += rates.FORGET_S
    found.of("web", 0)
    assert [*found._last] == ["web"]
