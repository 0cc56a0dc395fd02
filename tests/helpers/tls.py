"""Pairs of TLS conns in this process, with a certificate that is made once."""

from __future__ import annotations

import ssl
import tempfile
from functools import cache
from pathlib import Path

import gevent

from gnar_lib.net import EventedConn
from gnar_lib.transport.tls import TlsConn
from tests.helpers.certificates import make_certificate
from tests.helpers.conns import tcp_pair

HOST = "localhost"

_folder = tempfile.TemporaryDirectory(prefix="gnar-tls-")


@cache
def certificate() -> Path:
    """Return the file of a certificate for `HOST`, and its key."""
    return make_certificate(Path(_folder.name, "localhost.pem"), HOST)


@cache
def server_context() -> ssl.SSLContext:
    """Return settings of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate())
    return context


@cache
def client_context(most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return settings of a client that trusts this certificate; `most` is the last version that it speaks."""
    context = ssl.create_default_context(cafile=str(certificate()))
    context.maximum_version = most
    return context


def shake_hands(
    near: EventedConn, far: EventedConn, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> tuple[TlsConn, TlsConn]:
    """Return the client's end over `near`, and the server's over `far`."""
    server = gevent.spawn(TlsConn.accept, far, server_context())
    client = TlsConn.connect(near, client_context(most), HOST)
    return client, server.get()


def tls_pair(most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[TlsConn, TlsConn]:
    """Return both ends of TLS over a connection on loopback, the client's first; the caller closes both."""
    return shake_hands(*tcp_pair(), most)
