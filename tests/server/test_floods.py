"""Floods of messages by a client with the token: how much is worked off before others have their turn."""

from __future__ import annotations

import socket
from contextlib import suppress

import gevent
import pytest

from gnar_lib.auth import ClientLogin
from gnar_lib.config import Secret
from gnar_lib.errors import ConnError
from gnar_lib.net import SocketConn, dial
from gnar_lib.proto import (
    Challenge,
    Heartbeat,
    Message,
    ProxyCancel,
    ProxyReq,
    Welcome,
    expect,
    send,
    to_frame,
)
from gnar_lib.proto import pace as pace_module
from gnar_lib.proto.pace import COSTS_S, MESSAGE_S
from gnar_lib.server import logins
from gnar_lib.server.logins import MAX_LINGER_BYTES
from tests.helpers.loop import turn, wait_until
from tests.helpers.paces import count_in_one_turn, note_received, standing_pace
from tests.helpers.servers import LOOPBACK, Running, answer_of, serving

FLOOD = 400


def request(name: str) -> ProxyReq:
    return ProxyReq(remote_port=0, proxy_name=name, subdomain="", proxy_type="tcp")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Return the messages that the loops of this process have received."""
    return note_received(monkeypatch, pace_module)


@pytest.mark.parametrize("message", [Heartbeat(), ProxyCancel("nothing", 9), request("x")], ids=repr)
@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_flood_is_worked_off_at_the_pace_and_others_are_served_meanwhile(
    message: Message, multiplex: bool, received: list[Message]
) -> None:
    with serving() as running:
        attacker, _ = running.log_in("attacker", multiplex=multiplex)
        other, port = running.log_in("other", multiplex=True)
        assert other.mux is not None
        cost_s = COSTS_S.get(type(message), MESSAGE_S)
        with standing_pace():
            received.clear()
            gevent.spawn(attacker.conn.sendall, to_frame(message) * FLOOD)
            turn()
            assert 1 < len(received) <= count_in_one_turn(cost_s) + 2  # and a heartbeat of each client
            user = dial(socket.AF_INET, (LOOPBACK, port))
            other.mux.accept().close()
            user.close()
            assert len(received) <= count_in_one_turn(cost_s) + 2
        wait_until(lambda: received.count(message) == FLOOD, "all have their turn")
        attacker.close()
        other.close()


def test_ports_of_a_client_that_leaves_are_freed_while_others_have_their_turn() -> None:
    with serving() as running:
        ours, _ = running.log_in("ours")
        for number in range(FLOOD):
            send(ours.conn, request(f"p{number}"))
            answer_of(ours.conn)
        ports = running.server.shared.ports
        with standing_pace():
            ours.close()
            wait_until(lambda: len(ports) <= FLOOD, "the server has begun to free the ports")
            turn()
            assert len(ports) >= FLOOD - count_in_one_turn(MESSAGE_S)
        wait_until(lambda: not len(ports), "all are free")


# ---- logins ------------------------------------------------------------------------------------------------


def fail_to_log_in(running: Running) -> SocketConn:
    """Log in with a wrong token, and return the connection, on which the refusal has come."""
    login = ClientLogin(Secret("wrong"), "hmac")
    conn = running.dial()
    send(conn, login.message())
    send(conn, login.answer(expect(conn, Challenge)))
    assert expect(conn, Welcome).error
    return conn


def test_server_reads_no_more_than_a_little_behind_a_login_that_it_has_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logins, "LINGER_S", 3600.0)
    with serving() as running:
        conn = fail_to_log_in(running)
        with suppress(ConnError):  # once the server has closed it
            while True:
                conn.sendall(bytes(MAX_LINGER_BYTES))
        assert len(running.server.control_ingress.in_progress) == 0
        conn.close()


def test_one_network_can_try_so_many_logins_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnar_lib.server.in_progress.MAX_TRIES_PER_S", 3)
    with serving() as running:
        for _ in range(3):
            fail_to_log_in(running).close()
        conn = running.dial()
        send(conn, ClientLogin(Secret("wrong"), "hmac").message())
        assert conn.recv(1) == b""
        conn.close()
        running.server.control_ingress.in_progress.expire()  # as each second
        fail_to_log_in(running).close()
