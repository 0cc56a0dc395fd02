"""Servers whose control port is for users of names, too, and those who come there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from gnar_lib.errors import ConnError
from gnar_lib.net import EventedConn, SocketConn
from gnar_lib.transport.tls import TlsConn, unverified_context
from tests.helpers.servers import Running, serving
from tests.helpers.sites import Service, give_name, scripted, tell_request

DOMAIN = "example.com"
HOST = f"web.{DOMAIN}"
SCHEMES = ("http", "https")
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"


def get(target: str = "/", host: str = HOST, fields: str = "", *, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode()


@contextmanager
def named(serve: Callable[[SocketConn], None] = tell_request, **settings: Any) -> Iterator[Running]:
    """Run a server for the block where `HOST` is a service's; it has the control port alone."""
    with scripted(serve) as service, serving(domain=DOMAIN, **settings) as running:
        give_name(running.server.shared.names, HOST, Service(service.port, http2=True))
        yield running


def reach(running: Running, scheme: str, host: str = HOST) -> EventedConn:
    """Return a connection to the control port, by TLS if it is for https; the caller closes it."""
    conn = running.dial()
    return TlsConn.connect(conn, unverified_context(), host) if scheme == "https" else conn


def all_of(conn: EventedConn) -> bytes:
    """Return what comes, to the end of the stream or to a reset; closes the conn."""
    data = b""
    try:
        while more := conn.recv(1 << 16):
            data += more
    except ConnError:
        data += b"[reset]"
    conn.close()
    return data


def ask(running: Running, request: bytes, scheme: str = "http", *, in_bytes: bool = False) -> bytes:
    """Send a request, and return all that comes."""
    conn = reach(running, scheme)
    for piece in (bytes([each]) for each in request) if in_bytes else [request]:
        conn.sendall(piece)
        gevent.idle()
    return all_of(conn)


LAST = "Connection: close\r\n"


def is_idle(running: Running) -> bool:
    server = running.server
    return not (len(server.shared.users) or len(server.control_ingress.in_progress))
