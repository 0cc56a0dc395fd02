"""What asking an HTTP proxy and asking a SOCKS proxy have in common; does no I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Generator
from typing import Final

from gnar_lib.config.model import Address, ProxyServer
from gnar_lib.errors import DialError

Dialogue = Generator[bytes | None, bytes, bytes]
"""Yields bytes to be sent to a proxy, or None to be sent what comes: no bytes if the proxy has hung up.

Returns the bytes that have come behind the proxy's answer, which belong to the tunnel. Raises `DialError`,
with one line for a person, if the proxy opens no tunnel; before the first `yield` if it cannot be asked.
"""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_NAME_BYTES: Final = 255  # RFC 1928, section 5; DNS allows less
_NAME = re.compile(rb"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?", re.IGNORECASE)
_OPEN_PORT = 443  # the one that proxies for HTTPS let through, if no other


def checked_host(host: str) -> IpAddress | bytes:
    """Return a host as a proxy is told of it: an IP address, or a name in ASCII. Raises `DialError`."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return _name(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        raise DialError(f"{host} is an address of this machine's network, which no proxy knows")
    return ip


def _name(host: str) -> bytes:
    try:
        name = host.encode("idna")
    except UnicodeError:
        name = b""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
        raise DialError(f"no host can be called {host[:80]!r}")
    return name


def forbidden(proxy: ProxyServer, server: Address, answer: str) -> DialError:
    """Return the error for a proxy whose rules do not let this machine through to a server."""
    if server.port == _OPEN_PORT:
        advice = "whoever runs it has to allow that"
    else:
        advice = (
            f"perhaps it lets only port {_OPEN_PORT} through: have the server listen there, too "
            f"(a gnar server by -p {_OPEN_PORT})"
        )
    return DialError(f"the proxy {proxy} does not allow a connection to {server} ({answer}); {advice}")


def with_kind(proxy: ProxyServer, kind: str) -> str:
    """Return how the URL of a proxy is written if the proxy is of another kind."""
    return f"{kind}://{Address(proxy.host, proxy.port)}"


def with_login(proxy: ProxyServer) -> str:
    """Return how the URL of a proxy is written with a user and a password."""
    return f"{proxy.kind}://user:password@{Address(proxy.host, proxy.port)}"
