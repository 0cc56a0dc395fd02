"""Handshakes of TLS that come to nothing: each ends soon, and the peer learns why if it can."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib.errors import ConnClosed, ConnError, DeadlineError
from gnar_lib.net import SocketConn, deadline
from gnar_lib.transport import refusal
from gnar_lib.transport.tls import TlsConn
from tests.helpers.conns import Pair, tcp_pair
from tests.helpers.hello import hello_with, real_hello, sni
from tests.helpers.tls import HOST, client_context, server_context

ALERT = 21  # the type of a record


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Yield the peer's end of a connection, and the one that accepts TLS."""
    peer, conn = tcp_pair()
    yield peer, conn
    peer.close()
    conn.close()


def accept(conn: SocketConn) -> ConnError:
    """Return the error with which a handshake ends."""
    with pytest.raises(ConnError) as caught:
        TlsConn.accept(conn, server_context())
    return caught.value


def answer_to(pair: Pair, data: bytes) -> bytes:
    """Send bytes that are no handshake, and return what comes back, to the end."""
    peer, conn = pair
    accepting = gevent.spawn(accept, conn)
    peer.sendall(data)
    answer = b""
    while more := peer.recv(1000):
        answer += more
    peer.close()
    assert not isinstance(accepting.get(), ConnClosed)
    return answer


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"OPTIONS", b"CONNECT", b"PRI"])
def test_plain_http_is_told_in_http_that_this_is_https(pair: Pair, method: bytes) -> None:
    head, _, body = answer_to(pair, method + b" / HTTP/1.1\r\nHost: a\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert b"https://" in body


@pytest.mark.parametrize(
    "data", [b"\0" * 20, b"SSH-2.0-OpenSSH_9.2\r\n", b"get / http/1.1\r\n", b"\x16\x03\x01\x00\x01\x02"]
)
def test_other_bytes_get_an_alert(pair: Pair, data: bytes) -> None:
    assert answer_to(pair, data)[0] == ALERT


@pytest.mark.parametrize("name", [b"a b", b"\xff\xfe", b"a..b"])
def test_name_that_is_no_host_gets_an_alert_and_no_traceback(
    pair: Pair, name: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert answer_to(pair, hello_with(sni(name)))[0] == ALERT
    assert capfd.readouterr() == ("", "")


def test_answer_arrives_although_the_peer_still_sends(pair: Pair) -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000
    assert answer_to(pair, request).endswith(b"address.\n")


def test_peer_that_goes_on_sending_is_not_listened_to_for_long(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, conn = pair
    monkeypatch.setattr(refusal, "PART_S", 0.05)
    peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert "no TLS" in str(accept(conn))  # although the peer never ends


@pytest.mark.parametrize("size", [0, 1, 5, 100, 516])
def test_peer_that_goes_before_it_has_said_hello_ends_the_handshake(pair: Pair, size: int) -> None:
    peer, conn = pair
    peer.sendall(real_hello("a")[:size])
    peer.close()
    assert isinstance(accept(conn), ConnClosed)


@pytest.mark.parametrize("end", ["shutdown", "abort"])
def test_peer_that_goes_behind_its_hello_ends_the_handshake(pair: Pair, end: str) -> None:
    peer, conn = pair
    accepting = gevent.spawn(accept, conn)
    peer.sendall(real_hello("a"))
    assert peer.recv(1)
    peer.shutdown(socket.SHUT_WR) if end == "shutdown" else peer.abort()
    assert isinstance(accepting.get(), ConnClosed)


def test_server_that_answers_with_the_end_of_tls_is_told_from_one_that_fails(pair: Pair) -> None:
    far, near = pair
    far.sendall(b"\x15\x03\x03\x00\x02\x01\x00")  # close_notify
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnError, match="has ended TLS within the handshake"):
        TlsConn.connect(near, client_context(), HOST)


def test_peer_that_says_nothing_is_for_the_deadline_of_the_caller(pair: Pair) -> None:
    with pytest.raises(DeadlineError), deadline(0.05, "a handshake"):
        TlsConn.accept(pair[1], server_context())


def test_peer_without_a_version_in_common_is_told(pair: Pair) -> None:
    peer, conn = pair
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    accepting = gevent.spawn(_error_of, conn, server)
    with pytest.raises(ConnError, match=r"TLS: .*alert.*version"):
        TlsConn.connect(peer, client_context(ssl.TLSVersion.TLSv1_2), HOST)
    peer.close()
    assert "TLS: unsupported protocol" in accepting.get()


def _error_of(conn: SocketConn, context: ssl.SSLContext) -> str:
    with pytest.raises(ConnError) as caught:
        TlsConn.accept(conn, context)
    return str(caught.value)


def test_client_takes_no_certificate_for_another_host(pair: Pair) -> None:
    near, far = pair
    accepting = gevent.spawn(accept, far)
    with pytest.raises(ConnError, match=r"certificate verify failed: .*'other\.example'"):
        TlsConn.connect(near, client_context(), "other.example")
    near.close()
    assert "alert" in str(accepting.get())


@pytest.mark.parametrize("host", ["", ".a", "a" * 300 + "\0"])
def test_client_cannot_ask_for_what_is_no_host(pair: Pair, host: str) -> None:
    with pytest.raises(ConnError, match="TLS: "):
        TlsConn.connect(pair[0], client_context(), host)


def test_server_knows_which_host_the_client_wants(pair: Pair) -> None:
    near, far = pair
    accepting = gevent.spawn(TlsConn.accept, far, server_context())
    client = TlsConn.connect(near, client_context(), "LocalHost")
    server = accepting.get()
    assert server.server_name == "localhost"
    assert server.getpeername() == far.getpeername()
    client.close()
    server.close()
