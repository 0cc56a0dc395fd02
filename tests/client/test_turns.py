"""Data connections that cannot be opened: how often that is tried, and what is said."""

from __future__ import annotations

import pytest

from gnar_lib import events
from gnar_lib.client.turns import USER_PATIENCE_S, Turns
from gnar_lib.errors import DialError, ExhaustedError, RefusedError
from gnar_lib.events import DataConnsFail, DataConnsWork
from tests.helpers.clock import Clock
from tests.helpers.events import hear


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 1.0)
    return Clock()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, DataConnsFail, DataConnsWork)


def fail(turns: Turns, error: DialError | None = None) -> None:
    with pytest.raises(DialError), turns.trying():
        raise error or RefusedError("refused")


def succeed(turns: Turns) -> None:
    with turns.trying():
        pass


def next_turn(turns: Turns, clock: Clock) -> float:
    """Take the next turn, whenever it is; return how many seconds that took."""
    wait_s = turns.take(1000.0)
    assert wait_s is not None
    clock.now_s += wait_s
    return wait_s


def test_nobody_waits_while_tries_succeed(clock: Clock) -> None:
    turns = Turns(clock)
    for _ in range(100):
        assert turns.take() == 0.0
        succeed(turns)


def test_pause_doubles_from_half_a_second_to_30_s_and_is_halved_by_each_success(clock: Clock) -> None:
    turns = Turns(clock)
    pauses = []
    for _ in range(8):
        clock.now_s += 0.001
        fail(turns)
        pauses.append(next_turn(turns, clock))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pauses.clear()
    for _ in range(8):
        succeed(turns)
        pauses.append(next_turn(turns, clock))
    assert pauses == [15.0, 7.5, 3.75, 1.875, 0.9375, 0.46875, 0.0, 0.0]


def test_tries_that_began_together_fail_as_one(clock: Clock) -> None:
    turns = Turns(clock)
    began_s = clock.now_s
    clock.now_s += 1
    for _ in range(20):
        turns.note_failure(began_s, RefusedError("refused"))
    assert next_turn(turns, clock) == 0.5


def test_users_on_demand_wait_for_their_turn_unless_it_comes_too_late(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("gevent.sleep", waited.append)
    turns = Turns(clock)
    turns.wait()
    for _ in range(3):  # the pause is 2 s now
        clock.now_s += 1
        fail(turns)
    for _ in range(int(USER_PATIENCE_S / 2)):
        turns.wait()
    assert waited == [2.0, 4.0, 6.0, 8.0]
    with pytest.raises(DialError, match=r"data connections fail, the next try is in 10\.0 s"):
        turns.wait()


def test_second_failure_in_a_row_is_told_with_what_to_do_and_so_is_the_end(
    clock: Clock, said: list[events.Event]
) -> None:
    turns = Turns(clock)
    for error in (RefusedError("refused"), RefusedError("refused"), ExhaustedError("no port")):
        clock.now_s += 1
        fail(turns, error)
    firewall, ports = said
    assert isinstance(firewall, DataConnsFail)
    assert isinstance(ports, DataConnsFail)
    assert (firewall.retry_s, ports.retry_s) == (1.0, 2.0)
    assert firewall.reason == (
        "refused; does a firewall limit new connections? With -m one connection carries everything"
    )
    assert ports.reason.startswith("no port; no local port or descriptor is left")
    said.clear()
    for _ in range(4):
        next_turn(turns, clock)
        succeed(turns)
    assert said == [DataConnsWork()]


def test_firewall_that_counts_every_attempt_lets_a_client_in_again(clock: Clock) -> None:
    """As `ufw limit` does: refused when there were six attempts or more in 30 s, refused ones included."""
    turns, attempts, opened = Turns(clock), list[float](), 0
    for _ in range(600):  # seconds, in each of which the pool wants 20 more
        clock.now_s += 1.0
        for _ in range(20):
            if turns.take() is None:
                break
            attempts.append(clock.now_s)
            if sum(at_s > clock.now_s - 30 for at_s in attempts) > 6:
                fail(turns)
            else:
                succeed(turns)
                opened += 1
    assert opened > 40
