"""Dials the server and logs in: the control connection, and the way to data connections."""

from __future__ import annotations

from collections.abc import Callable

from gnar_lib.auth import ClientLogin, Session
from gnar_lib.config import ClientConfig
from gnar_lib.errors import ConnClosed, ProtocolError, UnsupportedError
from gnar_lib.net import Conn, Crew, SocketConn, deadline, dial, dial_host, set_keepalive
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
from gnar_lib.proto.numbers import FEATURE_MUX
from gnar_lib.yamux import VERSION as MUX_VERSION
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

LOGIN_DEADLINE_S = 10.0
USER_TIMEOUT_S = 10.0  # the server reads its control connections all the time
_NO_MUX = "the server does not multiplex: leave -m out, or start a Go server with -m"


class Control:
    """A control connection; `session` is None with a Go server, `mux` unless everything is one connection.

    `conn` is then a stream of the session, and so are the data connections.
    """

    def __init__(self, config: ClientConfig, client_id: str) -> None:
        self._login = ClientLogin(config.token, config.auth, client_id)
        self._multiplexes = config.multiplex
        self.session: Session | None = None
        self.mux: Mux | None = None
        self._waiting_number = 0
        self._sock_conn = dial_host(config.server.host, config.server.port)
        self.conn: Conn = self._sock_conn
        self._family, self._address = self._sock_conn.sock.family, self._sock_conn.getpeername()
        set_keepalive(self._sock_conn.sock)
        self._sock_conn.set_user_timeout(USER_TIMEOUT_S)

    def log_in(self, request: ProxyReq) -> None:
        """Log in and ask for a first proxy.

        A server of ours says so by a Welcome. A Go server says nothing before it was asked for a proxy, so
        the request goes out with the Login. Raises `AuthError` when either end does not trust the other,
        `UnsupportedError` when the server does not multiplex.
        """
        with deadline(LOGIN_DEADLINE_S, "the login"):
            send(self.conn, self._login.message())
            if self._login.proves:
                self._prove()
            self._multiplex()
            send(self.conn, request)
            if not self._login.proves:
                self._see_who_answers()
            if self.mux is not None:
                self.mux.receive()

    def _prove(self) -> None:
        answer = recv(self.conn)
        if isinstance(answer, Challenge):
            send(self.conn, self._login.answer(answer))
            answer = expect(self.conn, Welcome)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"the server answered the login with {type(answer).__name__}")
        self._welcomed(answer)

    def _see_who_answers(self) -> None:
        """Take the Welcome, if that is what comes: a Go server sends something else, which is left unread."""
        start = self._sock_conn.recv(1)
        if not start:
            raise ConnClosed("the server closed the connection")
        self._sock_conn.unread(start)
        if start[0] == Welcome.TYPE:
            self._welcomed(expect(self._sock_conn, Welcome))
        elif self._multiplexes and start[0] != MUX_VERSION:
            raise UnsupportedError(_NO_MUX)

    def _welcomed(self, message: Welcome) -> None:
        self.session = self._login.accept(message)
        if self._multiplexes and FEATURE_MUX not in self.session.features:
            raise UnsupportedError(_NO_MUX)

    def _multiplex(self) -> None:
        """From here on everything is a stream."""
        if self._multiplexes:
            self.mux = Mux(self._sock_conn, is_client=True, receives=False)
            self.conn = self.mux.open()

    @property
    def hint(self) -> str:
        """What a person may do about a server that hangs up on the login, as a Go server does."""
        if self._login.proves:
            return "if it is a Go server, use --auth md5"
        hint = "wrong token?" if self._login.token else "does it want a token?"
        return f"{hint} Or is it a Go server without -m? Then leave -m out" if self._multiplexes else hint

    def close(self) -> None:
        """Close the control connection; multiplexed, the data connections go with it."""
        self.conn.close()
        if self.mux is not None:
            self.mux.close()
        self._sock_conn.close()

    def abort(self) -> None:
        """Give up a server that does not answer."""
        self.conn.abort()
        if self.mux is not None:
            self.mux.abort()

    # ---- further connections -------------------------------------------------------------------------------

    def serve_streams(self, crew: Crew, handle: Callable[[Stream], None]) -> None:
        """Have `handle` serve the streams that a multiplexing server opens for its users."""
        if self.mux is not None:
            self.mux.serve(crew, handle)

    def open_data(self, message: Exchange) -> Conn:
        """Open the data connection for the user whom `message` announced, proven and ready for bytes."""
        if self.mux is not None:
            return self._open_stream(Exchange(conn_id=message.conn_id, proxy_type=message.proxy_type))
        if self.session is None:
            login, proof = self._login.go_message(), ""
        else:
            login, proof = self._login.data_message(self.session), self.session.sign(message.conn_id)
        answer = Exchange(conn_id=message.conn_id, proxy_type=message.proxy_type, proof=proof)
        return self._dial_and_send(to_frame(login) + to_frame(answer))

    def open_waiting(self) -> SocketConn:
        """Dial a data connection that waits for a user, proven; only with a server of ours."""
        assert self.session is not None  # noqa: S101  (a Go server never asks for one)
        self._waiting_number += 1
        return self._dial_and_send(to_frame(self._login.waiting_message(self.session, self._waiting_number)))

    def _dial_and_send(self, frames: bytes) -> SocketConn:
        conn = dial(self._family, self._address)
        try:
            set_keepalive(conn.sock)
            conn.sendall(frames)
        except BaseException:
            conn.close()
            raise
        return conn

    def _open_stream(self, message: Message) -> Stream:
        assert self.mux is not None  # noqa: S101  (asked by the callers)
        stream = self.mux.open()
        try:
            send(stream, message)
        except BaseException:
            stream.close()
            raise
        return stream

    def cancel_apart(self, message: ProxyCancel) -> None:
        """Cancel a proxy at a Go server, which wants a connection of its own for it."""
        if self.mux is not None:
            self._open_stream(message).close()
            return
        conn = dial(self._family, self._address)
        try:
            conn.sendall(to_frame(self._login.go_message()) + to_frame(message))
        finally:
            conn.close()
