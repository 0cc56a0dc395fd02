"""Rates and charts, from counts that a test moves and a clock that it sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gnar_lib.pio import rates as rates_module
from gnar_lib.pio.meter import LiveConnection, Meter
from gnar_lib.pio.rates import AT_ONCE, POINTS, STEPS_OF_POINT, Point, Sampler
from tests.helpers.clock import Clock

USER = ("192.0.2.1", 4000)


class Sampled:
    """A meter of all, one of a proxy, and who samples them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.total = Meter()
        self.proxies = [Meter(self.total)]
        self.stack = ExitStack()
        self.sampler = Sampler(self.total, lambda: self.proxies)

    def come(self) -> LiveConnection:
        return self.stack.enter_context(self.proxies[0].connection(USER, lambda: None))

    def step(self, count: int = 1, seconds: float = 1.0, move: Callable[[], object] = lambda: None) -> None:
        for _ in range(count):
            move()
            self.clock.now_s += seconds
            self.sampler.sample()


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sampled]:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    sampled = Sampled(clock)
    sampled.sampler.sample()
    yield sampled
    sampled.stack.close()


def test_rates_are_those_of_the_last_step_however_long_it_was(sampled: Sampled) -> None:
    live = sampled.come()
    sampled.step()
    live.up.bytes += 3000
    live.down.bytes += 500
    sampled.step(seconds=2)
    for rates in (
        sampled.sampler.total,
        sampled.sampler.course(sampled.proxies[0]),
        sampled.sampler.movement(live),
    ):
        assert (rates.rate_up, rates.rate_down) == (1500, 250)
    sampled.step()
    movement = sampled.sampler.movement(live)
    assert (movement.rate_up, sampled.sampler.total.rate_down) == (0, 0)
    assert movement.moved_s == sampled.clock.now_s - 1


def test_a_connection_that_leaves_takes_no_bytes_from_the_rates(sampled: Sampled) -> None:
    live = sampled.come()
    live.down.bytes += 700
    sampled.step()
    live.down.bytes += 300
    sampled.stack.close()
    sampled.proxies.pop().end()
    sampled.step()
    assert sampled.sampler.total.rate_down == 300
    assert sampled.sampler.movement(live).rate_down == 0


def test_what_has_gone_is_forgotten(sampled: Sampled) -> None:
    sampled.come()
    sampled.step()
    assert len(sampled.sampler._courses) == 2
    assert len(sampled.sampler._movements) == 1
    sampled.stack.close()
    sampled.proxies.clear()
    sampled.step()
    assert [*sampled.sampler._courses] == [sampled.total]
    assert sampled.sampler._movements == {}


def test_a_chart_has_a_point_for_five_steps_and_sixty_points(sampled: Sampled) -> None:
    live = sampled.come()

    def move() -> None:
        live.up.bytes += 10

    sampled.step(STEPS_OF_POINT - 2, move=move)
    course = sampled.sampler.course(sampled.proxies[0])
    assert (len(course.points), sampled.sampler.points) == (0, 0)
    sampled.step(move=move)
    assert (len(course.points), sampled.sampler.points) == (1, 1)
    assert course.points[-1] == Point(10, 0, 1)  # the first of the steps was that of the fixture
    sampled.step(STEPS_OF_POINT * POINTS)
    assert [*course.points] == [Point(0, 0, 1)] * POINTS


def test_others_have_their_turn_while_many_connections_are_sampled(
    sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    monkeypatch.setattr(rates_module, "give_way", lambda: turns.append(len(sampled.sampler._movements)))
    for _ in range(2 * AT_ONCE + 1):
        sampled.come()
    sampled.step()
    assert turns == [0, 0]  # what was known before is told until the sample is complete
    assert len(sampled.sampler._movements) == 2 * AT_ONCE + 1
