"""A real server in this process, and clients whose messages a test sends by hand."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig, ServerConfig
from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, SocketConn, deadline, dial
from gnar_lib.proto import (
    Exchange,
    Heartbeat,
    Login,
    Message,
    ProxyReq,
    ProxyResp,
    recv,
    send,
)
from gnar_lib.server.serve import Server
from tests.helpers.logins import TOKEN

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 10.0


@dataclass
class Running:
    """A running server in this process, to which tests dial and log in."""

    server: Server
    port: int

    def dial(self) -> SocketConn:
        """Connect to the control port; the caller closes the conn."""
        return dial(socket.AF_INET, (LOOPBACK, self.port))

    def log_in(
        self, name: str, port: int = 0, *, multiplex: bool = False, tls: str = "off"
    ) -> tuple[ControlConn, int]:
        """Log in as a client of ours and open one proxy; return control connection and port."""
        config = ClientConfig(Address(LOOPBACK, self.port), (), TOKEN, multiplex=multiplex, tls=tls)
        control = ControlConn.dial(config, name)
        control.log_in(ProxyReq(remote_port=port, proxy_name=name, subdomain="", proxy_type="tcp"))
        return control, answer_of(control.conn).remote_port


@contextmanager
def serving(policy: str = "any", **settings: Any) -> Iterator[Running]:
    """Run a server for the block; behind the block, close it and check that nothing is left."""
    server = Server(ServerConfig(port=0, bind=LOOPBACK, auth=policy, **{"token": TOKEN, **settings}))
    port = server.start()
    try:
        with deadline(TIMEOUT_S, "the test"):
            yield Running(server, port)
    finally:
        server.stop_listening()
        server.close()
        assert server.shared.users.wait_empty(TIMEOUT_S)
        assert server.shared.crew.wait_empty(TIMEOUT_S)
        assert len(server.shared.conn_map) == 0


def of_kind(conn: Conn, kind: type[Message]) -> Message:
    """Return the next message that is not a heartbeat, nor a user of whom nobody has asked.

    Other programs look at all ports of this machine, those of other tests among them.
    """
    passed_over = Heartbeat if kind is Exchange else Heartbeat | Exchange
    while isinstance(message := recv(conn), passed_over):
        pass
    assert isinstance(message, kind)
    return message


def answer_of(conn: Conn) -> ProxyResp:
    """Return the next message, which has to be a ProxyResp."""
    answer = of_kind(conn, ProxyResp)
    assert isinstance(answer, ProxyResp)
    return answer


def exchange_of(conn: Conn) -> Exchange:
    """Return the next message, which has to be an Exchange."""
    exchange = of_kind(conn, Exchange)
    assert isinstance(exchange, Exchange)
    return exchange


def is_closed_by_peer(conn: Conn) -> bool:
    """Wait until the peer ends a conn, close it, and tell whether no byte came before the end."""
    try:
        return conn.recv(1) == b""
    except ConnError:
        return True
    finally:
        conn.close()


def bring(running: Running, login: Login, exchange: Exchange) -> SocketConn:
    """Dial the server, send Login and Exchange as for a data connection, and return the conn."""
    conn = running.dial()
    send(conn, login)
    send(conn, exchange)
    return conn
