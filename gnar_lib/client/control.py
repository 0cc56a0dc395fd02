"""Dials the server and logs in: the control connection, and the way to data connections beside it."""

from __future__ import annotations

from gnar_lib.auth import ClientLogin, Session
from gnar_lib.config import ClientConfig
from gnar_lib.errors import ProtocolError
from gnar_lib.net import SocketConn, deadline, dial, dial_host, set_keepalive, set_user_timeout
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

LOGIN_DEADLINE_S = 10.0
USER_TIMEOUT_S = 10.0  # the server reads its control connections all the time


class Control:
    """A control connection; `session` is None with a Go server."""

    def __init__(self, config: ClientConfig, client_id: str) -> None:
        self._login = ClientLogin(config.token, config.auth, client_id)
        self.session: Session | None = None
        self._waiting_number = 0
        self.conn = dial_host(config.server.host, config.server.port)
        self._family, self._address = self.conn.sock.family, self.conn.getpeername()
        set_keepalive(self.conn.sock)
        set_user_timeout(self.conn, USER_TIMEOUT_S)

    def log_in(self, request: ProxyReq) -> Message | None:
        """Log in and ask for a first proxy; returns what a Go server answered, None from one of ours.

        A server of ours says so by a Welcome. A Go server says nothing before it was asked for a proxy, so
        the request goes out with the Login. Raises `AuthError` when either end does not trust the other.
        """
        with deadline(LOGIN_DEADLINE_S, "the login"):
            if self._login.proves:
                send(self.conn, self._login.message())
                self._prove()
                send(self.conn, request)
                return None
            self.conn.sendall(to_frame(self._login.message()) + to_frame(request))
            answer = recv(self.conn)
            if not isinstance(answer, Welcome):
                return answer
            self.session = self._login.accept(answer)
            return None

    def _prove(self) -> None:
        answer = recv(self.conn)
        if isinstance(answer, Challenge):
            send(self.conn, self._login.answer(answer))
            answer = expect(self.conn, Welcome)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"the server answered the login with {type(answer).__name__}")
        self.session = self._login.accept(answer)

    @property
    def hint(self) -> str:
        """What a person may do about a server that hangs up on the login, as a Go server does."""
        if self._login.proves:
            return "if it is a Go server, use --auth md5"
        return "wrong token?" if self._login.token else "does it want a token?"

    # ---- further connections -------------------------------------------------------------------------------

    def open_data(self, message: Exchange) -> SocketConn:
        """Dial the data connection for the user whom `message` announced, proven and ready for bytes."""
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

    def cancel_apart(self, message: ProxyCancel) -> None:
        """Cancel a proxy at a Go server, which wants a connection of its own for it."""
        conn = dial(self._family, self._address)
        try:
            conn.sendall(to_frame(self._login.go_message()) + to_frame(message))
        finally:
            conn.close()
