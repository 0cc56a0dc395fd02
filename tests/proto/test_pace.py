"""The pace of messages: how much is worked off in one turn of the loop, and who goes on first."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib.net import SocketConn
from gnar_lib.proto import Heartbeat, to_frame
from gnar_lib.proto import pace as pace_module
from gnar_lib.proto.pace import MAX_CREDIT_S, MESSAGE_S, SHARE, Pace, recv_paced
from tests.helpers.clock import Clock
from tests.helpers.loop import turn, wait_until

COST_S = MAX_CREDIT_S / 4
TIMEOUT_S = 10.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers() -> Iterator[list[gevent.Greenlet[..., None]]]:
    greenlets: list[gevent.Greenlet[..., None]] = []
    yield greenlets
    gevent.killall(greenlets)


def test_work_in_one_turn_is_bounded_and_goes_on_as_time_goes_by(
    clock: Clock, workers: list[gevent.Greenlet[..., None]]
) -> None:
    pace = Pace(clock)
    done: list[str] = []

    def work(name: str) -> None:
        for _ in range(100):
            pace.take(COST_S)
            done.append(name)

    workers += [gevent.spawn(work, name) for name in "ab"]
    turn()
    assert len(done) == 4
    for _ in range(5):
        before = len(done)
        clock.now_s += 4 * COST_S / SHARE
        wait_until(lambda before=before: len(done) >= before + 4, "the credit is used up")  # type: ignore[misc]
        turn()
        assert len(done) == before + 4
    assert done[4:] == ["b", "a"] * 10 or done[4:] == ["a", "b"] * 10


def test_credit_that_nobody_uses_is_no_more_than_one_turn_may_have(clock: Clock) -> None:
    pace = Pace(clock)
    clock.now_s += 3600
    for _ in range(4):
        pace.take(COST_S)
    waiting = gevent.spawn(pace.take, COST_S)
    turn()
    assert not waiting.ready()
    waiting.kill()


def test_one_who_is_ended_while_waiting_is_forgotten(clock: Clock) -> None:
    pace = Pace(clock)
    pace.take(MAX_CREDIT_S)
    first, second = gevent.spawn(pace.take, COST_S), gevent.spawn(pace.take, COST_S)
    turn()
    first.kill()
    clock.now_s += COST_S / SHARE
    second.join(TIMEOUT_S)
    assert second.successful()


def test_messages_are_received_at_the_pace(
    clock: Clock, workers: list[gevent.Greenlet[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "pace", Pace(clock))
    ours, theirs = (SocketConn(each) for each in socket.socketpair())
    got = []

    def receive() -> None:
        while True:
            got.append(recv_paced(ours))

    theirs.sendall(to_frame(Heartbeat()) * 1000)
    workers.append(gevent.spawn(receive))
    turn()
    assert len(got) == round(MAX_CREDIT_S / MESSAGE_S)
    for conn in (ours, theirs):
        conn.close()
