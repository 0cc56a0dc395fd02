"""A server with sockets of a service manager: which is the control port, and proxies on the others."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gnar_lib.config import ServerConfig
from gnar_lib.errors import ListenError, UsageError
from gnar_lib.net import SocketConn, deadline, dial
from gnar_lib.net.conn import socket_class
from gnar_lib.net.given import GivenSocket
from gnar_lib.proto import ProxyCancel, ProxyReq, send
from gnar_lib.server import given as given_module
from gnar_lib.server import serve
from gnar_lib.server.given import GivenPorts, control_socket
from gnar_lib.server.serve import Server
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, is_closed_by_peer


def opened(name: str, kind: int = socket.SOCK_STREAM) -> GivenSocket:
    sock = socket_class(socket.AF_INET, kind)
    sock.bind((LOOPBACK, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return GivenSocket(name, sock)


@contextmanager
def serving(*given: GivenSocket) -> Iterator[Running]:
    """Run a server with these sockets for the block."""
    server = Server(ServerConfig(port=0, bind=LOOPBACK, token=TOKEN))
    port = server.start_given([*given])
    try:
        with deadline(10.0, "the test"):
            yield Running(server, port)
    finally:
        server.stop_listening()
        server.close()
        assert server.shared.crew.wait_empty(10.0)
    assert all(each.sock.fileno() < 0 for each in given)


def user_of(port: int) -> SocketConn:
    return dial(socket.AF_INET, (LOOPBACK, port))


def test_users_come_by_a_given_port_which_stays_open_without_a_client() -> None:
    control, web = opened("control"), opened("web")
    port = web.port
    with serving(control, web) as running:
        assert running.port == control.port
        early = user_of(port)
        early.sendall(b"hello")
        client, same = running.log_in("blog", port)
        assert same == port
        data = client.open_data(exchange_of(client.conn))
        assert data.recv(5) == b"hello"
        send(client.conn, ProxyReq(port, "second", "", "tcp"))
        assert answer_of(client.conn).error == f"port {port} is taken"
        send(client.conn, ProxyCancel(proxy_name="blog", remote_port=port))
        wait_until(lambda: len(running.server.shared.ports) == 0, "the proxy is closed")
        late = user_of(port)
        again, _ = running.log_in("another", port)
        assert exchange_of(again.conn).proxy_name == "another"
        for conn in (early, late, data, client, again):
            conn.close()


def test_datagrams_come_by_a_given_port() -> None:
    dns = opened("dns", socket.SOCK_DGRAM)
    port = dns.port
    with serving(opened("control"), dns) as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
        user.sendto(b"a question", (LOOPBACK, port))
        client, _ = running.log_in("blog")
        send(client.conn, ProxyReq(port, "dns", "", "udp"))
        assert answer_of(client.conn).remote_port == port
        data = client.open_data(exchange_of(client.conn))
        assert data.recv(100).endswith(b"a question")
        data.close()
        client.close()


def test_users_of_a_port_to_which_no_client_comes_are_turned_away_until_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(given_module, "VACANT_S", 0.0)
    monkeypatch.setattr(serve, "EXPIRE_EVERY_S", 0.01)
    web = opened("web")
    port = web.port
    with serving(opened("control"), web) as running:
        assert is_closed_by_peer(user_of(port))
        client, _ = running.log_in("blog", port)
        user = user_of(port)
        exchange_of(client.conn)
        user.close()
        client.close()


def test_server_that_stops_turns_nobody_away_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on for as long as its users have to finish."""
    monkeypatch.setattr(given_module, "VACANT_S", 0.0)
    ports = GivenPorts()
    ports.add(opened("web"))
    ports.add(opened("dns", socket.SOCK_DGRAM))
    ports.close()
    ports.tend(set())
    assert len(ports) == 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_port_for_which_no_descriptor_is_left_is_an_error_of_ours(kind: int) -> None:
    class Full(socket_class):  # type: ignore[misc,valid-type]
        def dup(self) -> socket.socket:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ports, given = GivenPorts(), opened("web", kind)
    sock = Full(socket.AF_INET, kind, fileno=given.sock.detach())
    ports.add(GivenSocket("web", sock))
    port = sock.getsockname()[1]
    with pytest.raises(ListenError, match=os.strerror(errno.EMFILE)):
        (ports.listener if kind == socket.SOCK_STREAM else ports.datagram_socket)(port)
    ports.close()


def test_server_opens_the_control_port_itself_if_it_is_not_given() -> None:
    with serving(opened("web"), opened("shop")) as running:
        client, _ = running.log_in("blog")
        client.close()


def test_control_port_is_the_one_of_that_name_or_number() -> None:
    one, other, dns = opened("control"), opened("web"), opened("dns", socket.SOCK_DGRAM)
    unnamed = GivenSocket("gnar.socket", other.sock)
    try:
        assert control_socket([other, one], 0) is one
        assert control_socket([other, unnamed], other.port) is other
        assert control_socket([dns, unnamed], 0) is None
        assert control_socket([other, unnamed], 0) is None
        with pytest.raises(UsageError, match="second control port"):
            control_socket([one, one], 0)
    finally:
        for each in (one, other, dns):
            each.sock.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_port_is_given_once(kind: int) -> None:
    ports, web = GivenPorts(), opened("web", kind)
    ports.add(web)
    with pytest.raises(UsageError, match="was given twice"):
        ports.add(web)
    ports.close()
