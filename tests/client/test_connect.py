"""Logging in to a server that is played by hand, and data connections that cannot be opened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig, Secret
from gnar_lib.errors import AuthError, ConnClosed, GnarError, ProtocolError, UnsupportedError
from gnar_lib.net import SocketConn, deadline, listen
from gnar_lib.proto import (
    Exchange,
    Heartbeat,
    Login,
    Message,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    Welcome,
    recv,
    send,
)
from gnar_lib.proto.numbers import FEATURE_MUX
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream
from tests.helpers.conns import accept
from tests.helpers.loop import turn

TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
REQUEST = ProxyReq(remote_port=9001, proxy_name="blog", subdomain="", proxy_type="tcp")
ANSWER = ProxyResp(domain="", status="success")
USER = Exchange(conn_id="an id", proxy_type="tcp")


@contextmanager
def dialled(*, token: str = "", multiplex: bool = False) -> Iterator[tuple[ControlConn, SocketConn]]:
    """Return a control connection that has yet to log in, and the server's end of it."""
    listener = listen(LOOPBACK, 0)
    address = Address(LOOPBACK, listener.port)
    config = ClientConfig(address, (), token=Secret(token), multiplex=multiplex, tls="off")
    with deadline(TIMEOUT_S, "the test"):
        control = ControlConn.dial(config, "a client")
        server = accept(listener)
        yield control, server
        control.close()
    server.close()
    listener.close()


def log_in(control: ControlConn) -> gevent.Greenlet[[], GnarError | None]:
    """Log in, in a greenlet whose value is the error."""

    def run() -> GnarError | None:
        try:
            control.log_in(REQUEST)
        except GnarError as exc:
            return exc
        return None

    return gevent.spawn(run)


def hang_up(server: SocketConn) -> None:
    server.close()


def say(message: Message) -> Callable[[SocketConn], None]:
    return lambda server: send(server, message)


def say_http(server: SocketConn) -> None:
    server.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("token", "multiplex", "answer", "error", "says"),
    [
        ("s3cret", False, hang_up, ConnClosed, "closed"),
        ("s3cret", False, say_http, ProtocolError, "no gnar server at 127.0.0.1:"),
        ("s3cret", False, say_http, ProtocolError, ": this is HTTP"),
        ("", False, say_http, ProtocolError, ": this is HTTP"),
        ("", True, say_http, ProtocolError, ": this is HTTP"),
        ("s3cret", False, say(Heartbeat()), ProtocolError, "the server answered the login with Heartbeat"),
        ("s3cret", False, say(Welcome(error="wrong token")), AuthError, "wrong token"),
        ("", False, hang_up, ConnClosed, "the server closed the connection"),
        ("", False, say(Welcome(error="wrong token")), AuthError, "wrong token"),
        ("", True, say(Welcome(session="x")), UnsupportedError, "the server does not multiplex"),
        ("", True, say(ANSWER), UnsupportedError, "the server does not multiplex"),
    ],
    ids=[
        "hangs up",
        "HTTP",
        "what HTTP is",
        "HTTP to none",
        "HTTP to mux",
        "nonsense",
        "refuses",
        "hangs up on none",
        "refuses none",
        "ours without mux",
        "Go without mux",
    ],
)
def test_login_that_fails_says_why(
    token: str,
    multiplex: bool,
    answer: Callable[[SocketConn], None],
    error: type[GnarError],
    says: str,
) -> None:
    with dialled(token=token, multiplex=multiplex) as (control, server):
        attempt = log_in(control)
        assert isinstance(recv(server), Login)
        answer(server)
        failure = attempt.get()
        assert type(failure) is error
        assert says in str(failure)


def test_what_a_go_server_says_first_is_left_for_whoever_serves_the_connection() -> None:
    with dialled() as (control, server):
        attempt = log_in(control)
        send(server, ANSWER)
        assert attempt.get() is None
        assert control.is_go
        assert not control.may_wait
        assert not control.carries_datagrams_in_binary
        assert recv(control.conn) == ANSWER
        with pytest.raises(ProtocolError, match="a Go server has no such connections"):
            control.open_waiting()


def test_server_sees_an_end_and_no_reset_when_the_client_closes_without_reading_all() -> None:
    with dialled() as (control, server):
        send(server, ANSWER)  # stays unread
        turn()
        control.close()
        assert server.recv(1) == b""


def test_multiplexing_go_server_is_known_by_the_first_byte_it_sends() -> None:
    with dialled(multiplex=True) as (control, server):
        attempt = log_in(control)
        assert isinstance(recv(server), Login)
        mux = Mux(server, is_client=False)
        stream = mux.accept()
        assert recv(stream) == REQUEST
        send(stream, ANSWER)
        assert attempt.get() is None
        assert control.is_go
        assert recv(control.conn) == ANSWER
        control.cancel_apart(ProxyCancel("blog", 9001))
        assert recv(mux.accept()) == ProxyCancel("blog", 9001)
        mux.close()


def test_proxy_at_a_go_server_is_cancelled_on_a_connection_of_its_own() -> None:
    listener = listen(LOOPBACK, 0)
    address = Address(LOOPBACK, listener.port)
    config = ClientConfig(address, (), token=Secret("s3cret"), auth="md5")
    with deadline(TIMEOUT_S, "the test"):
        control = ControlConn.dial(config, "a client")
        server = accept(listener)
        control.cancel_apart(ProxyCancel("blog", 9001))
        other = accept(listener)
        login = recv(other)
        assert isinstance(login, Login)
        assert abs(login.timestamp - time.time()) < TIMEOUT_S
        assert recv(other) == ProxyCancel("blog", 9001)
        assert other.recv(1) == b""
    for conn in (server, other, listener):
        conn.close()
    control.close()


def fail(*_: object) -> None:
    raise ConnClosed("it broke just now")


def test_data_connection_that_breaks_at_once_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SocketConn] = []
    with dialled() as (control, _):
        init = SocketConn.__init__

        def note(self: SocketConn, *args: object) -> None:
            made.append(self)
            init(self, *args)  # type: ignore[arg-type]  # whatever they are

        monkeypatch.setattr(SocketConn, "__init__", note)
        monkeypatch.setattr(SocketConn, "sendall", fail)
        with pytest.raises(ConnClosed, match="it broke just now"):
            control.open_data(USER)
        monkeypatch.undo()
    (conn,) = made
    assert conn.closed


def test_stream_that_breaks_at_once_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with dialled(multiplex=True) as (control, server):
        attempt = log_in(control)
        recv(server)
        send(server, Welcome(session="x", features=(FEATURE_MUX,)))
        assert attempt.get() is None
        assert not control.may_wait
        mux = Mux(server, is_client=False)
        recv(mux.accept())
        monkeypatch.setattr(Stream, "sendall", fail)
        with pytest.raises(ConnClosed, match="it broke just now"):
            control.open_data(USER)
        monkeypatch.undo()
        assert mux.accept().recv(1) == b""
        mux.close()
