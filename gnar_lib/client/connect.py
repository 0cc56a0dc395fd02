"""Dials the server and logs in on a control connection, and opens the data connections beside it."""

from __future__ import annotations

import socket
import time

from gnar_lib.auth import ClientLogin, Session
from gnar_lib.client.way import Reached, Way
from gnar_lib.config import ClientConfig
from gnar_lib.config.model import NAMED_KINDS
from gnar_lib.config.transport import shown
from gnar_lib.errors import (
    CertificateError,
    ConnClosed,
    ConnError,
    DialError,
    NamesUnsupportedError,
    OtherServerError,
    ProtocolError,
    UnsupportedError,
)
from gnar_lib.net import Conn, EventedConn, Sockaddr, deadline, format_address
from gnar_lib.proto import (
    Challenge,
    Exchange,
    Message,
    ProxyCancel,
    ProxyReq,
    Welcome,
    expect,
    recv,
    send,
    to_frame,
)
from gnar_lib.proto.numbers import (
    FEATURE_LEAVE,
    FEATURE_MOVE,
    FEATURE_MUX,
    FEATURE_NAMES,
    FEATURE_UDP,
    FEATURE_USERS,
    GO_SILENCE_S,
    HEARTBEAT_S,
    LOGIN_DEADLINE_S,
    silence_s,
)
from gnar_lib.proto.packet import frame_size
from gnar_lib.yamux import VERSION as MUX_VERSION
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

_START_BYTES = 8  # by which an answer is told from other protocols
_NO_MUX = (
    "the server does not multiplex: leave -m out (through a proxy: --no-multiplex), "
    "or start a Go server with -m"
)


class ControlConn:
    """A control connection to the server; `ControlConn.dial` makes one, and `close` or `abort` closes it.

    Data connections go to the very address that the control connection has reached.
    """

    def __init__(
        self, config: ClientConfig, client_id: str, reached: Reached, *, is_check: bool = False
    ) -> None:
        self.conn: Conn = reached.conn  # carries messages; a stream of `mux` once that is there
        self.session: Session | None = None  # with a server of gnar's own; None with a Go server
        self.max_proxies = 0  # how many proxies the server takes of this client; 0: it has not said
        self.server_ahead_s: float | None = None  # of its clock, to half a second; None: it has not said
        self.mux: Mux | None = None  # the multiplexed session over the connection; None without multiplexing
        self.is_outdated = False  # the server shows another certificate than the one that the login covers
        self._reached = reached
        self._is_pinned = bool(config.fingerprint)
        self._conn = reached.conn
        self._login = ClientLogin(config.token, config.auth, client_id, heartbeat=config.heartbeat)
        self._login.certificate = self._login.covered = reached.certificate
        self._login.is_check = is_check
        self._multiplexes = config.multiplex  # None: if the server is of gnar's own
        if config.multiplex is None:
            self._login.features += (FEATURE_MOVE,)
        self._waiting_number = 0  # of the last data connection that was opened to wait

    @classmethod
    def dial(
        cls, config: ClientConfig, client_id: str, way: Way | None = None, *, is_check: bool = False
    ) -> ControlConn:
        """Connect to the server; raises what `Way.dial` raises. `way` knows which address has worked before.

        `is_check`: the server is not to tell of this client, which only tries whether everything works.
        """
        return cls(config, client_id, (way or Way(config)).dial(), is_check=is_check)

    @property
    def is_go(self) -> bool:
        """Whether the server is the Go program; known once `log_in` has returned."""
        return self.session is None

    @property
    def heartbeat_s(self) -> float:
        """The seconds between two Heartbeats of this end."""
        return HEARTBEAT_S if self.session is None else self.session.heartbeat_s

    @property
    def answers_heartbeats(self) -> bool:
        """Whether this end answers the server's Heartbeats, in place of sending its own at its own pace."""
        return self.session is not None and self.session.heartbeat > 0

    @property
    def silence_s(self) -> float:
        """After how many seconds without a sign of life another control connection is tried."""
        return GO_SILENCE_S if self.session is None else silence_s(self.session.heartbeat_s)

    @property
    def address(self) -> Sockaddr:
        """The address of the server."""
        return self._conn.getpeername()

    @property
    def carries_datagrams_in_binary(self) -> bool:
        """Whether both ends know the binary form of datagrams."""
        return self.session is not None and FEATURE_UDP in self.session.features

    @property
    def keeps_ports(self) -> bool:
        """Whether the server keeps the ports of a client that is to be started again."""
        return self.session is not None and FEATURE_LEAVE in self.session.features

    @property
    def gives_names(self) -> bool:
        """Whether the server knows names, and rules for users' addresses."""
        return self.session is not None and FEATURE_NAMES in self.session.features

    @property
    def limits_users(self) -> bool:
        """Whether the server keeps the limits on users for which a proxy asks."""
        return self.session is not None and FEATURE_USERS in self.session.features

    @property
    def moves(self) -> bool:
        """Whether there may be further connections beside the multiplexed session: bulk moves to them."""
        return self.session is not None and FEATURE_MOVE in self.session.features

    @property
    def proof(self) -> str:
        """What proves that the certificate is the server's, for people; known once `log_in` has returned.

        Empty if nothing does, or without TLS. To find that out, this may wait for another connection.
        """
        if not self._reached.certificate:
            return ""
        if self._is_pinned:
            return "its fingerprint"
        if self._login.proves and self._login.covered == self._reached.certificate:
            return "the token"
        try:
            return "an authority that this system trusts" if self._reached.is_trusted else ""
        except ConnError:
            return ""

    @property
    def is_unproven(self) -> bool:
        """Whether the connection is encrypted, but nothing proves the server. Waits as `proof` does."""
        return bool(self._reached.certificate) and not self.proof

    @property
    def encryption(self) -> str:
        """What encrypts the connection, such as "TLS 1.3"; empty if nothing does."""
        return self._reached.encryption

    @property
    def certificate(self) -> str:
        """The SHA-256, in hex, of the certificate that the server has shown; empty without TLS."""
        return self._reached.certificate

    @property
    def round_trip_s(self) -> float | None:
        """How long a round trip to the server takes; None where nobody can tell."""
        return self._reached.round_trip_s

    # ---- logging in ----------------------------------------------------------------------------------------

    def log_in(self, request: ProxyReq) -> None:
        """Log in and ask for a first proxy.

        A server of gnar's own answers with a Welcome. A Go server says nothing before it was asked for a
        proxy, so the request leaves together with the Login. Raises `AuthError` if one end does not trust the
        other, `UnsupportedError` if the server does not multiplex, `NamesUnsupportedError` if the
        proxy needs names that the server does not know, `ProtocolError` if there is no server of
        gnar, or `ConnError`.
        """
        try:
            with deadline(LOGIN_DEADLINE_S, "the login"):
                self._log_in(request)
        except ProtocolError as exc:
            raise ProtocolError(f"no gnar server at {format_address(self.address)}: {exc}") from exc

    def _log_in(self, request: ProxyReq) -> None:
        send(self.conn, self._login.message())
        if self._login.proves:
            self._prove()
            self._check_names(request)
        if self._multiplexes or self.moves:
            self._multiplex()
        send(self.conn, request)
        if not self._login.proves:
            self._see_who_answers()
            self._check_names(request)
            if self.moves:  # the server has passed the first request over, which was for a Go server
                self._multiplex()
                send(self.conn, request)
        if self.mux is not None:
            self.mux.receive()

    def _multiplex(self) -> None:
        self.mux = Mux(self._conn, is_client=True, receives=False)
        self.conn = self.mux.open()

    def _check_names(self, request: ProxyReq) -> None:
        if reason := "" if self.gives_names else why_names(request):
            raise NamesUnsupportedError(reason)

    def _prove(self) -> None:
        """Answer the server's Challenge, if there is one, and receive the Welcome."""
        answer = recv(self.conn)
        if isinstance(answer, Challenge):
            self._cover(answer.certificate)
            send(self.conn, self._login.answer(answer))
            answer = expect(self.conn, Welcome)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"the server answered the login with {type(answer).__name__}")
        self._welcomed(answer)

    def _cover(self, certificate: str) -> None:
        """Have the proofs cover the certificate that the server says it has shown.

        Where something ends TLS in front of the server, that is another certificate than this client has
        seen. So the one that it has seen has to be pinned, or trusted by the system. Raises
        `CertificateError` if it is neither, or `ConnError` if nobody can tell.
        """
        if certificate == self._reached.certificate:
            return
        if not self._reached.is_trusted:
            raise CertificateError(
                f"somebody stands in between: the server shows {shown(certificate)}, "
                f"and this client has seen {shown(self._reached.certificate)}"
            )
        self._login.covered = certificate

    def _see_who_answers(self) -> None:
        """Receive the Welcome of a server of gnar's own; what a Go server sends instead stays unread."""
        start = self._conn.recv(_START_BYTES)
        if not start:
            raise ConnClosed("the server closed the connection")
        self._conn.unread(start)
        if self._multiplexes and start[0] == MUX_VERSION:
            return
        frame_size(start)  # raises an error unless this is a frame
        if start[0] == Welcome.TYPE:
            self._welcomed(expect(self._conn, Welcome))
        elif self._multiplexes:
            raise UnsupportedError(_NO_MUX)

    def _welcomed(self, message: Welcome) -> None:
        """Take the Welcome; raises `AuthError` if it refuses us, or if the server does not prove itself."""
        self.session = self._login.accept(message)
        self.max_proxies = message.max_proxies
        if message.time:
            self.server_ahead_s = message.time + 0.5 - time.time()  # whose seconds are whole
        if self._multiplexes and FEATURE_MUX not in self.session.features:
            raise UnsupportedError(_NO_MUX)

    @property
    def hint(self) -> str:
        """What a person may do about a server that hangs up on the login, as a Go server does."""
        if self._login.proves:
            return "is it up yet? A Go server needs --auth md5"
        token = "Is the token wrong?" if self._login.token else "Does it want a token, in GNAR_TOKEN?"
        mux = " A Go server without -m needs a client without -m" if self._multiplexes else ""
        return f"is it up yet? {token}{mux}"

    # ---- data connections ----------------------------------------------------------------------------------

    def open_data(self, asked: Exchange) -> Conn:
        """Return a new data connection for the user whom the Exchange `asked` has announced.

        The data connection is proven and ready for the user's bytes; the caller closes it. Raises
        `ConnError`.
        """
        if self.mux is not None and not self.moves:
            return _open_stream(self.mux, Exchange(conn_id=asked.conn_id, proxy_type=asked.proxy_type))
        if self.session is None:
            login, proof = self._login.go_message(), ""
        else:
            login, proof = self._login.data_message(self.session), self.session.sign(asked.conn_id)
        answer = Exchange(conn_id=asked.conn_id, proxy_type=asked.proxy_type, proof=proof)
        return self._dial_and_send(to_frame(login) + to_frame(answer))

    @property
    def may_wait(self) -> bool:
        """Whether data connections can wait at this server for a user: not with streams, which need none."""
        return self.session is not None and self.mux is None

    def open_waiting(self) -> Conn:
        """Return a new data connection that waits for a user, proven; the caller closes it.

        Raises `ConnError`, or `ProtocolError` with a Go server, which has no data connections that wait.
        """
        session = self._own_session
        self._waiting_number += 1
        return self._dial_and_send(to_frame(self._login.waiting_message(session, self._waiting_number)))

    def open_carrier(self, number: int) -> EventedConn:
        """Return a new connection for the `number`-th further multiplexed session, proven.

        The caller closes it. Raises `ConnError`, or `ProtocolError` with a Go server.
        """
        return self._dial_and_send(to_frame(self._login.carrier_message(self._own_session, number)))

    def open_beside(self, stream: str) -> EventedConn:
        """Return a new connection beside a stream, such as "0:12", proven; the caller closes it.

        Raises `ConnError`, or `ProtocolError` with a Go server.
        """
        return self._dial_and_send(to_frame(self._login.beside_message(self._own_session, stream)))

    @property
    def _own_session(self) -> Session:
        if self.session is None:
            raise ProtocolError("a Go server has no such connections")
        return self.session

    def _dial_and_send(self, frames: bytes) -> EventedConn:
        """Return a new connection to the server on which `frames` were sent; the caller closes it.

        Raises `DialError` if the connection could not be opened, or `ConnError`.
        """
        try:
            conn = self._reached.again()
        except CertificateError as exc:
            self.is_outdated = True
            raise OtherServerError(str(exc)) from exc
        except DialError:
            raise
        except (ConnError, ProtocolError) as exc:  # of what is on top of the conn, such as TLS
            raise DialError(str(exc)) from exc
        try:
            conn.sendall(frames)
        except BaseException:
            conn.close()
            raise
        return conn

    def cancel_apart(self, message: ProxyCancel) -> None:
        """Cancel a proxy at a Go server, which wants another connection for that; raises `ConnError`."""
        if self.mux is not None:
            _open_stream(self.mux, message).close()
        else:
            self._dial_and_send(to_frame(self._login.go_message()) + to_frame(message)).close()

    # ---- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the control connection; with multiplexing, its streams go with it."""
        if self.mux is None:  # unread bytes make `close` send a reset: an end has to come before
            self._conn.shutdown(socket.SHUT_WR)
            self._conn.close()
        else:
            self.conn.close()
            self.mux.close()

    def retire(self) -> None:
        """Close the control connection, since another has taken its place; users stay, also on streams."""
        if self.mux is None:
            self.conn.close()
        else:
            self.conn.abort()  # so that nothing but users keeps the session open
            self.mux.drain()

    def abort(self) -> None:
        """Give up a server that does not answer: whoever receives on `conn` gets a `ConnError`."""
        self.conn.abort()
        if self.mux is not None:
            self.mux.abort()


def why_names(request: ProxyReq) -> str:
    """Return why a server that knows no names cannot have a proxy; empty if it can."""
    if request.proxy_type in NAMED_KINDS:
        return (
            f"this server knows no proxies of {request.proxy_type}: it is of an earlier version, or the Go "
            "program; ask for a port instead, as in 3000:9000"
        )
    if request.allow_from or request.deny_from:
        return "this server does not know allow-from and deny-from: it would let everybody in"
    return ""


def _open_stream(mux: Mux, message: Message) -> Stream:
    """Return a new stream on which `message` has been sent; the caller closes it."""
    stream = mux.open()
    try:
        send(stream, message)
    except BaseException:
        stream.close()
        raise
    return stream
