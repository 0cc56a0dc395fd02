"""Deadlines, and greenlets that have an owner."""

from __future__ import annotations

import weakref

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import DeadlineError
from gnar_lib.net import Crew, deadline
from tests.helpers.conns import TIMEOUT_S, Pair
from tests.helpers.loop import turn


def test_deadline_ends_a_wait_and_says_of_what(pair: Pair) -> None:
    with pytest.raises(DeadlineError, match=r"^reading took longer than 0.01 s$"), deadline(0.01, "reading"):
        pair[0].recv(1)
    pair[1].sendall(b"x")
    assert pair[0].recv(1) == b"x"


def test_deadline_of_another_block_is_not_taken_for_ones_own(pair: Pair) -> None:
    with pytest.raises(DeadlineError, match="outer"), deadline(0.01, "outer"), deadline(5, "inner"):
        pair[0].recv(1)


def test_deadline_that_was_kept_leaves_nothing_behind(pair: Pair) -> None:
    with deadline(0.01, "nothing"):
        pass
    gevent.sleep(0.02)  # longer than the deadline, which would end this wait
    assert pair[0].recv_now(1) is None


def test_kill_ends_all_where_they_wait_and_their_finally_runs(pair: Pair) -> None:
    crew, closed = Crew("test"), list[int]()

    def wait(number: int) -> None:
        try:
            if number == 1:
                pair[0].recv(1)
            gevent.sleep(TIMEOUT_S)
        finally:
            closed.append(number)

    for number in range(5):
        crew.spawn(wait, number)
    assert len(crew) == 5
    assert not crew.wait_empty(0)
    turn()
    crew.kill()
    assert crew.wait_empty(TIMEOUT_S)
    assert sorted(closed) == [0, 1, 2, 3, 4]
    assert len(crew) == 0
    pair[1].sendall(b"x")
    assert pair[0].recv(1) == b"x"


def test_kill_spares_the_one_who_calls_it() -> None:
    crew, ended = Crew("test"), list[str]()

    def kill() -> None:
        crew.kill()
        turn()
        ended.append("killer")

    crew.spawn(gevent.sleep, TIMEOUT_S)
    crew.spawn(kill)
    assert crew.wait_empty(TIMEOUT_S)
    assert ended == ["killer"]


def test_kill_ends_also_those_that_have_not_begun() -> None:
    crew, began = Crew("test"), list[int]()
    crew.spawn(began.append, 1)
    crew.spawn(gevent.sleep, TIMEOUT_S)
    crew.kill()
    assert crew.wait_empty(1)


def test_greenlets_are_used_again_and_keep_nothing_of_the_job_before() -> None:
    crew, names = Crew("test"), set[int]()
    for _ in range(50):
        crew.spawn(lambda: names.add(id(gevent.getcurrent())))
        assert crew.wait_empty(TIMEOUT_S)
    assert len(names) < 50
    before = net.busy_greenlets()
    crew.spawn(gevent.sleep, TIMEOUT_S)
    turn()
    assert net.busy_greenlets() == before + 1
    crew.kill()
    assert crew.wait_empty(TIMEOUT_S)
    assert net.busy_greenlets() <= before
    thing = Crew("held by nobody else")
    crew.spawn(lambda _: None, thing)
    assert crew.wait_empty(TIMEOUT_S)
    gone = weakref.ref(thing)
    del thing
    assert gone() is None


def test_greenlet_that_is_done_keeps_nothing_of_whose_method_it_ran() -> None:
    crew, client = Crew("test"), Crew("a client that leaves")
    crew.spawn(client.kill)
    assert crew.wait_empty(TIMEOUT_S)
    gevent.sleep(0)
    gone = weakref.ref(client)
    del client
    assert gone() is None
