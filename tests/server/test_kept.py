"""A client that leaves to be started again: its ports and users wait for the next one, for a while."""

from __future__ import annotations

import socket

import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig, PortRanges, ServerConfig
from gnar_lib.errors import DialError
from gnar_lib.events import CloseReason, ProxyClosed
from gnar_lib.net import SocketConn, dial
from gnar_lib.proto import Exchange, Heartbeat, ProxyReq, ProxyResp, expect, recv, send
from gnar_lib.server import serve
from gnar_lib.server.ingress import kept as kept_module
from gnar_lib.server.ingress.udp import UdpIngress
from tests.helpers.events import hear
from tests.helpers.logins import TOKEN
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, is_closed_by_peer, serving


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[ProxyClosed]:
    return hear(monkeypatch, ProxyClosed)


def user_of(port: int) -> SocketConn:
    return dial(socket.AF_INET, (LOOPBACK, port))


def leave(client: ControlConn) -> None:
    """Say that the client is to be started again, and wait until no more users come to it."""
    send(client.conn, Heartbeat(leaving=True))
    while not (isinstance(message := recv(client.conn), Heartbeat) and message.leaving):
        pass


def log_in(
    running: Running, name: str, port: int, kind: str = "tcp", *, auth: str = "hmac", udp_timeout: int = 0
) -> tuple[ControlConn, ProxyResp]:
    """Log in as another process than those of `Running.log_in`, and ask for a port."""
    config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, auth=auth, multiplex=False, tls="off")
    control = ControlConn.dial(config, "another process")
    request = ProxyReq(port, name, "", kind, udp_timeout=udp_timeout)
    control.log_in(request)
    return control, answer_of(control.conn)


def kept_by(running: Running) -> int:
    return len(running.server.control_ingress.kept)


@pytest.mark.parametrize("any_port", [False, True], ids=["its port", "any port"])
def test_users_wait_for_the_next_client_which_has_the_port_at_once(any_port: bool) -> None:
    with serving() as running:
        old, port = running.log_in("blog")
        leave(old)
        user = user_of(port)
        user.sendall(b"hello")
        turn()
        assert len(running.server.shared.users) == 0  # in the kernel
        new, answer = log_in(running, "blog", 0 if any_port else port)
        assert answer.remote_port == port
        data = new.open_data(exchange_of(new.conn))
        assert data.recv(5) == b"hello"
        assert kept_by(running) == 0
        for conn in (user, data, old, new):
            conn.close()


def test_user_for_whom_no_data_connection_came_before_waits_as_well() -> None:
    with serving() as running:
        old, port = running.log_in("blog")
        user = user_of(port)
        exchange_of(old.conn)
        leave(old)
        old.close()
        new, _ = log_in(running, "blog", port)
        data = new.open_data(exchange_of(new.conn))
        user.sendall(b"hello")
        assert data.recv(5) == b"hello"
        for conn in (user, data, new):
            conn.close()


def test_users_of_a_multiplexed_session_stay_with_a_client_that_leaves() -> None:
    with serving() as running:
        old, port = running.log_in("blog", multiplex=True)
        assert old.mux is not None
        user = user_of(port)
        data = old.mux.accept()
        expect(data, Exchange)
        leave(old)
        new, _ = log_in(running, "blog", port)
        user.sendall(b"still")
        assert data.recv(5) == b"still"
        user.close()
        data.close()
        old.close()
        new.close()


def test_data_connections_that_wait_are_closed_by_the_server_when_the_client_leaves() -> None:
    with serving() as running:
        old, _ = running.log_in("blog")
        waiting = old.open_waiting()
        (control,) = running.server.control_ingress.clients
        wait_until(lambda: control.upstream.waiting, "it waits")
        leave(old)
        assert isinstance(waiting, SocketConn)
        assert is_closed_by_peer(waiting)
        old.close()


def test_datagrams_wait_for_the_next_client() -> None:
    with serving() as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
        old, answer = log_in(running, "dns", 0, "udp")
        leave(old)
        old.close()
        user.sendto(b"a question", (LOOPBACK, answer.remote_port))
        new, again = log_in(running, "dns", answer.remote_port, "udp")
        assert again.remote_port == answer.remote_port
        data = new.open_data(exchange_of(new.conn))
        assert data.recv(100).endswith(b"a question")
        data.close()
        new.close()


def test_port_for_which_nobody_comes_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch, closed: list[ProxyClosed]
) -> None:
    monkeypatch.setattr(kept_module, "KEEP_S", 0.0)
    monkeypatch.setattr(serve, "EXPIRE_EVERY_S", 0.01)
    with serving() as running:
        old, port = running.log_in("blog")
        leave(old)
        user = user_of(port)
        wait_until(lambda: closed, "the port is closed")
        assert (closed[0].port, closed[0].reason) == (port, CloseReason.CLIENT_LEFT)
        assert is_closed_by_peer(user)
        assert len(running.server.shared.ports) == 0
        with pytest.raises(DialError):
            user_of(port)
        old.close()


def test_port_waits_for_the_same_credential_alone_and_is_free_for_another_proxy_of_it() -> None:
    with serving() as running:
        old, port = running.log_in("blog")
        leave(old)
        other, refusal = log_in(running, "blog", port, auth="md5")
        assert (refusal.error, refusal.retry) == (f"port {port} is taken", True)
        user = user_of(port)
        new, answer = log_in(running, "shop", port)
        assert answer.remote_port == port
        assert is_closed_by_peer(user)  # who wanted the blog
        assert kept_by(running) == 0
        for conn in (old, other, new):
            conn.close()


def test_port_that_is_not_allowed_any_more_is_closed() -> None:
    with serving() as running:
        old, port = running.log_in("blog")
        leave(old)
        running.server.reload(
            ServerConfig(token=TOKEN, allow_ports=PortRanges(str(port + 1), ((port + 1, port + 1),)))
        )
        new, refusal = log_in(running, "blog", port)
        assert "not allowed" in refusal.error
        assert len(running.server.shared.ports) == 0
        old.close()
        new.close()


def test_a_port_too_many_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, closed: list[ProxyClosed]
) -> None:
    monkeypatch.setattr(kept_module, "MAX_KEPT", 1)
    with serving() as running:
        old, _ = running.log_in("blog")
        send(old.conn, ProxyReq(remote_port=0, proxy_name="shop", subdomain="", proxy_type="tcp"))
        answer_of(old.conn)
        leave(old)
        assert kept_by(running) == 1
        assert [each.name for each in closed] == ["shop"]
        old.close()


def test_server_that_stops_keeps_no_port() -> None:
    with serving() as running:
        old, port = running.log_in("blog")
        leave(old)
        running.server.stop_listening()
        assert kept_by(running) == 0
        with pytest.raises(DialError):
            user_of(port)
        old.close()


def test_server_that_stops_gives_no_port_back_to_a_client_that_leaves_and_returns() -> None:
    with serving() as running:
        client, port = running.log_in("blog")
        running.server.stop_listening()
        leave(client)
        assert kept_by(running) == 0
        send(client.conn, ProxyReq(remote_port=port, proxy_name="blog", subdomain="", proxy_type="tcp"))
        answer = answer_of(client.conn)
        assert (answer.status, answer.error, answer.retry) == ("failed", "the server is stopping", True)
        client.close()


def test_server_that_stops_gives_no_port_to_a_client_that_comes_back_on_another_connection() -> None:
    with serving() as running:
        old, port = running.log_in("blog")
        control = ControlConn.dial(
            ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False, tls="off"), "blog"
        )
        wait_until(lambda: len(running.server.control_ingress.in_progress) == 1, "it is logging in")
        running.server.shared.stopping = True
        for each in running.server.control_ingress.clients:
            each.stop_listening()
        control.log_in(ProxyReq(remote_port=port, proxy_name="blog", subdomain="", proxy_type="tcp"))
        assert answer_of(control.conn).status == "failed"
        old.close()
        control.close()


def test_next_client_says_anew_how_long_it_keeps_udp_sessions() -> None:
    with serving() as running:
        old, answer = log_in(running, "dns", 0, "udp")
        leave(old)
        old.close()
        new, _ = log_in(running, "dns", answer.remote_port, "udp", udp_timeout=3600)
        (control,) = [each for each in running.server.control_ingress.clients if each.ingresses]
        (ingress,) = control.ingresses
        assert isinstance(ingress, UdpIngress)
        assert ingress.session_s == 3600
        assert ingress._socket._peers.timeout_s == 7200
        new.close()
