"""The first messages on a connection to the control port, under a deadline: who it is, and what it is for."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gnar_lib import auth, yamux
from gnar_lib.config import ServerConfig
from gnar_lib.errors import AuthError, ConnClosed, ConnError
from gnar_lib.net import Conn, Sockaddr, SocketConn, deadline, host_of
from gnar_lib.proto import Exchange, Login, Message, Proof, Welcome, expect, numbers, recv, send
from gnar_lib.proto.msg import AUTH_NONE

LOGIN_DEADLINE_S = 10.0
MAX_LOGIN_BYTES = 4096
MAX_IN_PROGRESS = 1024  # past that one is closed: of those who have most, the oldest, which has had its time
LINGER_S = 2.0


class Closable(Protocol):
    """A connection, or a session of many."""

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end."""

    def abort(self) -> None:
        """Close at once."""


class InProgress:
    """The connections that have not said yet what they are for, in the order in which they came.

    One look at them each second is cheaper than a timer for each of thousands. Whoever opens many makes room
    by its own, so that one host, or one IPv6 network, cannot keep the others from logging in.
    """

    def __init__(self, limit: int = MAX_IN_PROGRESS, clock: Callable[[], float] = time.monotonic) -> None:
        self._begun: dict[Closable, tuple[float, str]] = {}  # when, and from which network
        self._of_network: defaultdict[str, dict[Closable, None]] = defaultdict(dict)
        self._limit = limit
        self._clock = clock

    def __len__(self) -> int:
        return len(self._begun)

    def add(self, conn: Closable) -> None:
        """Note a new one; when there are too many, closes the oldest of those who have most."""
        network = _network_of(conn)
        self._begun[conn] = self._clock(), network
        self._of_network[network][conn] = None
        if len(self._begun) > self._limit:
            most = max(self._of_network.values(), key=len)
            self._close(next(iter(most)))

    def discard(self, conn: Closable) -> None:
        """It has said what it is for, or is closed."""
        _, network = self._begun.pop(conn, (0.0, None))
        if network is None:
            return
        del self._of_network[network][conn]
        if not self._of_network[network]:
            del self._of_network[network]

    def expire(self) -> None:
        """Close those that take too long."""
        now = self._clock()
        for conn in [conn for conn, (began_s, _) in self._begun.items() if now - began_s > LOGIN_DEADLINE_S]:
            self._close(conn)

    def _close(self, conn: Closable) -> None:
        self.discard(conn)
        conn.abort()


def _network_of(conn: Closable) -> str:
    """Return what one owner has: an IPv4 address, or the first 64 bits of an IPv6 address."""
    host = host_of(conn.getpeername())
    if ":" not in host:
        return host
    return socket.inet_pton(socket.AF_INET6, host.strip("[]").partition("%")[0])[:8].hex()


@dataclass(frozen=True, slots=True)
class Entrance:
    """A connection that has logged in: by whom, and what it is for.

    `session` is None for a Go client. `first` is the message behind the login; None where none comes: on a
    connection that waits for a user, on one that is multiplexed, and on a health check.
    """

    login: Login
    session: auth.Session | None = None
    first: Message | None = None


def log_in(conn: SocketConn, config: ServerConfig) -> Entrance:
    """Receive what comes first on a connection, and check it; `InProgress` sees to it that this ends.

    The proof of a data connection of ours is not checked here: it is signed with the key of the session that
    `login.session` names. Until then it has proven nothing, and may be nothing else. Raises `AuthError`,
    `ProtocolError` or `ConnError`.
    """
    login = expect(conn, Login, MAX_LOGIN_BYTES)
    if login.auth == AUTH_NONE:
        send(conn, Welcome(features=numbers.FEATURES))
        return Entrance(login)
    if login.session:
        return Entrance(login, first=None if login.waiting else expect(conn, Exchange, MAX_LOGIN_BYTES))
    attempt = auth.ServerLogin(config.token, config.auth, login)
    if not attempt.is_ours:
        attempt.check()
        return Entrance(login, first=_first_message(conn))
    try:
        attempt.check()
        if attempt.needs_proof:
            send(conn, attempt.challenge())
            attempt.prove(expect(conn, Proof, MAX_LOGIN_BYTES))
    except AuthError as exc:
        _refuse(conn, str(exc))
        raise
    session, welcome = attempt.welcome()
    send(conn, welcome)
    return Entrance(login, session, _first_message(conn))


def _first_message(conn: Conn) -> Message | None:
    """Return the message behind the login; None when a multiplexed session begins there instead."""
    first_byte = conn.recv(1)
    if not first_byte:
        raise ConnClosed("the peer closed the connection behind its login")
    conn.unread(first_byte)
    return None if first_byte[0] == yamux.VERSION else recv(conn, MAX_LOGIN_BYTES)


def _refuse(conn: SocketConn, reason: str) -> None:
    """Tell one of our own clients why, and wait for it to hang up.

    Closing on bytes unread would be a reset, which can overtake the message.
    """
    try:
        send(conn, Welcome(error=reason))
        conn.shutdown(socket.SHUT_WR)
        with deadline(LINGER_S, "hanging up"):
            while conn.recv(MAX_LOGIN_BYTES):
                pass
    except ConnError:
        return
