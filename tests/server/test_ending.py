"""What an administrator ends is gone at once, and its client is told."""

from __future__ import annotations

import socket

import pytest

from gnar_lib import events
from gnar_lib.auth import ClientLogin
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.events import ClientGone, ProxyClosed
from gnar_lib.net import SocketConn
from gnar_lib.net.dialling import dial
from gnar_lib.proto import Exchange, Heartbeat, ProxyCancel, ProxyReq, ProxyResp, recv, send
from gnar_lib.proto.msg import STATUS_FAILED
from gnar_lib.server import control as control_module
from gnar_lib.server.belongings import BY_ADMINISTRATOR
from tests.helpers.events import hear
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, answer_of, bring, exchange_of, is_closed_by_peer, serving


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    """Return the list of the events that the server emits about ends."""
    return hear(monkeypatch, ClientGone, ProxyClosed)


def user_of(port: int) -> SocketConn:
    """Return a user who has sent a byte."""
    user = dial(socket.AF_INET, (LOOPBACK, port))
    user.sendall(b"x")
    return user


def test_proxy_that_is_ended_is_closed_with_its_users_and_told_to_the_client(
    said: list[events.Event],
) -> None:
    with serving() as running:
        ours, port = running.log_in("blog")
        assert ours.session is not None
        user = user_of(port)
        asked = exchange_of(ours.conn)
        answer = Exchange(asked.conn_id, asked.proxy_type, proof=ours.session.sign(asked.conn_id))
        data = bring(running, ClientLogin.data_message(ours.session), answer)
        assert data.recv(1) == b"x"
        (client,) = running.server.control_ingress.clients
        (ingress,) = client.held
        client.end_proxy(ingress)
        told = answer_of(ours.conn)
        assert told == ProxyResp(
            "", STATUS_FAILED, error=BY_ADMINISTRATOR, remote_port=port, proxy_name="blog"
        )
        assert is_closed_by_peer(user)
        assert is_closed_by_peer(data)
        assert len(running.server.shared.ports) == 0
        assert client in running.server.control_ingress.clients
        ours.conn.close()
    assert isinstance(said[0], ProxyClosed)
    assert said[0].reason is events.CloseReason.ENDED


def test_client_that_is_ended_is_told_and_hung_up_on(
    said: list[events.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(control_module, "DISMISS_S", 0.05)
    with serving() as running:
        ours, _ = running.log_in("blog")
        (client,) = running.server.control_ingress.clients
        client.dismiss()
        while not (isinstance(message := recv(ours.conn), Heartbeat) and message.ended):
            assert isinstance(message, Heartbeat)
        assert message.ended == BY_ADMINISTRATOR
        wait_until(lambda: not running.server.control_ingress.clients, "the client is gone")
        ours.conn.close()
    gone = said[-1]
    assert isinstance(gone, ClientGone)
    assert gone.reason == BY_ADMINISTRATOR


def test_client_that_is_being_ended_gets_no_further_proxy() -> None:
    with serving() as running:
        ours, _ = running.log_in("blog")
        (client,) = running.server.control_ingress.clients
        client.dismiss()
        send(ours.conn, ProxyReq(0, "another", "", "tcp"))
        answer = answer_of(ours.conn)
        assert (answer.status, answer.retry, answer.proxy_name) == (STATUS_FAILED, False, "another")
        ours.conn.close()


@pytest.mark.parametrize("how", ["cancels", "is ended"])
def test_client_that_goes_is_said_to_have_had_what_it_has_just_lost(
    said: list[events.Event], how: str
) -> None:
    with serving() as running:
        ours, port = running.log_in("blog")
        (client,) = running.server.control_ingress.clients
        if how == "cancels":
            send(ours.conn, ProxyCancel("blog", port))
        else:
            client.dismiss()
        wait_until(lambda: not client.held, "the proxy is closed")
        ours.conn.close()
        wait_until(lambda: isinstance(said[-1], ClientGone), "the client is gone")
    gone = said[-1]
    assert isinstance(gone, ClientGone)
    assert (gone.proxies, gone.ports) == (("blog",), (port,))


def test_client_that_was_ended_and_dials_again_before_it_has_heard_gets_nothing() -> None:
    with serving() as running:
        ours, port = running.log_in("blog")
        (client,) = running.server.control_ingress.clients
        client.dismiss()
        again, opened = running.log_in("blog", port)  # the id of a client is its name there
        assert not opened
        assert len(running.server.shared.ports) == 0
        ours.conn.close()
        again.conn.close()


def test_client_of_go_that_is_ended_is_told_in_the_word_that_it_knows() -> None:
    with serving() as running:
        conn = running.dial()
        send(conn, ClientLogin(TOKEN, "md5").go_message())
        send(conn, ProxyReq(0, "blog", "", "tcp"))
        answer_of(conn)
        (client,) = running.server.control_ingress.clients
        client.dismiss()
        assert answer_of(conn) == ProxyResp("", STATUS_FAILED)
        conn.close()


def test_client_with_thousands_of_proxies_hears_that_it_is_ended() -> None:
    with serving() as running:
        ours, _ = running.log_in("blog")
        for number in range(3000):
            send(ours.conn, ProxyReq(0, f"{number:0100}", "", "tcp"))
            answer_of(ours.conn)
        (client,) = running.server.control_ingress.clients
        client.dismiss()
        while not (isinstance(message := recv(ours.conn), Heartbeat) and message.ended):
            assert isinstance(message, Heartbeat)
        assert len(running.server.shared.ports) == 0
        ours.conn.close()


def test_client_whose_last_proxy_is_ended_is_gone_for_that(said: list[events.Event]) -> None:
    with serving() as running:
        ours, _ = running.log_in("blog")
        (client,) = running.server.control_ingress.clients
        client.end_proxy(client.held[0])
        ours.conn.close()
        wait_until(lambda: isinstance(said[-1], ClientGone), "the client is gone")
    assert isinstance(said[-1], ClientGone)
    assert said[-1].reason == BY_ADMINISTRATOR


def test_client_that_did_not_hear_of_its_end_is_told_when_it_comes_back() -> None:
    with serving() as running:
        ours, _ = running.log_in("blog")
        (client,) = running.server.control_ingress.clients
        ours.conn.abort()  # and the server does not know yet
        client.dismiss()
        wait_until(lambda: not running.server.control_ingress.clients, "it is gone")
        again, opened = running.log_in("blog")
        assert not opened
        again.conn.close()


def test_nobody_is_told_of_a_check(said: list[events.Event]) -> None:
    with serving() as running:
        control = ControlConn.dial(
            ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False), "x", is_check=True
        )
        control.log_in(ProxyReq(0, "check", "", "tcp"))
        assert answer_of(control.conn).remote_port
        control.close()
        wait_until(lambda: not running.server.control_ingress.clients, "it is gone")
    assert said == []
