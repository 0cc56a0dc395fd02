"""Users have a part of the descriptors, and wait when it is used up; the rest is for everything else."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import gevent
import pytest
from gevent.hub import get_hub

from gnar_lib.errors import DialError
from gnar_lib.events import DescriptorsShort, subscribe, unsubscribe
from gnar_lib.net import Crew, SocketConn, descriptors, dial, greenlets, listen, wait_for_room
from gnar_lib.net.descriptors import MAX_IN_LINE, Descriptors
from gnar_lib.proxy.splice import Pipe
from tests.helpers.budget import room_for
from tests.helpers.conns import LOOPBACK, TIMEOUT_S, V4, tcp_pair, unix_pair
from tests.helpers.loop import turn, wait_until


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield
        wait_until(lambda: not descriptors.is_short, "nobody waits")


@pytest.mark.parametrize(
    ("limit", "reserve"), [(20, 10), (52, 26), (100, 32), (400, 100), (1024, 256), (1 << 20, 1024)]
)
def test_a_part_of_every_limit_is_a_reserve(limit: int, reserve: int) -> None:
    assert Descriptors(lambda: limit).reserve == reserve


def test_what_others_have_opened_counts() -> None:
    open_now = len(os.listdir("/dev/fd")) - 1
    budget = Descriptors(lambda: 4 * open_now + 100)
    assert budget.has_room(budget.limit - budget.reserve - open_now)
    assert not budget.has_room(budget.limit - budget.reserve - open_now + 1)


def test_sockets_and_pipes_are_counted_from_opening_to_closing() -> None:
    gc.collect()  # what other tests have left would be closed meanwhile
    before = descriptors.taken
    conns = [*tcp_pair(), *unix_pair()]
    listener = listen(LOOPBACK, 0)
    pipe = Pipe()
    assert descriptors.taken == before + 7
    pipe.discard()
    for conn in (*conns, *conns):
        conn.close()
    listener.close()
    listener.close()
    assert descriptors.taken == before


def test_listeners_for_users_pause_in_turn_and_go_on_as_soon_as_one_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[DescriptorsShort] = []
    subscribe(DescriptorsShort, told.append)
    crew, served = Crew("test"), [list[SocketConn](), list[SocketConn]()]
    listeners = [listen(LOOPBACK, 0), listen(LOOPBACK, 0)]
    users = [dial(V4, listener.sock.getsockname()) for listener in listeners for _ in range(4)]
    room_for(monkeypatch, 3)
    for listener, conns in zip(listeners, served, strict=True):
        listener.serve(crew, conns.append, is_for_users=True)
    wait_until(lambda: len(descriptors._line) == len(listeners), "both wait")
    assert sum(map(len, served)) == 2  # a user needs two: the second is for the data connection
    for _ in range(6):
        max(served, key=len).pop().close()
        wait_until(lambda: sum(map(len, served)) == 2, "the next one is served")
    assert len(told) >= 1
    assert "raise the limit" in told[0].reason
    unsubscribe(DescriptorsShort, told.append)
    for conn in (*users, *served[0], *served[1]):
        conn.close()
    for listener in listeners:
        listener.close()


def test_control_ports_go_on_while_users_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, seen = Crew("test"), list[SocketConn]()
    listener = listen(LOOPBACK, 0)
    room_for(monkeypatch, 0)
    listener.serve(crew, seen.append)
    user = dial(V4, listener.sock.getsockname())
    wait_until(lambda: seen, "accepted")
    listener.close()
    for conn in (user, *seen):
        conn.close()


def test_greenlet_waits_until_there_is_room_or_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = tcp_pair()
    room_for(monkeypatch, 0)
    waiting = gevent.spawn(wait_for_room, 1)
    turn()
    assert descriptors.is_short
    assert not waiting.ready()
    near.close()
    waiting.get()
    far.close()
    room_for(monkeypatch, 0)
    monkeypatch.setattr(greenlets, "ROOM_TIMEOUT_S", 0.01)
    with pytest.raises(DialError, match="raise the limit"):
        wait_for_room(1)


def test_greenlets_that_wait_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, 0)
    crew = Crew("test")
    for _ in range(2 * MAX_IN_LINE):  # the users of a hostile server, say
        crew.spawn(wait_for_room, 1)
    turn()
    assert len(crew) == MAX_IN_LINE
    crew.kill()
    turn()
    assert not descriptors.is_short


def test_a_greenlet_that_is_ended_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, 0)
    waiting = gevent.spawn(wait_for_room, 1)
    turn()
    waiting.kill()
    assert not descriptors.is_short
    assert get_hub() is not None


def test_bulk_takes_no_pipe_when_room_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnar_lib.proxy.splice._spare", [])
    room_for(monkeypatch, 1)
    assert Pipe.take() is None
