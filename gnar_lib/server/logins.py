"""The first messages on a connection to the control port: who the peer is, and what the connection is for.

Nothing here has a deadline: `in_progress` closes connections that take too long.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib import auth, yamux
from gnar_lib.config import ServerConfig
from gnar_lib.errors import (
    AuthError,
    AuthMethodError,
    CertificateError,
    ClockError,
    ConnClosed,
    ConnError,
    GnarError,
    ProtocolError,
    TooManyLoginsError,
)
from gnar_lib.events import Refusal
from gnar_lib.net import Conn, deadline
from gnar_lib.proto import Exchange, Login, Message, Proof, ProxyCancel, ProxyReq, Welcome, expect, recv, send
from gnar_lib.proto.msg import AUTH_NONE
from gnar_lib.proto.numbers import FEATURE_MOVE, FEATURES, MAX_LOGIN_BYTES, MAX_REQUEST_BYTES

LINGER_S = 2.0  # the longest wait until a client that was refused hangs up
MAX_LINGER_BYTES = 2 * MAX_REQUEST_BYTES  # that are read meanwhile: gnar's own clients send less


@dataclass(frozen=True, slots=True)
class Peer:
    """Who has logged in, and by what; `session` is None for a Go client."""

    login: Login
    session: auth.Session | None
    credential: auth.Credential
    is_encrypted: bool = False  # by TLS; so all data connections have to be

    @property
    def moves(self) -> bool:
        """Whether the client multiplexes without being told to, and bulk on its streams may move."""
        return self.session is not None and FEATURE_MOVE in self.session.features

    @property
    def version(self) -> str:
        """What the client calls itself."""
        return self.login.version or self.login.client_version or "no version"


def are_one_owner(one: Peer, other: Peer) -> bool:
    """Tell whether two logins are of the same credential: only then may one end what the other has."""
    return one.credential == other.credential


# ---- what a connection turned out to be for ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForControl:
    """A control connection, with the first proxy that the client asks for."""

    peer: Peer
    request: ProxyReq


@dataclass(frozen=True, slots=True)
class ForData:
    """A data connection for the user whom the Exchange names. `login` is proven for a Go client alone."""

    login: Login
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class ForWaiting:
    """A data connection that is to wait for a user. Its `login` has not been proven yet."""

    login: Login


@dataclass(frozen=True, slots=True)
class ForCarrier:
    """A further multiplexed session of a client. Its `login` has not been proven yet."""

    login: Login


@dataclass(frozen=True, slots=True)
class ForBeside:
    """A connection on which bulk of a stream goes on. Its `login` has not been proven yet."""

    login: Login


@dataclass(frozen=True, slots=True)
class ForStreams:
    """A multiplexed session: the first byte behind the login is the beginning of a frame of yamux."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class ForCancel:
    """The end of a proxy, for which a Go client makes a connection."""

    peer: Peer
    message: ProxyCancel


@dataclass(frozen=True, slots=True)
class ForHealth:
    """A health check, which has been answered."""


PurposeOfStream = ForControl | ForData | ForCancel
PurposeOfDataConn = ForData | ForWaiting | ForCarrier | ForBeside
Purpose = PurposeOfStream | PurposeOfDataConn | ForStreams | ForHealth


def purpose_of(first: Message, peer: Peer) -> PurposeOfStream:
    """Return what a conn is for whose first message behind the login of `peer` is `first`.

    The conn may be a stream, for which the session has logged in. Raises `ProtocolError` for a message that
    has no place there.
    """
    match first:
        case ProxyReq():
            return ForControl(peer, first)
        case Exchange():
            return ForData(peer.login, first)
        case ProxyCancel():
            return ForCancel(peer, first)
        case _:
            raise ProtocolError(f"{type(first).__name__} after the login")


# ---- logging in --------------------------------------------------------------------------------------------


def log_in(conn: Conn, config: ServerConfig, may_try: Callable[[], bool], certificate: str = "") -> Purpose:
    """Receive what comes first on a connection, check it, and return what the connection is for.

    A data connection of one of gnar's own clients names a session, and its proof is made with the key of that
    session: the proof is not checked here. `may_try` tells whether a client may try to log in now; it is not
    asked about data connections, and not about those of Go clients. `certificate` is the SHA-256, in hex, of
    the certificate that this end has shown on the conn; empty without TLS. Raises `AuthError`,
    `ProtocolError` or `ConnError`. The caller closes the conn.
    """
    login = expect(conn, Login, MAX_LOGIN_BYTES)
    if login.auth == AUTH_NONE:
        send(conn, Welcome(features=FEATURES))
        return ForHealth()
    if login.session:
        return _purpose_of_data_conn(conn, login)
    attempt = auth.ServerLogin(config.token, config.auth, login, heartbeat=config.heartbeat)
    attempt.certificate = certificate
    if not attempt.is_ours:
        _check_encryption(config, certificate)
        attempt.check()
        return _purpose_behind_login(conn, Peer(login, None, attempt.credential))
    if not may_try():  # without a word, which a client would take for good
        raise TooManyLoginsError("too many logins a second from there")
    try:
        _check_encryption(config, certificate)
        attempt.check()
        if attempt.needs_proof:
            send(conn, attempt.challenge())
            attempt.prove(_recv_proof(conn, attempt))
    except AuthError as exc:
        _refuse(conn, str(exc))
        raise
    session, welcome = attempt.welcome(config.max_proxies)
    send(conn, welcome)
    return _purpose_behind_login(
        conn, Peer(login, session, attempt.credential, is_encrypted=bool(certificate))
    )


def _check_encryption(config: ServerConfig, certificate: str) -> None:
    """Raise `AuthMethodError` if clients need TLS here, and one has come without."""
    if config.tls == "require" and not certificate:
        raise AuthMethodError("this server takes no login without TLS (its setting: tls = require)")


def _recv_proof(conn: Conn, attempt: auth.ServerLogin) -> Proof:
    """Return the client's answer to the Challenge.

    A client that has been shown another certificate hangs up in place of an answer.
    """
    try:
        return expect(conn, Proof, MAX_LOGIN_BYTES)
    except ConnClosed:
        if attempt.sees_another:
            raise attempt.why_unproven from None
        raise


def _purpose_of_data_conn(conn: Conn, login: Login) -> PurposeOfDataConn:
    if login.waiting:
        return ForWaiting(login)
    if login.carrier:
        return ForCarrier(login)
    if login.beside:
        return ForBeside(login)
    return ForData(login, expect(conn, Exchange, MAX_LOGIN_BYTES))


def cause_of(error: GnarError) -> Refusal:
    """Return why a login is refused that has failed with an error of `log_in`."""
    match error:
        case AuthMethodError():
            return Refusal.METHOD
        case CertificateError():
            return Refusal.CERTIFICATE
        case ClockError():
            return Refusal.CLOCK
        case TooManyLoginsError():
            return Refusal.RATE
        case AuthError():
            return Refusal.TOKEN
        case _:
            return Refusal.PROTOCOL


def _purpose_behind_login(conn: Conn, peer: Peer) -> Purpose:
    """Receive what follows the login of `peer` on a connection, and return what the connection is for.

    A client that multiplexes without being told to does so behind the Welcome. Before it has seen whose
    Welcome that is, it may have asked for a proxy, since a Go server expects that, and will ask again.
    """
    if _first_byte(conn) == yamux.VERSION:
        return ForStreams(peer)
    purpose = purpose_of(recv_first(conn), peer)
    if isinstance(purpose, ForControl) and peer.moves:
        return ForStreams(peer)
    return purpose


def recv_first(conn: Conn) -> Message:
    """Return the first message behind a login, also of a stream; raises what `recv` raises."""
    return recv(conn, MAX_REQUEST_BYTES if _first_byte(conn) == ProxyReq.TYPE else MAX_LOGIN_BYTES)


def _first_byte(conn: Conn) -> int:
    """Return the byte that comes next, which stays in the conn; raises `ConnError`."""
    first_byte = conn.recv(1)
    if not first_byte:
        raise ConnClosed("the peer closed the connection behind its login")
    conn.unread(first_byte)
    return first_byte[0]


def _refuse(conn: Conn, reason: str) -> None:
    """Tell one of gnar's own clients why it is refused, and wait for the client to hang up.

    Closing while there are unread bytes would send a reset, which can overtake the message. Whoever sends far
    more than a login gets the reset.
    """
    try:
        send(conn, Welcome(error=reason))
        conn.shutdown(socket.SHUT_WR)
        with deadline(LINGER_S, "hanging up"):
            left = MAX_LINGER_BYTES
            while left > 0 and (data := conn.recv(left)):
                left -= len(data)
    except ConnError:
        return
