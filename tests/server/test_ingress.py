"""The control port of a real server: what each connection is for, and that no other stays open."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import gevent
import pytest

from gnar_lib import events
from gnar_lib.auth import ClientLogin
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import ConnError
from gnar_lib.events import ClientGone, LoginGivenUp, LoginRefused, Refusal
from gnar_lib.net import EventedConn, SocketConn, rota
from gnar_lib.proto import Heartbeat, Login, Message, ProxyCancel, ProxyReq, Welcome, recv, send
from gnar_lib.proto.msg import AUTH_NONE
from gnar_lib.proto.numbers import FEATURES
from gnar_lib.server import control as control_module
from gnar_lib.transport.tls import TlsConn, unverified_context
from gnar_lib.yamux import Session as Mux
from tests.helpers.events import hear
from tests.helpers.logins import NONE, TOKEN, go_login
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, TIMEOUT_S, Running, answer_of, is_closed_by_peer, of_kind, serving

REQUEST = ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, LoginRefused, LoginGivenUp, ClientGone)


def go_client(running: Running) -> SocketConn:
    """Return a connection on which a Go client has logged in."""
    conn = running.dial()
    send(conn, go_login(int(time.time())))
    return conn


# ---- what a connection is for ------------------------------------------------------------------------------


def test_health_check_is_answered_without_the_token(said: list[events.Event]) -> None:
    with serving("hmac") as running:
        conn = running.dial()
        send(conn, Login(token="", timestamp=0, auth=AUTH_NONE))
        assert recv(conn) == Welcome(features=FEATURES)
        assert is_closed_by_peer(conn)
    assert said == []


@pytest.mark.parametrize(
    "first",
    [Heartbeat(), Welcome(), Login(token="", version="", timestamp=0)],
    ids=["Heartbeat", "Welcome", "Login"],
)
def test_first_message_that_has_no_place_behind_a_login_is_refused(
    first: Message, said: list[events.Event]
) -> None:
    with serving() as running:
        conn = go_client(running)
        send(conn, first)
        assert is_closed_by_peer(conn)
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert (refused.reason, refused.cause) == (f"{type(first).__name__} after the login", Refusal.PROTOCOL)


def test_peer_that_leaves_behind_its_login_is_not_said_to_be_refused(said: list[events.Event]) -> None:
    with serving() as running:
        conn = go_client(running)
        conn.shutdown(socket.SHUT_WR)
        assert is_closed_by_peer(conn)
    (left,) = said
    assert isinstance(left, LoginGivenUp)


def test_data_connection_that_is_to_wait_for_a_client_who_has_left_is_closed() -> None:
    with serving() as running:
        ours, _ = running.log_in("ours")
        assert ours.session is not None
        ours.conn.close()
        wait_until(lambda: not running.server.control_ingress.clients, "the client has left")
        late = running.dial()
        send(late, ClientLogin.waiting_message(ours.session, 1))
        assert is_closed_by_peer(late)


@pytest.mark.parametrize("multiplexes", [False, True], ids=["plain", "multiplexed"])
def test_server_that_stops_ends_logins_on_their_way(multiplexes: bool) -> None:
    with serving() as running:
        conn = go_client(running)
        if multiplexes:
            Mux(conn, is_client=True).open()
        wait_until(lambda: len(running.server.control_ingress.in_progress) == 1, "the login is in progress")
        running.server.close()
        assert running.server.shared.crew.wait_empty(TIMEOUT_S)
        assert len(running.server.control_ingress.in_progress) == 0
        conn.close()


@pytest.mark.parametrize("holder", ["another Go client", "a client of gnar's own"])
def test_go_client_cannot_cancel_what_it_does_not_hold(holder: str) -> None:
    with serving() as running:
        if holder == "a client of gnar's own":
            control, port = running.log_in("blog")
            conn = control.conn
            name = "blog"
        else:
            conn = go_client(running)
            send(conn, REQUEST)
            answer_of(conn)
            (client,) = running.server.control_ingress.clients
            port, name = client.ingresses[0].port, "another name"
        cancel = go_client(running)
        send(cancel, ProxyCancel(proxy_name=name, remote_port=port))
        assert is_closed_by_peer(cancel)
        assert len(running.server.shared.ports) == 1
        conn.close()


# ---- TLS ---------------------------------------------------------------------------------------------------


WITHOUT_TLS = "this server takes no login without TLS (its setting: tls = require)"


def by_tls(conn: EventedConn) -> TlsConn:
    """Return a client's end of TLS."""
    return TlsConn.connect(conn, unverified_context(), "localhost")


def test_own_client_without_tls_is_told_in_words_where_tls_is_required(said: list[events.Event]) -> None:
    with serving(tls="require") as running:
        conn = running.dial()
        send(conn, ClientLogin(TOKEN, "hmac").message())
        refusal = of_kind(conn, Welcome)
        assert isinstance(refusal, Welcome)
        assert refusal.error == WITHOUT_TLS
        assert is_closed_by_peer(conn)
        wait_until(lambda: said, "the server has said something")
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert (refused.cause, refused.reason) == (Refusal.METHOD, WITHOUT_TLS)


@pytest.mark.parametrize("first", [REQUEST, ProxyCancel("blog", 1)], ids=["request", "cancel"])
def test_go_client_is_closed_where_tls_is_required(first: Message, said: list[events.Event]) -> None:
    with serving(tls="require") as running:
        conn = go_client(running)
        send(conn, first)
        assert is_closed_by_peer(conn)
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert refused.cause is Refusal.METHOD


def test_health_check_is_answered_where_tls_is_required_with_tls_and_without() -> None:
    with serving(tls="require") as running:
        for conn in (running.dial(), by_tls(running.dial())):
            send(conn, Login(token="", timestamp=0, auth=AUTH_NONE))
            assert recv(conn) == Welcome(features=FEATURES)
            assert is_closed_by_peer(conn)


def test_client_with_tls_comes_in_where_tls_is_required() -> None:
    with serving(tls="require") as running:
        config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False)
        control = ControlConn.dial(config, "ours")
        control.log_in(REQUEST)
        assert answer_of(control.conn).status == "success"
        control.close()


def test_tls_within_tls_is_no_login(said: list[events.Event]) -> None:
    with serving() as running:
        outer = by_tls(running.dial())
        with pytest.raises(ConnError):
            by_tls(outer)
        assert is_closed_by_peer(outer)
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert (refused.reason, refused.cause) == ("this is TLS", Refusal.PROTOCOL)


def test_header_of_the_proxy_protocol_within_tls_is_no_login(said: list[events.Event]) -> None:
    with serving() as running:
        conn = by_tls(running.dial())
        conn.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert is_closed_by_peer(conn)
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert (refused.reason, refused.cause) == ("this is the PROXY protocol", Refusal.PROTOCOL)


# ---- control connections -----------------------------------------------------------------------------------


def test_client_that_breaks_the_protocol_is_ended_and_its_port_is_free(said: list[events.Event]) -> None:
    with serving() as running:
        ours, _ = running.log_in("ours")
        send(ours.conn, Welcome())
        wait_until(lambda: said, "the server has said something")
        assert len(running.server.shared.ports) == 0
        ours.conn.close()
    (left,) = said
    assert isinstance(left, ClientGone)
    assert (left.reason, left.broke_protocol) == ("Welcome on a control connection", True)


@pytest.mark.parametrize("end", [SocketConn.close, SocketConn.abort], ids=["closes", "resets"])
def test_reason_why_a_client_has_gone_leaves_its_address_to_the_line(
    end: Callable[[SocketConn], None], said: list[events.Event]
) -> None:
    with serving() as running:
        conn = go_client(running)
        send(conn, REQUEST)
        answer_of(conn)
        end(conn)
        wait_until(lambda: said, "the server has said something")
    (left,) = said
    assert isinstance(left, ClientGone)
    assert left.reason in ("the peer closed the connection", "Connection reset by peer")


def test_silent_client_is_given_up(monkeypatch: pytest.MonkeyPatch, said: list[events.Event]) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(control_module, "dead_after_s", lambda: 0.05)
    with serving() as running:
        ours, _ = running.log_in("ours")
        wait_until(lambda: said, "the server has said something")
        assert not running.server.control_ingress.clients
        ours.conn.close()


def test_pause_of_the_server_is_no_silence_of_its_clients(
    monkeypatch: pytest.MonkeyPatch, said: list[events.Event]
) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(control_module, "dead_after_s", lambda: 0.5)
    monkeypatch.setattr(rota, "SLACK_S", 0.2)
    with serving() as running:
        ours, _ = running.log_in("ours")
        time.sleep(0.7)  # all of the process stands still, as after SIGSTOP
        gevent.sleep(0.1)
        assert said == []
        ours.conn.close()


def test_go_client_may_be_silent(monkeypatch: pytest.MonkeyPatch, said: list[events.Event]) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(control_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(control_module, "dead_after_s", lambda: 0.0)
    with serving() as running:
        conn = go_client(running)
        send(conn, REQUEST)
        answer_of(conn)
        for _ in range(5):
            assert isinstance(recv(conn), Heartbeat)
        assert said == []
        conn.close()


def test_client_that_does_not_prove_itself_is_told_why() -> None:
    with serving() as running:
        conn = running.dial()
        send(conn, ClientLogin(NONE, "hmac").message())
        refusal = of_kind(conn, Welcome)
        assert isinstance(refusal, Welcome)
        assert refusal.error
        assert refusal.session == ""
        assert is_closed_by_peer(conn)
    assert TOKEN.reveal() not in refusal.error
