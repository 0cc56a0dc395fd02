"""Dials servers through a proxy, such as a company has; knows not what a conn is for."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gnar_lib.config.model import Address, ProxyServer
from gnar_lib.errors import (
    ConnError,
    DeadlineError,
    DialError,
    NetworkError,
    RefusedError,
    UnreachableError,
    WriteError,
)
from gnar_lib.net import EventedConn, Sockaddr, SocketConn, deadline
from gnar_lib.net.dialling import AS_USUAL, DialSettings
from gnar_lib.net.place import Place
from gnar_lib.net.target import Target
from gnar_lib.transport.dialogue import Dialogue, with_kind

if TYPE_CHECKING:
    import ssl

READ_BYTES: Final = 4 * 1024  # at once of what a proxy says; a part of it may belong to the tunnel
MOST_ADDRESSES: Final = 4  # that are tried of a name that is looked up here


class ProxyDialler:
    """A proxy, through which servers are dialled. Where the proxy is, a `Target` knows.

    `how` says how to connect to the proxy, and how long a dial may take. `family` is that of the addresses
    of all names that are looked up here, the proxy's included. `looks_up_here`: this machine looks up the
    names of servers, whatever the kind of proxy.
    """

    def __init__(
        self,
        proxy: ProxyServer,
        how: DialSettings = AS_USUAL,
        family: int = socket.AF_UNSPEC,
        *,
        looks_up_here: bool = False,
    ) -> None:
        self.proxy = proxy
        # Whether this machine looks up the names of servers, and not the proxy.
        self.looks_up_here = looks_up_here or proxy.kind == "socks5"
        self._target = Target(proxy.host, proxy.port, family, how)
        self._ask = _asking(proxy.kind)
        self._timeout_s = how.timeout_s
        self._family = family
        self._place: tuple[Address, Place] | None = None  # the last server whose name was looked up here
        self._context: ssl.SSLContext | None = None  # for TLS with the proxy itself

    def __str__(self) -> str:
        return str(self.proxy)

    def look_up(self) -> None:
        """Look the proxy's name up, which `dial` does otherwise; raises `DialError` if that fails.

        From then on no file is read any more.
        """
        if self.proxy.kind == "https":
            self._tls_settings()
        try:
            self._target.look_up()
        except DialError as exc:
            raise self._unreachable(exc) from exc

    def dial(self, host: str, port: int) -> EventedConn:
        """Return a conn to a server, which the conn names as its other end; the caller closes the conn.

        Raises `DialError`, and as one of its kind `ProxyLoginError`.
        """
        server, course = Address(host, port), _Course(self.proxy)
        try:
            with deadline(self._timeout_s, "the dial"):
                if self.looks_up_here:
                    return self._dial_looked_up(server, course)
                return self._dial(server, server, course)
        except DeadlineError as exc:
            raise UnreachableError(course.why_late(server, self._timeout_s)) from exc

    def _dial_looked_up(self, server: Address, course: _Course) -> EventedConn:
        """Look a server's name up, and return a conn to the first of its addresses that answers."""
        if self._place is None or self._place[0] != server:
            self._place = server, Place(server.host, server.port, socket.SOCK_STREAM, self._family)
        place = self._place[1]
        try:
            *others, last = [address for _, address in place.addresses()[:MOST_ADDRESSES]]
        except DialError as exc:
            if self.proxy.kind != "socks5":
                raise
            raise type(exc)(f"{exc}; {with_kind(self.proxy, 'socks5h')} has the proxy look it up") from exc

        def dial(address: Sockaddr) -> EventedConn:
            conn = self._dial(Address(address[0], server.port), server, course)
            place.prefer(address)
            return conn

        for address in others:
            with suppress(RefusedError, UnreachableError):
                return dial(address)
        return dial(last)

    def _dial(self, server: Address, named: Address, course: _Course) -> EventedConn:
        """Return a conn to a server, which the conn calls by the name `named`."""
        dialogue = self._ask(self.proxy, server)
        said = next(dialogue)  # or an error, before anything is opened
        try:
            below = self._target.dial()
        except DialError as exc:
            raise self._unreachable(exc) from exc
        course.is_connected = True
        conn: EventedConn = below
        try:
            if self.proxy.kind == "https":
                conn = self._over_tls(below)
            course.speaks_tls = True
            _converse(conn, dialogue, said, course)
        except BaseException:
            conn.close()
            raise
        below.name_peer((named.host, named.port))
        return conn

    def _over_tls(self, conn: SocketConn) -> EventedConn:
        """Return a conn to a proxy that speaks TLS itself, and that the system trusts."""
        context = self._tls_settings()
        from gnar_lib.transport.tls import TlsConn

        try:
            return TlsConn.connect(conn, context, self.proxy.host)
        except ConnError as exc:
            raise DialError(f"the proxy {self}: {exc}{_may_be_plain(self.proxy)}") from exc

    def _tls_settings(self) -> ssl.SSLContext:
        """Return the settings of TLS; raises `DialError` if this Python has none."""
        try:
            from gnar_lib.transport.tls import client_context  # loads OpenSSL
        except ImportError:
            raise DialError(f"the proxy {self}: this Python has no TLS; use another one") from None
        if self._context is None:
            self._context = client_context()
        return self._context

    def _unreachable(self, exc: DialError) -> DialError:
        """Return an error of the same class that says that the proxy is what cannot be reached."""
        return type(exc)(f"the proxy {self} cannot be reached: {exc}; is its address right?")


class _Course:
    """How far a dial has come, for whoever has to say what took so long."""

    def __init__(self, proxy: ProxyServer) -> None:
        self.is_connected = False  # to the proxy
        self.speaks_tls = False  # with the proxy, or need not
        self.has_heard = False  # something from the proxy
        self._proxy = proxy

    def why_late(self, server: Address, timeout_s: float) -> str:
        """Return what has not happened in time."""
        proxy = self._proxy
        if not self.is_connected:
            return f"the proxy {proxy} cannot be reached: no answer within {timeout_s:g} s"
        if not self.speaks_tls:
            advice = _may_be_plain(proxy)
        elif self.has_heard or proxy.kind in ("http", "https"):
            advice = f"; perhaps it cannot reach {server}"
        else:
            advice = f"; if it is an HTTP proxy, write {with_kind(proxy, 'http')}"
        return f"the proxy {proxy} has not answered within {timeout_s:g} s{advice}"


def _may_be_plain(proxy: ProxyServer) -> str:
    return f"; if the proxy does not speak TLS itself, as most do not, write {with_kind(proxy, 'http')}"


def _asking(kind: str) -> Callable[[ProxyServer, Address], Dialogue]:
    """Return how proxies of a kind are asked for a server."""
    if kind in ("http", "https"):
        from gnar_lib.transport.http_connect import ask  # loads h11
    else:
        from gnar_lib.transport.socks import ask
    return ask


def _converse(conn: EventedConn, dialogue: Dialogue, said: bytes | None, course: _Course) -> None:
    """Speak with a proxy until it has opened the tunnel. Raises `DialError`."""
    try:
        while True:
            if said is None:
                said = dialogue.send(_receive(conn, course))
            else:
                with suppress(WriteError):  # the answer may say why
                    conn.sendall(said)
                said = dialogue.send(b"")
    except StopIteration as end:
        if end.value:
            conn.unread(end.value)


def _receive(conn: EventedConn, course: _Course) -> bytes:
    """Return what comes from a proxy, no bytes if it has hung up. Raises `UnreachableError`."""
    try:
        data = conn.recv(READ_BYTES)
    except NetworkError as exc:
        raise UnreachableError(f"the proxy does not answer any more: {exc}") from exc
    except ConnError:
        return b""
    course.has_heard = True
    return data
