"""What a login is good for at a real server, and what it is not."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest

from gnar_lib.auth import ClientLogin
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import ConnError
from gnar_lib.events import LoginRefused, subscribe, unsubscribe
from gnar_lib.net import dial
from gnar_lib.proto import (
    Challenge,
    Heartbeat,
    Login,
    Message,
    Proof,
    ProxyCancel,
    ProxyReq,
    Welcome,
    packet,
    send,
)
from gnar_lib.proto.packet import PacketType
from tests.helpers.logins import NONE, OTHER, TOKEN, go_login
from tests.helpers.servers import (
    LOOPBACK,
    Running,
    answer_of,
    bring,
    exchange_of,
    is_closed_by_peer,
    of_kind,
    serving,
)


def test_user_is_given_once_and_only_to_the_session_that_was_told() -> None:
    with serving() as running:
        ours, port = running.log_in("ours")
        other, _ = running.log_in("other")
        assert ours.session is not None
        assert other.session is not None
        user = dial(socket.AF_INET, (LOOPBACK, port))
        told = exchange_of(ours.conn)
        conn_id, sign = told.conn_id, ours.session.sign(told.conn_id)
        thieves = [
            bring(running, ClientLogin.data_message(other.session), replace(told, proof=proof))
            for proof in (sign, other.session.sign(conn_id), "")
        ]
        now = int(time.time())  # a Go client with the token may not have it either
        thieves += [
            bring(running, go_login(now), replace(told, proof=sign)),
            bring(running, Login(token="", timestamp=0, session="no such"), replace(told, proof=sign)),
            bring(running, ClientLogin.data_message(ours.session), replace(told, proof="00")),
        ]
        assert all(map(is_closed_by_peer, thieves))
        data = bring(running, ClientLogin.data_message(ours.session), replace(told, proof=sign))
        user.sendall(b"hello")
        assert data.recv(100) == b"hello"
        again = bring(running, ClientLogin.data_message(ours.session), replace(told, proof=sign))
        assert is_closed_by_peer(again)
        data.sendall(b"still there")
        assert user.recv(100) == b"still there"
        for conn in (user, data, ours.conn, other.conn):
            conn.close()


def test_user_of_a_go_client_is_given_to_nobody_who_has_not_logged_in() -> None:
    with serving() as running:
        other, _ = running.log_in("other")
        assert other.session is not None
        control = running.dial()
        send(control, go_login(int(time.time())))
        send(control, ProxyReq(remote_port=0, proxy_name="go", subdomain="", proxy_type="tcp"))
        assert answer_of(control).status == "success"
        user = dial(socket.AF_INET, (LOOPBACK, _port_of(running, "go")))
        told = exchange_of(control)
        thieves = [
            bring(running, Login(token="", timestamp=0, session="no such"), told),
            bring(running, ClientLogin.data_message(other.session), replace(told, proof="00")),
            bring(running, go_login(int(time.time()), OTHER), told),
        ]
        assert all(map(is_closed_by_peer, thieves))
        data = bring(running, go_login(int(time.time())), told)
        data.sendall(b"hello")
        assert user.recv(100) == b"hello"
        for conn in (user, data, control, other.conn):
            conn.close()


def _port_of(running: Running, name: str) -> int:
    """Return the port of a proxy at the server."""
    ingresses = [each for control in running.server.control_ingress.clients for each in control.ingresses]
    (port,) = [each.port for each in ingresses if each.proxy.name == name]
    return port


@pytest.mark.parametrize(
    "first",
    [
        ProxyReq(remote_port=0, proxy_name="thief", subdomain="", proxy_type="tcp"),
        ProxyReq(remote_port=0, proxy_name="thief", subdomain="", proxy_type="udp"),
        ProxyCancel(proxy_name="ours", remote_port=1),
    ],
    ids=["tcp", "udp", "cancel"],
)
@pytest.mark.parametrize("session_id", ["no such", None], ids=["unknown", "known"])
def test_login_that_names_a_session_is_good_for_a_data_connection_alone(
    session_id: str | None, first: ProxyReq | ProxyCancel
) -> None:
    with serving("hmac") as running:
        ours, _ = running.log_in("ours")
        assert ours.session is not None
        thief = running.dial()
        send(thief, Login(token="", timestamp=0, session=session_id or ours.session.id, client_id="ours"))
        send(thief, first)
        assert is_closed_by_peer(thief)
        assert len(running.server.shared.ports) == 1
        ours.conn.close()


def test_waiting_connection_is_taken_once_and_only_with_the_sessions_signature() -> None:
    with serving() as running:
        ours, port = running.log_in("ours")
        other, _ = running.log_in("other")
        assert ours.session is not None
        assert other.session is not None
        good = ClientLogin.waiting_message(ours.session, 1)
        first = running.dial()
        send(first, good)
        refused = []
        for login in (
            good,
            replace(good, waiting=2),
            replace(ClientLogin.waiting_message(other.session, 3), session=ours.session.id),
            replace(good, waiting=-1),
        ):
            refused.append(running.dial())
            send(refused[-1], login)
        assert all(map(is_closed_by_peer, refused))
        user = dial(socket.AF_INET, (LOOPBACK, port))
        user.sendall(b"hello")
        assert exchange_of(first).proxy_name == "ours"
        assert first.recv(100) == b"hello"
        for conn in (user, first, ours.conn, other.conn):
            conn.close()


def test_login_recorded_on_the_wire_and_sent_again_opens_nothing() -> None:
    with serving() as running:
        client = ClientLogin(TOKEN, "hmac")
        login = client.message()
        conn = running.dial()
        send(conn, login)
        challenge = of_kind(conn, Challenge)
        assert isinstance(challenge, Challenge)
        proof = client.answer(challenge)
        send(conn, proof)
        assert isinstance(of_kind(conn, Welcome), Welcome)
        replay = running.dial()
        send(replay, login)
        send(replay, proof)
        of_kind(replay, Challenge)
        refusal = of_kind(replay, Welcome)
        assert isinstance(refusal, Welcome)
        assert (refusal.error, refusal.session) == ("wrong token", "")
        assert is_closed_by_peer(replay)
        conn.close()


@pytest.mark.parametrize("sent", [Heartbeat(), Proof("é"), Proof("")])
def test_login_goes_on_as_it_has_to_or_not_at_all(sent: Message) -> None:
    with serving() as running:
        conn = running.dial()
        send(conn, ClientLogin(TOKEN, "hmac").message())
        of_kind(conn, Challenge)
        send(conn, sent)
        if isinstance(sent, Proof):
            of_kind(conn, Welcome)
        assert is_closed_by_peer(conn)


def test_go_server_that_hangs_up_is_met_with_a_hint() -> None:
    listener = socket.create_server((LOOPBACK, 0))
    address = Address(LOOPBACK, listener.getsockname()[1])
    hints = {}
    for token, kind in ((TOKEN, "hmac"), (TOKEN, "md5"), (NONE, "hmac")):
        control = ControlConn.dial(
            ClientConfig(server=address, proxies=(), token=token, auth=kind, multiplex=False, tls="off"), ""
        )
        hints[bool(token), kind] = control.hint
        control.conn.close()
    listener.close()
    assert hints == {
        (True, "hmac"): "is it up yet? A Go server needs --auth md5",
        (True, "md5"): "is it up yet? Is the token wrong?",
        (False, "hmac"): "is it up yet? Does it want a token, in GNAR_TOKEN?",
    }


@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
@pytest.mark.parametrize(("size", "is_taken"), [(12_000, True), (16_384, False)])
def test_first_request_may_have_16_kib(multiplex: bool, size: int, is_taken: bool) -> None:
    with serving(domain="example.com") as running:
        config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=multiplex, tls="off")
        client = ControlConn.dial(config, "long")
        request = ProxyReq(
            0, "web", "a", "http", error_page="x" * 8192, request_headers=("X: " + "y" * (size - 8192),)
        )
        client.log_in(request)
        if is_taken:
            assert answer_of(client.conn).status == "success"
        else:
            with pytest.raises(ConnError):
                answer_of(client.conn)
        client.close()


def test_another_first_message_may_have_4_kib() -> None:
    refused: list[LoginRefused] = []
    subscribe(LoginRefused, refused.append)
    try:
        with serving() as running:
            conn = running.dial()
            send(conn, go_login(int(time.time())))
            conn.sendall(packet.encode(PacketType.PROXY_CANCEL, {"x": "y" * 4096}))
            assert is_closed_by_peer(conn)
            assert "where at most 4096 are allowed" in refused[0].reason
    finally:
        unsubscribe(LoginRefused, refused.append)
