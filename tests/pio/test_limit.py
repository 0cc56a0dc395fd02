"""The speed limit: its arithmetic with a clock that the test moves, and waiting greenlets in real time."""

from __future__ import annotations

import random
import time

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib.pio.limit import GRANT_S, Bucket, Tokens
from tests.helpers.clock import Clock
from tests.helpers.loop import turn

RATES = [10_000, 1_000_000, 1_000_000_000]


def transfer(tokens: Tokens, start: float, seconds: float, chunk: int, lateness_s: float = 0.0) -> float:
    """Move as much as the tokens allow, waking late by up to `lateness_s`; return the bytes moved."""
    late = random.Random(1)  # noqa: S311  (the same every time)
    now, moved = start, 0.0
    tokens.advance(now, wanted=False)
    while True:
        if tokens.available >= chunk:
            tokens.spend(chunk)
            moved += chunk
            continue
        now += tokens.seconds_until(chunk) + 1e-9 + late.uniform(0, lateness_s)
        if now > start + seconds:
            return moved
        tokens.advance(now, wanted=True)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("lateness_s", [0.0, 0.005, 0.3])
@pytest.mark.parametrize("idle_s", [0.0, 0.5, 60.0])
def test_ten_seconds_are_within_3_percent(rate: int, lateness_s: float, idle_s: float) -> None:
    tokens = Tokens(rate, 0.0)
    moved = transfer(tokens, idle_s, 10.0, int(rate * GRANT_S / 10), lateness_s)
    assert moved == pytest.approx(10 * rate, rel=0.03)


@pytest.mark.parametrize("rate", RATES)
def test_ten_seconds_within_a_long_transfer_are_within_3_percent(rate: int) -> None:
    tokens = Tokens(rate, 0.0)
    transfer(tokens, 0.0, 2.0, rate // 1000)
    assert transfer(tokens, 2.0, 10.0, rate // 1000) == pytest.approx(10 * rate, rel=0.03)


def test_an_idle_bucket_lets_one_second_through_at_once_and_then_half_the_rate() -> None:
    rate = 1_000_000
    tokens = Tokens(rate, 0.0)
    through = [transfer(tokens, at, 0.0 if not at else 0.999, 100) for at in (0, 1e-6, 1, 2)]
    assert through[0] == pytest.approx(rate, rel=0.01)
    assert through[1] == pytest.approx(rate / 2, rel=0.01)
    assert through[2] == pytest.approx(rate / 2, rel=0.01)
    assert through[3] == pytest.approx(rate, rel=0.01)


def test_savings_grow_back_while_nobody_wants_anything() -> None:
    tokens = Tokens(1000, 0.0)
    transfer(tokens, 0.0, 3.0, 10)
    tokens.advance(10.0, wanted=False)
    assert tokens.available == pytest.approx(1100)  # the burst, and the slack


def test_a_stall_of_the_process_costs_no_throughput() -> None:
    tokens = Tokens(1000, 0.0)
    moved = transfer(tokens, 0.0, 5.0, 10)
    tokens.advance(5.9, wanted=True)
    assert moved + tokens.available == pytest.approx(5900, rel=0.01)


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.integers(0, 5000)), min_size=1, max_size=60)
)
def test_no_history_gives_more_than_the_rate_and_one_burst(steps: list[tuple[float, bool, int]]) -> None:
    rate = 1000
    tokens = Tokens(rate, 0.0)
    now = moved = 0.0
    for seconds, wanted, want in steps:
        now += seconds
        tokens.advance(now, wanted=wanted)
        count = min(want, int(tokens.available))
        if count > 0:
            tokens.spend(count)
            moved += count
        assert moved <= rate * (now + 1) + 1
        assert -1e-6 <= tokens.credit <= rate + 1e-6
        assert -1e-6 <= tokens.debt <= rate + 1e-6


# ---- with greenlets --------------------------------------------------------------------------------


def test_two_connections_share_the_rate_in_real_time() -> None:
    rate, seconds = 2_000_000, 2.0  # the time after which a burst is paid back
    bucket, moved = Bucket(rate), [0, 0]
    end = time.monotonic() + seconds

    def copy(index: int) -> None:
        while time.monotonic() < end:
            moved[index] += bucket.take(65536)
            gevent.sleep(0)  # the other has its turn

    done = gevent.joinall([gevent.spawn(copy, 0), gevent.spawn(copy, 1)], timeout=10, raise_error=True)
    assert len(done) == 2
    # The last grants come up to 50 ms late. A process that is held up has less, since nobody asks meanwhile.
    assert 0.5 < sum(moved) / (rate * seconds) < 1.1
    assert min(moved) / max(moved) > 0.9


def test_who_asks_for_little_at_a_time_gets_no_less() -> None:
    bucket = Bucket(4_000_000)
    drain(bucket)
    moved = {1000: 0, 20_000: 0, 65_536: 0}
    end = time.monotonic() + 1.0

    def copy(want: int) -> None:
        while time.monotonic() < end:
            moved[want] += bucket.take(want)

    gevent.joinall([gevent.spawn(copy, want) for want in moved], timeout=10, raise_error=True)
    assert min(moved.values()) > 0.8 * max(moved.values())  # the last turn may be cut short


def drain(bucket: Bucket) -> None:
    """Take all tokens that an idle bucket has."""
    while bucket.take_now(1000):
        pass


def test_a_grant_is_small_and_comes_soon_at_10_kb_per_second() -> None:
    bucket = Bucket(10_000)
    drain(bucket)
    before = time.monotonic()
    assert 1 <= bucket.take(1_000_000) <= 500
    assert time.monotonic() - before < 10  # of the 100 that all of it takes


def test_who_asks_first_is_served_first() -> None:
    bucket = Bucket(100_000)
    drain(bucket)
    order: list[int] = []

    def take(index: int) -> None:
        bucket.take(1000)
        order.append(index)

    gevent.joinall([gevent.spawn(take, index) for index in range(5)], timeout=10, raise_error=True)
    assert order == [0, 1, 2, 3, 4]


def test_who_is_ended_while_waiting_leaves_the_queue() -> None:
    bucket = Bucket(10_000)
    drain(bucket)
    first, second = gevent.spawn(bucket.take, 400), gevent.spawn(bucket.take, 400)
    turn()
    first.kill()
    assert second.get(timeout=5) == 400
    assert "0 waiting" in repr(bucket)


def test_a_datagram_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_off() -> None:
    clock = Clock()
    bucket = Bucket(1000, clock=clock)
    assert bucket.take_now(5000)
    clock.now_s += 4
    assert not bucket.take_now(1)
    clock.now_s += 4
    assert bucket.take_now(1)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Bucket(0)


def test_who_finds_less_to_read_has_as_many_bytes_of_a_limit() -> None:
    """Its turn is broken off whenever it has to wait for more, and goes on when more is there."""
    bucket, moved = Bucket(4_000_000), {"whole": 0, "parts": 0}
    bucket.take_now(4_000_000)

    def copy(name: str, chunk: int) -> None:
        while sum(moved.values()) < 4_000_000:
            left = chunk
            while left:
                granted = bucket.take(left)
                left -= granted
                moved[name] += granted
            gevent.sleep(0)  # more is there in the next turn of the loop

    copying = [gevent.spawn(copy, "whole", 64 * 1024), gevent.spawn(copy, "parts", 40 * 1024)]
    gevent.joinall(copying, timeout=20, raise_error=True)
    assert min(moved.values()) / max(moved.values()) > 0.9
    assert len(bucket._unused) <= 2
