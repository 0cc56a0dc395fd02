"""Asks a SOCKS5 proxy for a tunnel (RFC 1928, RFC 1929); does no I/O.

The libraries for that have had no release for years, or do the I/O themselves.
"""

from __future__ import annotations

from collections.abc import Generator
from ipaddress import IPv4Address
from typing import Final

from gnar_lib.config.model import Address, ProxyServer
from gnar_lib.errors import DialError, ProxyLoginError, RefusedError, UnreachableError
from gnar_lib.transport.dialogue import Dialogue, checked_host, forbidden, with_kind, with_login

MAX_LOGIN_BYTES: Final = 255  # of a user, and of a password (RFC 1929, section 2)

_VERSION, _LOGIN_VERSION = 5, 1
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4  # types of addresses
_IP_BYTES = {_IPV4: 4, _IPV6: 16}
_PORT_BYTES = 2
_NO_LOGIN, _USER_AND_PASSWORD = 0, 2  # ways to log in

# Replies to a request (RFC 1928, section 6).
_SUCCEEDED, _NOT_ALLOWED, _REFUSED, _NO_CONNECT, _NO_SUCH_ADDRESS = 0, 2, 5, 7, 8
_UNREACHABLE = {
    1: "it does not say why",
    3: "network unreachable",
    4: "host unreachable",
    6: "no answer in time",
}


def ask(proxy: ProxyServer, server: Address) -> Dialogue:
    """Ask for a tunnel to a server. If the server's host is a name, the proxy looks the name up."""
    request = bytes([_VERSION, _CONNECT, 0]) + _encoded(server)
    login = _login(proxy)
    ways = bytes([_NO_LOGIN, _USER_AND_PASSWORD] if login else [_NO_LOGIN])
    yield bytes([_VERSION, len(ways)]) + ways
    version, received = yield from _take(1, b"", _hung_up(proxy, _may_be_http(proxy)))
    if version[0] != _VERSION:
        raise _no_socks(proxy)
    way, received = yield from _take(1, received, _hung_up(proxy))
    if way[0] == _USER_AND_PASSWORD and login:
        yield login
        advice = "; perhaps it does not take this user or password"
        answer, received = yield from _take(2, received, _hung_up(proxy, advice))
        if answer[1]:
            raise _login_refused(proxy)
    elif way[0] != _NO_LOGIN:
        raise _login_refused(proxy) if login else _login_wanted(proxy)
    yield request
    return (yield from _take_reply(proxy, server, received))


def _take_reply(proxy: ProxyServer, server: Address, received: bytes) -> Dialogue:
    """Take the reply to the request, and return what has come behind it."""
    hung_up = _hung_up(proxy, f"; perhaps it cannot reach {server}")
    (version, reply), received = yield from _take(2, received, hung_up)
    if version != _VERSION:
        raise _no_socks(proxy)
    if reply != _SUCCEEDED:
        raise _refusal(proxy, server, reply)
    # The address that the proxy connects from is of no interest, but for its length.
    (_, kind), received = yield from _take(2, received, hung_up)
    if kind == _NAME:
        (size,), received = yield from _take(1, received, hung_up)
    elif kind in _IP_BYTES:
        size = _IP_BYTES[kind]
    else:
        raise _no_socks(proxy)
    _, received = yield from _take(size + _PORT_BYTES, received, hung_up)
    return received


def _take(
    size: int, received: bytes, hung_up: DialError
) -> Generator[bytes | None, bytes, tuple[bytes, bytes]]:
    """Return the next `size` bytes, and what has come behind them; raises `hung_up` if fewer come."""
    while len(received) < size:
        more = yield None
        if not more:
            raise hung_up
        received += more
    return received[:size], received[size:]


def _encoded(server: Address) -> bytes:
    """Return host and port as they stand in a request."""
    host = checked_host(server.host)
    port = server.port.to_bytes(_PORT_BYTES, "big")
    if isinstance(host, bytes):
        return bytes([_NAME, len(host)]) + host + port
    return bytes([_IPV4 if isinstance(host, IPv4Address) else _IPV6]) + host.packed + port


def _login(proxy: ProxyServer) -> bytes:
    """Return the message with user and password, empty without a user. Raises `DialError`."""
    user, password = proxy.user.encode(), proxy.password.reveal().encode()
    if not user and not password:
        return b""
    if not user:  # which has one byte at least (RFC 1929, section 2)
        raise DialError(f"the proxy {proxy}: SOCKS takes no password without a user")
    if max(len(user), len(password)) > MAX_LOGIN_BYTES:
        raise DialError(
            f"the proxy {proxy}: SOCKS takes a user and a password of at most {MAX_LOGIN_BYTES} bytes each"
        )
    return bytes([_LOGIN_VERSION, len(user)]) + user + bytes([len(password)]) + password


# ---- errors ------------------------------------------------------------------------------------------------


def _hung_up(proxy: ProxyServer, advice: str = "") -> DialError:
    return DialError(f"the proxy {proxy} has hung up without an answer{advice}")


def _may_be_http(proxy: ProxyServer) -> str:
    return f"; if it is an HTTP proxy, write {with_kind(proxy, 'http')}"


def _no_socks(proxy: ProxyServer) -> DialError:
    return DialError(f"the proxy {proxy} answers in something that is no SOCKS5{_may_be_http(proxy)}")


def _login_refused(proxy: ProxyServer) -> ProxyLoginError:
    return ProxyLoginError(f"the proxy {proxy} does not take this user or password")


def _login_wanted(proxy: ProxyServer) -> ProxyLoginError:
    return ProxyLoginError(f"the proxy {proxy} wants a user and a password; write {with_login(proxy)}")


def _refusal(proxy: ProxyServer, server: Address, reply: int) -> DialError:
    """Return the error for a reply that opens no tunnel."""
    if reply == _NOT_ALLOWED:
        return forbidden(proxy, server, "by its rules")
    if reply == _REFUSED:
        advice = "is the server running, and is its port right?"
        return RefusedError(f"the proxy {proxy} cannot reach {server} (connection refused); {advice}")
    if reply in _UNREACHABLE:
        advice = "are its name and port right?"
        return UnreachableError(f"the proxy {proxy} cannot reach {server} ({_UNREACHABLE[reply]}); {advice}")
    if reply == _NO_SUCH_ADDRESS:
        return UnreachableError(
            f"the proxy {proxy} takes no address such as {server.host}{_other_way(proxy)}"
        )
    if reply == _NO_CONNECT:
        return DialError(f"the proxy {proxy} opens no connections for anybody")
    return DialError(f"the proxy {proxy} refuses a connection to {server} (reply {reply})")


def _other_way(proxy: ProxyServer) -> str:
    """Return advice to send the other one of name and address."""
    if proxy.kind == "socks5":
        return f"; with {with_kind(proxy, 'socks5h')} it looks the name up"
    return f"; with {with_kind(proxy, 'socks5')} names are looked up here"
