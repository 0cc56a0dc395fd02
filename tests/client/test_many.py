"""Thousands of ports, and a server without manners: what a link asks for, and what it puts up with."""

from __future__ import annotations

import socket

import gevent
import pytest

from gnar_lib.client import link as link_module
from gnar_lib.client import pool as pool_module
from gnar_lib.client.link import Callbacks, Link
from gnar_lib.client.pool import WaitingPool
from gnar_lib.client.proxies import ProxyState
from gnar_lib.client.turns import Turns
from gnar_lib.errors import UnsupportedError
from gnar_lib.events import Event, ProxyRefused, subscribe
from gnar_lib.net import Crew, SocketConn
from gnar_lib.proto import Exchange, Heartbeat, Message, ProxyReq, Welcome, recv, send, to_frame
from gnar_lib.proto import pace as pace_module
from gnar_lib.proto.pace import COSTS_S, MESSAGE_S
from tests.helpers.loop import turn, wait_until
from tests.helpers.paces import count_in_one_turn, note_received, standing_pace
from tests.peers.link_server import TIMEOUT_S, Server, heard, opened, proxy, refused

FLOOD = 400


def requests(conn: SocketConn, count: int) -> list[str]:
    """Return the names of the next proxies that the link asks for."""
    names = []
    for _ in range(count):
        request = heard(conn)
        assert isinstance(request, ProxyReq)
        names.append(request.proxy_name)
    return names


def test_ports_are_asked_for_in_windows(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_UNANSWERED", 3)
    proxies = [proxy(f"p{number}", 9000 + number) for number in range(8)]
    link = server.start(*proxies)
    conn = server.log_in()
    assert requests(conn, 2) == ["p1", "p2"]
    turn()
    assert link._unanswered_count == 3
    link.remove(proxies[3])  # which has not been asked for, so that nothing is to be cancelled
    for number in (0, 1, 2):
        send(conn, opened(f"p{number}", 9000 + number))
    assert requests(conn, 3) == ["p4", "p5", "p6"]
    send(conn, opened("p4", 9004))
    assert requests(conn, 1) == ["p7"]
    for number in (5, 6, 7):
        send(conn, opened(f"p{number}", 9000 + number))
    wait_until(lambda: all(each.state is ProxyState.OPEN for each in link.proxies.values()), "all are open")
    assert (link._unanswered_count, len(link._to_ask)) == (0, 0)


def test_ports_that_are_taken_together_are_asked_for_again_together(
    server: Server, said: list[Event]
) -> None:
    subscribe(ProxyRefused, said.append)
    server.start(*(proxy(f"p{number}", 9000 + number) for number in range(20)))
    conn = server.log_in()
    requests(conn, 19)
    for number in range(20):
        send(conn, refused(f"p{number}", retry=True))
    wait_until(lambda: len(said) == 20, "all are refused")
    assert max(each.retry_s or 0.0 for each in said if isinstance(each, ProxyRefused)) < 5.0
    assert sorted(requests(conn, 20)) == sorted(f"p{number}" for number in range(20))


def log_in_with_limit(server: Server, max_proxies: int) -> SocketConn:
    conn = server.accept()
    assert isinstance(recv(conn), ProxyReq)
    send(conn, Welcome(session="a session", max_proxies=max_proxies))
    return conn


def test_more_ports_than_the_server_takes_are_one_error_at_the_first_login(server: Server) -> None:
    proxies = [proxy(f"p{number}", 9000 + number) for number in range(3)]
    link = Link(server.shared, proxies, Callbacks(*[lambda _: None] * 3))
    running = gevent.spawn(link.run)
    log_in_with_limit(server, 2)
    said = (
        r"^3 ports to forward: this server takes 2 of one client; "
        r"forward fewer, or set max-proxies at the server$"
    )
    with pytest.raises(UnsupportedError, match=said):
        running.get()


def test_limit_that_a_server_has_lowered_does_not_end_a_client(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    server.start(proxy("one"), proxy("two"))
    log_in_with_limit(server, 2).close()
    conn = log_in_with_limit(server, 1)
    assert requests(conn, 1) == ["two"]


# ---- a hostile server --------------------------------------------------------------------------------------


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Return the messages that the loops of this process have received."""
    return note_received(monkeypatch, pace_module)


@pytest.mark.parametrize(
    "message",
    [Heartbeat(), opened("blog", 9001), Exchange(conn_id="x", proxy_type="tcp", proxy_name="nobody")],
    ids=lambda message: type(message).__name__,
)
def test_flood_on_the_control_connection_is_worked_off_at_the_pace(
    message: Message, server: Server, received: list[Message]
) -> None:
    server.start(proxy("blog", 9001))
    conn = server.log_in()
    with standing_pace():
        gevent.spawn(conn.sendall, to_frame(message) * FLOOD)
        turn()
        assert 1 < len(received) <= count_in_one_turn(COSTS_S.get(type(message), MESSAGE_S)) + 1
    wait_until(lambda: len(received) == FLOOD, "all have their turn")


def test_flood_on_a_data_connection_that_waits_is_worked_off_at_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = note_received(monkeypatch, pool_module)
    ours, theirs = (SocketConn(each) for each in socket.socketpair())
    crew = Crew("user")
    pool = WaitingPool(crew, Turns(), lambda: ours, lambda conn, _: conn.close(), 15.0)
    with standing_pace():
        pool.want(1)
        gevent.spawn(theirs.sendall, to_frame(Heartbeat()) * FLOOD)
        turn()
        assert 1 < len(received) <= count_in_one_turn(MESSAGE_S) + 1
    wait_until(lambda: len(received) == FLOOD, "all have their turn")
    pool.close()
    assert crew.wait_empty(TIMEOUT_S)
    theirs.close()
