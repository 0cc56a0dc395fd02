"""Data connections that wait: how many are asked for, and that a user is never given a dead one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from gnar_lib.auth import ClientLogin, Session
from gnar_lib.errors import ConnClosed
from gnar_lib.net import SocketConn, deadline, descriptors, dial, listen
from gnar_lib.proto import Exchange, Heartbeat, recv, to_frame
from gnar_lib.proto.numbers import MAX_WAITING, WAITING_HEARTBEAT_S
from gnar_lib.server.upstream import waiting
from gnar_lib.server.upstream.waiting import (
    BUSY_WAITING,
    DEMAND_WINDOW_S,
    MIN_WAITING,
    WaitingPool,
)
from tests.helpers.budget import room_for
from tests.helpers.conns import accept
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0
SESSION = Session("a session", b"its key", frozenset())


@dataclass
class Table:
    """The waiting data connections of one client, over real TCP, with a clock that the test moves."""

    now_s: float = 1000.0
    told: list[int] = field(default_factory=list)
    conns: list[SocketConn] = field(default_factory=list)
    admitted: int = 0

    def __post_init__(self) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.waiting = WaitingPool(SESSION, self.told.append, lambda: self.now_s)

    def add(self) -> tuple[SocketConn, SocketConn]:
        """Add a data connection that waits; return the server's and the client's end."""
        theirs = dial(socket.AF_INET, self.listener.sock.getsockname())
        ours = accept(self.listener)
        self.conns += [ours, theirs]
        self.admitted += 1
        assert self.waiting.admit(ours, ClientLogin.waiting_message(SESSION, self.admitted))
        return ours, theirs

    def second(self, users: int = 0, count: int = 1) -> None:
        """Let `count` seconds pass, with so many users in each."""
        for _ in range(count):
            for _ in range(users):
                self.waiting.take()
            self.now_s += 1
            self.waiting.tend()

    def close(self) -> None:
        self.waiting.close()
        self.listener.close()
        for conn in self.conns:
            conn.close()


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    made.waiting.open()
    with deadline(TIMEOUT_S, "the test"):
        yield made
    made.close()


def is_ended(conn: SocketConn) -> bool:
    return conn.recv(1) == b""


# ---- demand ------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_before_there_is_a_proxy_and_2_then() -> None:
    table = Table()
    table.second(count=3)
    assert table.told == []
    table.waiting.open()
    assert table.told == [MIN_WAITING] == [2]
    table.close()
    assert table.told == [2, 0]


def test_number_follows_the_busiest_second_and_comes_down_a_minute_later(table: Table) -> None:
    table.second(users=5)
    assert table.told[-1] == BUSY_WAITING + 5
    table.second(users=1, count=DEMAND_WINDOW_S - 1)
    assert table.told[-1] == BUSY_WAITING + 5
    table.second(users=1)
    assert table.told[-1] == BUSY_WAITING + 1
    table.second(count=DEMAND_WINDOW_S)
    assert table.told[-1] == MIN_WAITING


def test_number_rises_while_users_come_and_is_told_once_each(table: Table) -> None:
    for _ in range(3):
        table.waiting.take()
    assert table.told == [2, 21, 22, 23]
    table.second()
    assert table.told == [2, 21, 22, 23]


def test_never_more_than_64_wait(table: Table) -> None:
    table.second(users=500)
    assert table.told[-1] == MAX_WAITING == 64
    ends = [table.add()[1] for _ in range(MAX_WAITING + 1)]
    assert len(table.waiting) == MAX_WAITING
    assert is_ended(ends[-1])


# ---- who gets one ------------------------------------------------------------------------------------------


def test_user_gets_the_youngest_and_each_goes_to_one_user(table: Table) -> None:
    (old, _), (young, _) = table.add(), table.add()
    assert [table.waiting.take(), table.waiting.take(), table.waiting.take()] == [young, old, None]


def test_conn_that_the_peer_closed_is_never_handed_out(table: Table) -> None:
    good, _ = table.add()
    dead, end = table.add()
    end.close()
    dead.wait_readable()
    assert table.waiting.take() is good
    assert dead.closed


def test_conn_that_the_peer_reset_is_never_handed_out(table: Table) -> None:
    dead, end = table.add()
    end.abort()
    dead.wait_readable()
    assert table.waiting.take() is None
    assert dead.closed


def test_conn_on_which_the_peer_spoke_out_of_turn_is_never_handed_out(table: Table) -> None:
    bad, end = table.add()
    end.sendall(b"x")
    bad.wait_readable()
    assert table.waiting.take() is None
    assert bad.closed


def test_conn_whose_heartbeat_is_not_acknowledged_is_never_handed_out(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = table.add()
    table.now_s += WAITING_HEARTBEAT_S
    table.waiting.tend()
    monkeypatch.setattr(SocketConn, "unacknowledged", lambda _: 1)
    assert table.waiting.take() is None
    assert len(table.waiting) == 1  # it may yet be heard from
    monkeypatch.undo()
    wait_until(lambda: not ours.unacknowledged(), "the peer has acknowledged the heartbeat")
    assert table.waiting.take() is ours


def test_conn_that_acknowledges_nothing_until_the_next_heartbeat_is_closed(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = table.add()
    monkeypatch.setattr(SocketConn, "unacknowledged", lambda _: 1)
    table.now_s += WAITING_HEARTBEAT_S
    table.waiting.tend()
    assert len(table.waiting) == 1
    table.now_s += WAITING_HEARTBEAT_S
    table.waiting.tend()
    assert len(table.waiting) == 0
    assert ours.closed


def test_conn_that_breaks_as_its_heartbeat_is_written_is_closed(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise ConnClosed("it broke just now")

    ours, _ = table.add()
    monkeypatch.setattr(SocketConn, "send_now", fail)
    table.now_s += WAITING_HEARTBEAT_S
    table.waiting.tend()
    assert len(table.waiting) == 0
    assert ours.closed


# ---- age and heartbeats ------------------------------------------------------------------------------------


def test_heartbeat_comes_every_10_s_and_stands_before_the_user(table: Table) -> None:
    ours, end = table.add()
    table.second(count=int(3 * WAITING_HEARTBEAT_S))
    wait_until(lambda: not ours.unacknowledged(), "the peer has acknowledged the heartbeat")
    given = table.waiting.take()
    assert given is ours
    given.sendall(to_frame(Exchange(conn_id="a", proxy_type="tcp")) + b"raw")
    assert [recv(end) for _ in range(4)] == [*[Heartbeat()] * 3, Exchange(conn_id="a", proxy_type="tcp")]
    assert end.recv(100) == b"raw"


def test_conn_that_waited_for_too_long_is_closed(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_AGE_S", 60.0)
    _, end = table.add()
    for _ in range(60):
        table.second()
        turn()
    assert len(table.waiting) == 1
    table.second()
    assert len(table.waiting) == 0
    while message := end.recv(5):
        assert message == to_frame(Heartbeat())


def test_no_proxy_left_closes_those_that_wait_and_those_that_still_come(table: Table) -> None:
    _, first = table.add()
    table.waiting.close()
    _, late = table.add()
    assert is_ended(first)
    assert is_ended(late)
    assert len(table.waiting) == 0
    assert table.waiting.take() is None
    table.waiting.open()
    fresh, _ = table.add()
    assert table.waiting.take() is fresh


# ---- when descriptors are short ----------------------------------------------------------------------------


def test_one_alone_waits_while_users_have_most_of_their_descriptors(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = table.add()
    room_for(monkeypatch, 1)
    assert descriptors.is_tight
    _, theirs = table.add()
    assert is_ended(theirs)
    table.second()
    assert table.told[-1] == 1
    assert table.waiting.take() is first
    fresh, _ = table.add()  # the one that was asked for
    table.second()
    assert table.waiting.take() is fresh


def test_those_that_wait_make_room_for_users_who_wait_for_descriptors(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, theirs = table.add()
    room_for(monkeypatch, 1)
    descriptors.wait("somebody", lambda: None)
    table.second()
    assert len(table.waiting) == 1  # a client would think that it cannot be opened
    table.second()
    table.second()
    assert is_ended(theirs)
    descriptors.leave("somebody")
