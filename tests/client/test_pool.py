"""The client's pool: as many data connections wait as the server wants; one that got a user is replaced."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from gevent.event import Event

from gnar_lib.client.pool import WaitingPool
from gnar_lib.client.turns import Turns
from gnar_lib.errors import DialError
from gnar_lib.net import Conn, Crew, SocketConn, deadline, dial, listen
from gnar_lib.proto import Exchange, Heartbeat, Login, send
from gnar_lib.proto.numbers import MAX_WAITING
from tests.helpers.budget import room_for
from tests.helpers.conns import accept
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0
SILENCE_S = 30.0
USER = Exchange(conn_id="-", proxy_type="tcp", proxy_name="blog", user="192.0.2.1:4000")


@dataclass
class Server:
    """The server that a pool dials over real sockets; `ends` holds the accepted conns in their order."""

    ends: list[SocketConn] = field(default_factory=list)
    served: list[tuple[Conn, Exchange]] = field(default_factory=list)
    failures: int = 0  # how many of the next dials fail
    may_dial: Event = field(default_factory=Event)
    now_s: float = 1000.0  # as the pool's turns see it

    def __post_init__(self) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.crew = Crew("user")
        self.pool = WaitingPool(
            self.crew, Turns(lambda: self.now_s), self._open_one, self._on_user, SILENCE_S
        )
        self.may_dial.set()

    def _open_one(self) -> Conn:
        self.may_dial.wait()
        if self.failures:
            self.failures -= 1
            raise DialError("the server is away")
        conn = dial(socket.AF_INET, self.listener.sock.getsockname())
        self.ends.append(accept(self.listener))
        return conn

    def _on_user(self, conn: Conn, exchange: Exchange) -> None:
        self.served.append((conn, exchange))
        conn.close()

    def settle(self) -> None:
        """Wait until every greenlet of the pool waits for a user, or has ended."""
        wait_until(lambda: len(self.crew) == len(self.pool), "every greenlet waits for a user or has ended")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with deadline(TIMEOUT_S, "the test"):
        yield made
        made.pool.close()
        made.crew.wait_empty()
    made.listener.close()
    for end in made.ends:
        end.close()


def test_as_many_wait_as_the_server_wants(server: Server) -> None:
    server.pool.want(3)
    server.settle()
    assert len(server.pool) == len(server.ends) == 3
    server.pool.want(2)  # fewer: those that wait stay, the server closes what it does not want
    server.settle()
    assert len(server.pool) == 3


def test_never_more_than_64_wait_whatever_the_server_says(server: Server) -> None:
    server.pool.want(1_000_000)
    server.settle()
    assert len(server.pool) == MAX_WAITING == 64


def test_user_is_served_on_the_conn_that_waited_and_another_takes_its_place(server: Server) -> None:
    server.pool.want(1)
    server.settle()
    send(server.ends[0], Heartbeat())
    send(server.ends[0], USER)
    wait_until(lambda: server.served, "the user is served")
    server.settle()
    ((conn, exchange),) = server.served
    assert exchange == USER
    assert conn.getpeername() == server.listener.sock.getsockname()
    assert (len(server.pool), len(server.ends)) == (1, 2)


def test_conn_that_ended_is_replaced_with_the_next_tick_and_not_before(server: Server) -> None:
    server.pool.want(2)
    server.settle()
    server.ends[0].close()
    wait_until(lambda: len(server.pool) == 1, "the pool has noticed the end")
    server.settle()
    assert (len(server.pool), len(server.ends)) == (1, 2)
    server.now_s += 1
    server.pool.tend(refill=True)
    server.settle()
    assert (len(server.pool), len(server.ends)) == (2, 3)


def test_dials_that_fail_are_tried_again_one_by_one_and_ever_less_often(server: Server) -> None:
    server.failures = 1000
    server.pool.want(20)
    server.settle()
    assert server.failures == 980
    for _ in range(100):
        server.now_s += 1
        server.pool.tend(refill=True)
        server.settle()
    assert 970 < server.failures < 980  # a try each second would be 880
    server.failures = 0
    for _ in range(100):
        server.now_s += 1
        server.pool.tend(refill=True)
        server.settle()
    assert len(server.pool) == 20


@pytest.mark.parametrize("heartbeats", [0, 1])
def test_conns_that_end_as_soon_as_they_are_there_are_opened_ever_less_often(
    heartbeats: int, server: Server
) -> None:
    server.pool.want(5)
    server.settle()
    for _ in range(30):
        for end in server.ends:
            for _ in range(heartbeats if not end.closed else 0):
                send(end, Heartbeat())
            end.close()
        wait_until(lambda: not len(server.pool), "the pool has noticed the end")
        server.settle()
        server.now_s += 1
        server.pool.tend(refill=True)
        server.settle()
    assert len(server.ends) < 15


def test_conns_on_the_way_are_counted(server: Server) -> None:
    server.may_dial.clear()
    server.pool.want(2)
    server.pool.want(2)
    server.pool.tend(refill=True)
    server.may_dial.set()
    server.settle()
    assert len(server.pool) == 2


def test_silent_conn_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pool.want(1)
    server.settle()
    server.pool.tend(refill=True)
    assert len(server.pool) == 1
    monkeypatch.setattr(server.pool, "_silence_s", -1.0)
    server.pool.tend(refill=True)
    wait_until(lambda: len(server.ends) > 1 or not len(server.pool), "the conn is given up")
    with pytest.raises(Exception, match="reset"):
        server.ends[0].recv(1)


def test_conn_on_which_something_else_comes_is_closed(server: Server) -> None:
    server.pool.want(1)
    server.settle()
    send(server.ends[0], Login(token="", timestamp=0))
    assert server.ends[0].recv(1) == b""
    server.settle()
    assert len(server.pool) == 0
    assert server.served == []


def test_closed_pool_closes_those_that_wait_and_those_on_the_way(server: Server) -> None:
    server.pool.want(1)
    server.settle()
    server.may_dial.clear()
    server.pool.want(2)
    turn()
    server.pool.close()
    server.may_dial.set()
    server.crew.wait_empty()
    assert [end.recv(1) for end in server.ends] == [b"", b""]
    server.pool.want(5)
    server.pool.tend(refill=True)
    assert (len(server.pool), len(server.crew), len(server.ends)) == (0, 0, 2)


def test_no_more_wait_than_have_a_descriptor_left_for_the_service(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 10)  # which both ends of each conn use up in this process
    server.pool.want(20)
    server.settle()
    assert len(server.pool) == 5
    room_for(monkeypatch, 1000)
    server.pool.tend(refill=True)
    server.settle()
    assert len(server.pool) == 20
