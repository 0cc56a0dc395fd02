"""Asks an HTTP proxy for a tunnel (CONNECT), by h11; does no I/O."""

from __future__ import annotations

import re
from base64 import b64encode
from http import HTTPStatus
from typing import Final

import h11

from gnar_lib.config.model import Address, ProxyServer
from gnar_lib.errors import DialError, ProxyLoginError, UnreachableError
from gnar_lib.transport.dialogue import Dialogue, checked_host, forbidden, with_kind, with_login

MAX_ANSWER_BYTES: Final = 16 * 1024  # of all heads together, interim ones included
_BEGINNING = b"HTTP/"  # of every answer
_MOST_SHOWN = 4  # ways to log in

_SUCCESSES, _REDIRECTS, _FAILURES = range(200, 300), range(300, 400), range(500, 600)  # RFC 9110, section 15
# tinyproxy answers a wrong password with the second.
_LOGIN_WANTED = (HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, HTTPStatus.UNAUTHORIZED)
_PAGE_WANTED = HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED  # by the network (RFC 6585, section 6)
_OF_WEB_SERVERS = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_IMPLEMENTED,
        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    }
)

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?')
# The first word of a challenge, and not the name of a parameter, which has `=` behind it (RFC 9110, 11.6.1).
_SCHEME = re.compile(r"(?:^|,)[ \t]*([A-Za-z][A-Za-z0-9-]{0,19})(?=[ \t]*(?:,|$)|[ \t]+[^ \t=])")


def ask(proxy: ProxyServer, server: Address) -> Dialogue:
    """Ask for a tunnel to a server (RFC 9110, section 9.3.6)."""
    connection = h11.Connection(h11.CLIENT)
    yield _request(connection, proxy, server)
    beginning, count, response = b"", 0, None
    while response is None:
        received = yield None
        if not received:
            raise _hung_up(proxy, beginning)
        beginning, count = (beginning + received)[: len(_BEGINNING)], count + len(received)
        if not _BEGINNING.startswith(beginning):
            raise _no_http(proxy)
        try:
            response = _final_response(connection, received)
        except h11.RemoteProtocolError:
            raise _no_http(proxy) from None
        if response is None and count > MAX_ANSWER_BYTES:
            raise _no_http(proxy)
    if response.status_code not in _SUCCESSES:
        raise _refusal(proxy, server, response)
    return connection.trailing_data[0]


def _request(connection: h11.Connection, proxy: ProxyServer, server: Address) -> bytes:
    host = checked_host(server.host)
    where = str(Address(host.decode() if isinstance(host, bytes) else str(host), server.port)).encode()
    fields = [(b"Host", where)]
    if proxy.user or proxy.password:
        login = f"{proxy.user}:{proxy.password.reveal()}".encode()  # RFC 7617
        fields.append((b"Proxy-Authorization", b"Basic " + b64encode(login)))
    head = connection.send(h11.Request(method=b"CONNECT", target=where, headers=fields))
    connection.send(h11.EndOfMessage())
    return head or b""


def _final_response(connection: h11.Connection, received: bytes) -> h11.Response | None:
    """Return the proxy's answer, None if more of it has to come. Interim answers are passed over."""
    connection.receive_data(received)
    while isinstance(event := connection.next_event(), h11.InformationalResponse):
        pass
    return event if isinstance(event, h11.Response) else None


# ---- errors ------------------------------------------------------------------------------------------------


def _no_http(proxy: ProxyServer) -> DialError:
    return DialError(f"the proxy {proxy} answers in something that is no HTTP{_may_be_socks(proxy)}")


def _hung_up(proxy: ProxyServer, beginning: bytes) -> DialError:
    if beginning:
        return DialError(f"the proxy {proxy} has hung up within its answer")
    return DialError(f"the proxy {proxy} has hung up without an answer{_may_be_socks(proxy)}")


def _may_be_socks(proxy: ProxyServer) -> str:
    return f"; if it is a SOCKS proxy, write {with_kind(proxy, 'socks5h')}" if proxy.kind == "http" else ""


def _refusal(proxy: ProxyServer, server: Address, response: h11.Response) -> DialError:
    """Return the error for an answer that opens no tunnel."""
    status, answer = response.status_code, _in_words(response.status_code)
    if status in _LOGIN_WANTED:
        return _login_wanted(proxy, response, answer)
    if status in _REDIRECTS or status == _PAGE_WANTED:
        advice = "perhaps somebody has to log in there first, with a browser"
        return DialError(f"the proxy {proxy} points to a page ({answer}); {advice}")
    if status in _OF_WEB_SERVERS:
        error = forbidden(proxy, server, answer)
        return DialError(f"{error}. Or this is a web server, and no proxy")
    if status in _FAILURES:
        advice = "is the server running, and are its name and port right?"
        return UnreachableError(f"the proxy {proxy} cannot reach {server} ({answer}); {advice}")
    return forbidden(proxy, server, answer)


def _login_wanted(proxy: ProxyServer, response: h11.Response, answer: str) -> DialError:
    ways = _ways_to_log_in(response)
    if ways and "basic" not in {each.lower() for each in ways}:
        shown = " or ".join(ways[:_MOST_SHOWN])
        advice = "a program such as cntlm or px in between can do that"
        return ProxyLoginError(
            f"the proxy {proxy} wants a login by {shown}, which gnar does not know ({answer}); {advice}"
        )
    if proxy.user or proxy.password:
        return ProxyLoginError(f"the proxy {proxy} does not take this user or password ({answer})")
    return ProxyLoginError(
        f"the proxy {proxy} wants a user and a password ({answer}); write {with_login(proxy)}"
    )


def _ways_to_log_in(response: h11.Response) -> list[str]:
    """Return the names of the ways to log in that a proxy offers, such as Basic and Negotiate."""
    found: list[str] = []
    for name, value in response.headers:
        if name in (b"proxy-authenticate", b"www-authenticate"):
            found += _SCHEME.findall(_QUOTED.sub("", value.decode("latin-1")))
    return [*dict.fromkeys(found)]


def _in_words(status: int) -> str:
    """Return a status with its usual words; what the proxy says in their place is not for a terminal."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
