"""The share of the loop that HTTP has: how much is done in one round of it, and whose turn is next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby

import gevent
import pytest

from gnar_lib.errors import ConnClosed
from gnar_lib.http import Limits, Request, Response, paced, service
from gnar_lib.http import share as share_module
from gnar_lib.http.share import MAX_CREDIT_S, Share
from gnar_lib.http.share import share as process_share
from gnar_lib.net import give_way
from tests.helpers.clock import Clock
from tests.helpers.loop import wait_until
from tests.helpers.web import echo_routes, responses, serving

COST_S = MAX_CREDIT_S / 3.5  # so that the fourth work of a round is the last
# A mark of a round may stand at its beginning, and the next one at the end of the next round.
MOST_BETWEEN_MARKS = 2 * 4
MARK = "|"
Spawn = Callable[..., "gevent.Greenlet[..., None]"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def done() -> list[str]:
    """Return the list of what has been done, with a mark for each round of the loop."""
    return []


@pytest.fixture
def spawn(clock: Clock, done: list[str]) -> Iterator[Spawn]:
    """Return what begins greenlets, which end behind the test; one marks rounds, and lets time pass."""
    greenlets: list[gevent.Greenlet[..., None]] = []

    def begin(run: Callable[..., None], *args: object) -> gevent.Greenlet[..., None]:
        greenlets.append(gevent.spawn(run, *args))
        return greenlets[-1]

    begin(mark_rounds, clock, done)
    yield begin
    gevent.killall(greenlets)


def mark_rounds(clock: Clock, done: list[str]) -> None:
    while True:
        give_way()
        clock.now_s += COST_S
        done.append(MARK)


def most_between_marks(done: list[str]) -> int:
    return max(len([*group]) for is_mark, group in groupby(done, MARK.__eq__) if not is_mark)


def works(done: list[str]) -> list[str]:
    return [each for each in done if each != MARK]


def test_turns_in_one_round_of_the_loop_are_bounded(clock: Clock, done: list[str], spawn: Spawn) -> None:
    share = Share(clock)

    def work() -> None:
        for _ in range(5):
            share.take("a")
            clock.now_s += COST_S
            done.append("a")

    for _ in range(40):
        spawn(work)
    wait_until(lambda: len(works(done)) == 200, "all is done")
    assert most_between_marks(done) <= MOST_BETWEEN_MARKS


def test_networks_take_turns(clock: Clock, done: list[str], spawn: Spawn) -> None:
    share = Share(clock)

    def work(network: str) -> None:
        share.take(network)
        clock.now_s += COST_S
        done.append(network)

    share._credit_s = -100.0  # so that nobody has a turn before all are there
    for network in [*"a" * 100, "b"]:
        spawn(work, network)
    wait_until(lambda: len(share._waiters) == 101, "all wait")
    share._credit_s = MAX_CREDIT_S
    share._timer.stop()
    share._set_timer()
    wait_until(lambda: len(works(done)) == 101, "all is done")
    assert "b" in works(done)[:2]


def test_a_long_loop_gives_way_when_its_turn_is_over(clock: Clock, done: list[str], spawn: Spawn) -> None:
    share = Share(clock)

    def work() -> None:
        share.take("a")
        for _ in range(100):
            clock.now_s += COST_S
            done.append("a")
            share.give_way()

    spawn(work)
    wait_until(lambda: len(works(done)) == 100, "all is done")
    assert most_between_marks(done) <= MOST_BETWEEN_MARKS
    assert done.index(MARK, done.index("a")) - done.index("a") == 4, "a turn is not given up before its end"


def test_who_has_waited_for_something_else_needs_another_turn(clock: Clock, spawn: Spawn) -> None:
    share, begun, go_on, took = Share(clock), gevent.event.Event(), gevent.event.Event(), []

    def work() -> None:
        share.take("a")
        begun.set()
        go_on.wait()
        share.give_way()
        took.append(share._working)

    greenlet = spawn(work)
    begun.wait()
    go_on.set()
    greenlet.join()
    assert took == [greenlet]


def test_who_is_ended_in_the_queue_is_forgotten(clock: Clock, spawn: Spawn) -> None:
    share, done = Share(clock), []

    def work(name: str) -> None:
        share.take(name)
        done.append(name)

    first, second = spawn(work, "a"), spawn(work, "b")
    gevent.sleep(0)
    first.kill()
    second.join()
    assert done == ["b"]
    assert not share._queues
    assert not share._waiters


def test_an_error_is_not_raised_where_the_wait_has_ended_meanwhile(clock: Clock, spawn: Spawn) -> None:
    share, raised = Share(clock), []
    share._credit_s = -1.0  # for ever, as no time goes by

    def work() -> None:
        with suppress(ZeroDivisionError):
            share.take("a")
        try:
            gevent.sleep(0.02)  # as a greenlet that serves somebody else by now
        except ConnClosed as exc:
            raised.append(exc)

    greenlet = spawn(work)
    gevent.sleep(0)
    gevent.get_hub().loop.run_callback(greenlet.throw, ZeroDivisionError)
    share.end_wait(greenlet, ConnClosed("the end"))
    greenlet.join()
    assert not raised


def test_a_conn_that_is_closed_for_another_one_waits_for_no_turn() -> None:
    with serving(limits=Limits(connections=3)) as served:
        held = Share(lambda: 0.0)
        held._credit_s = -1.0  # for ever, as no time goes by
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paced, "share", held)
            patch.setattr(share_module, "share", held)
            conns = [served.dial() for _ in range(20)]
            wait_until(lambda: len(held._waiters) == 3 == len(served.crew), "three are left")
            for conn in conns:
                conn.close()
            for each in [*held._waiters]:
                held.end_wait(each, ConnClosed("the end"))
            wait_until(lambda: not len(served.crew), "nobody is left")


def test_who_receives_a_body_gives_way_at_each_piece_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[None] = []
    monkeypatch.setattr(process_share, "give_way", lambda: ways.append(None))
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving() as served:
        (got,) = responses(served.ask(head + b"1\r\nx\r\n" * 100 + b"0\r\n\r\n"))
    assert got.body == b"x" * 100
    assert len(ways) >= 100


def test_requests_on_many_connections_are_answered_within_the_share(
    clock: Clock, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    share = Share(clock)
    monkeypatch.setattr(paced, "share", share)
    monkeypatch.setattr(service, "share", share)

    def handle(_request: Request) -> Response:
        clock.now_s += COST_S
        done.append("a")
        return Response(204)

    routes = echo_routes()
    routes.add("GET", "/costly", handle)
    with serving(routes) as served:
        marker = gevent.spawn(mark_rounds, clock, done)
        conns = [served.dial() for _ in range(50)]
        for conn in conns:
            conn.sendall(b"GET /costly HTTP/1.1\r\nHost: a\r\n\r\n" * 4)
        wait_until(lambda: len(works(done)) == 200, "all are answered")
        for conn in conns:
            conn.close()
        wait_until(lambda: not len(served.crew), "nobody is left")
        marker.kill()
    assert most_between_marks(done) <= MOST_BETWEEN_MARKS
