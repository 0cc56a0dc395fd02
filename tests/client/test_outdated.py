"""A client whose server has got another certificate: it logs in again, and not again and again."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gnar_lib import events
from gnar_lib.client import connection as connection_module
from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.errors import ConnError
from gnar_lib.events import Connected
from gnar_lib.net import SocketConn, dial
from tests.helpers.certificates import make_certificate
from tests.helpers.conns import V4
from tests.helpers.events import hear
from tests.helpers.harness import Service, echo
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, TIMEOUT_S, Running, serving
from tests.peers.link_server import Server, hear_ticks, proxy


def test_client_whose_data_connections_are_shown_another_certificate_logs_in_again_after_a_while_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = server.start(proxy("blog", 9001))
    conn = server.log_in()
    wait_until(lambda: link.connection is not None, "the link is connected")
    assert link.connection is not None
    link.connection.control.is_outdated = True
    hear_ticks(conn, 5)
    assert server.listener._accept_one() is None
    monkeypatch.setattr(connection_module, "LAST_S", 0.0)
    server.log_in()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, Connected)


def renew(running: Running, path: Path) -> None:
    """Have a server show another certificate from now on, and resume no session."""
    make_certificate(path, "localhost")
    certificates = running.server.shared.certificates
    assert certificates is not None
    for _ in range(3):  # a file is read once it has not changed between two looks
        certificates.tend()


@pytest.mark.parametrize("multiplex", [None, False], ids=["default", "plain"])
def test_users_are_served_while_the_server_gets_another_certificate_and_afterwards(
    multiplex: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[events.Event]
) -> None:
    monkeypatch.setattr(connection_module, "TICK_S", 0.02)
    monkeypatch.setattr(connection_module, "LAST_S", 0.1)
    path = make_certificate(tmp_path / "server.pem", "localhost")
    with serving(tls_cert=(str(path),)) as running, Service(echo) as service:
        assert running.server.shared.certificates is not None
        running.server.shared.certificates.context.num_tickets = 0
        blog = ProxyConfig(proxy_name="blog", local_port=service.port)
        config = ClientConfig(Address(LOOPBACK, running.port), (blog,), TOKEN, multiplex=multiplex)
        client = Client(config, lambda: None)
        client.start()
        client.answered.wait(TIMEOUT_S)
        port = int(client.location("blog").rpartition(":")[2])
        early = dial(V4, (LOOPBACK, port))
        assert asks(early)
        renew(running, path)
        (link,) = client._links
        if multiplex is None:
            assert link.connection is not None
            link.connection.control.is_outdated = True  # as when bulk wanted a connection
        while len(said) < 2:  # logins
            user = dial(V4, (LOOPBACK, port))
            is_served = asks(user)
            assert is_served or multiplex is False  # a user without a data connection goes with the login
            user.close()
        assert asks(early)
        late = dial(V4, (LOOPBACK, port))
        assert asks(late)
        assert len(running.server.control_ingress.clients) == 1
        for conn in (early, late):
            conn.shutdown(socket.SHUT_WR)
            assert conn.recv(1) == b""
            conn.close()
        client.close()
        assert client.shared.crew.wait_empty(TIMEOUT_S)
    assert len(said) == 2


def asks(conn: SocketConn) -> bool:
    """Tell whether there is an echo; the connection may also be closed by the server."""
    try:
        conn.sendall(b"ping")
        return conn.recv(100) == b"ping"
    except ConnError:
        return False
