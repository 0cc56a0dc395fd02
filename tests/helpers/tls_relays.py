"""Relays by TLS, users who come to them, and services behind them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gnar_lib import net
from gnar_lib.relay import Relay
from gnar_lib.transport.tls import TlsConn
from tests.helpers.relays import Service, dial, read_all, relaying, serving

LOOPBACK = "127.0.0.1"
LISTEN = f"tls-listen:{LOOPBACK}:0"


def server_context(made: Path, name: str = "server.pem") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / name)
    return context


def user_context(cert: Path | None = None) -> ssl.SSLContext:
    """Return settings of a user who takes any server, and shows a certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if cert is not None:
        context.load_cert_chain(cert)
    return context


@contextmanager
def by_tls(running: Relay, context: ssl.SSLContext | None = None) -> Iterator[TlsConn]:
    """Connect as a user by TLS for the block."""
    conn = dial(running)
    try:
        tls = TlsConn.connect(conn, context or user_context(), "localhost")
    except BaseException:
        conn.close()
        raise
    with closing(tls):
        yield tls


def ask_by_tls(running: Relay, context: ssl.SSLContext | None = None, question: bytes = b"question") -> bytes:
    """Send a question, end this direction, and return the answer."""
    with by_tls(running, context) as user:
        user.sendall(question)
        user.shutdown(socket.SHUT_WR)
        return read_all(user)


def answering(context: ssl.SSLContext, seen: list[TlsConn] | None = None) -> Callable[[net.SocketConn], None]:
    """Return a service that shakes hands, reads to the end, and then answers."""

    def handle(conn: net.SocketConn) -> None:
        with closing(TlsConn.accept(conn, context)) as tls:
            if seen is not None:
                seen.append(tls)
            tls.sendall(b"answer to " + read_all(tls))

    return handle


def at(service: Service, form: str) -> str:
    """Return the address of a service, put into the form of an address of a target."""
    return form.format(port=service.listener.port)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings, without ports that change."""
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


@contextmanager
def relaying_by_tls(handle: Callable[[net.SocketConn], None], target: str) -> Iterator[tuple[Relay, int]]:
    """Run a service, and a relay to it, for the block; yields the relay, and the port of the service.

    `target` is the address of the service, with `{port}` in the place of its port.
    """
    with serving(handle) as service, relaying(f"tcp:{LOOPBACK}:0", at(service, target)) as running:
        yield running, service.listener.port
