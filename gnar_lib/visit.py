"""Comes to a web server once, as a user does, for checks; knows not what is to be found out."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from gnar_lib import __version__
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import UnsupportedError
from gnar_lib.http import ClientCodec, Limits
from gnar_lib.net import EventedConn, deadline, resolve
from gnar_lib.net.target import Target

PORTS = {"http": 80, "https": 443}
MAX_BODY_BYTES = 4096  # that are kept of an answer
JSON_ERROR = "application/problem+json"  # of gnar's own answers, for those who want JSON
_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer, as far as checks want to know it."""

    status: int
    program: str  # the name of the web server, as it says itself, without its version; often empty
    kind: str  # the media type
    body: bytes  # its first bytes


def addresses_of(host: str) -> list[str]:
    """Return the IP addresses of a host name; raises `DialError`, or `UnreachableError` if DNS is away.

    Names below `localhost` are this machine's, as browsers have it, whether or not DNS says so.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return [LOOPBACK]
    return list(dict.fromkeys(str(address[0]) for _, address in resolve(host, 0)))


def visit(url: str, timeout_s: float, *, at: str = "", trusts_all: bool = False) -> Seen:
    """Ask for a URL, and return the answer.

    `at` is the host to dial, if not that of the URL. With `trusts_all`, any certificate will do. Raises
    `ConnError`, `ProtocolError`, or `UnsupportedError` where this Python has no TLS.
    """
    parts = urlsplit(url)
    fields = [("Host", parts.netloc), ("User-Agent", f"gnar/{__version__}"), ("Accept", JSON_ERROR)]
    with deadline(timeout_s, f"the answer of {parts.netloc}"):
        name = parts.hostname or ""
        conn: EventedConn = Target(at or addresses_of(name)[0], parts.port or PORTS[parts.scheme]).dial()
        try:
            if parts.scheme == "https":
                conn = _encrypted(conn, name, trusts_all=trusts_all)
            return _ask(conn, parts.path or "/", [*fields, ("Connection", "close")])
        finally:
            conn.abort()


def _encrypted(conn: EventedConn, name: str, *, trusts_all: bool) -> EventedConn:
    """Return a conn by TLS over `conn`, which is closed if that fails."""
    try:
        from ssl import CERT_NONE  # loads OpenSSL

        from gnar_lib.transport.tls import TlsConn, client_context

        context = client_context()
        if trusts_all:
            context.check_hostname = False
            context.verify_mode = CERT_NONE
        return TlsConn.connect(conn, context, name)
    except ImportError:
        raise UnsupportedError("this Python has no TLS") from None


def _ask(conn: EventedConn, path: str, fields: list[tuple[str, str]]) -> Seen:
    codec = ClientCodec(conn, _LIMITS)
    codec.send_head("GET", path, fields)
    codec.end_body()
    head = codec.receive_head()
    body = b""
    while len(body) < MAX_BODY_BYTES and (piece := codec.receive_body()):
        body += piece
    program, kind = (
        b"".join(head.values(name)[:1]).decode("latin-1") for name in (b"server", b"content-type")
    )
    program = program.partition("/")[0].partition("(")[0].strip()
    return Seen(head.status, program, kind.partition(";")[0].strip().lower(), body[:MAX_BODY_BYTES])
