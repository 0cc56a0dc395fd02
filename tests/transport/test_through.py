"""Servers that are dialled through a proxy: one that the tests script, and real ones."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from gnar_lib.config.model import ProxyServer, Secret
from gnar_lib.errors import ConnError, DialError, ProxyLoginError, RefusedError, UnreachableError
from gnar_lib.net import Conn, Crew, EventedConn, listen, recv_exactly
from gnar_lib.net.dialling import DialSettings
from gnar_lib.transport.through import ProxyDialler
from gnar_lib.transport.tls import TlsConn
from tests.helpers.conns import LOOPBACK, blackhole
from tests.helpers.harness import free_port
from tests.helpers.loop import turn, wait_until
from tests.helpers.proxies import microsocks, squid, tinyproxy
from tests.helpers.tls import HOST, certificate, server_context

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"
GRANTED = b"\5\0\0\1\0\0\0\0\0\0"
PASSWORD = "opensesame"
SOON = DialSettings(timeout_s=0.1)

Serve = Callable[[EventedConn], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Serve], int]]:
    """Serve conns on a port of this process, which is returned."""
    crew, listeners = Crew("proxy"), []

    def begin(function: Serve) -> int:
        listeners.append(listen(LOOPBACK, 0))
        listeners[-1].serve(crew, function)
        return listeners[-1].port

    yield begin
    for each in listeners:
        each.close()
    crew.kill()
    turn()


def answering(*answers: bytes, then: Serve | None = None, asked: list[bytes] | None = None) -> Serve:
    """Return what sends an answer whenever something has come, and then goes on, or hangs up."""

    def run(conn: EventedConn) -> None:
        try:
            for answer in answers:
                data = conn.recv(5000)
                if asked is not None:
                    asked.append(data)
                conn.sendall(answer)
            if then is not None:
                then(conn)
        finally:
            conn.close()

    return run


def echo(conn: EventedConn) -> None:
    """Send back what comes."""
    try:
        while data := conn.recv(1000):
            conn.sendall(data)
    except ConnError:
        pass
    finally:
        conn.close()


def proxy_at(port: int, kind: str = "http", user: str = "", password: str = PASSWORD) -> ProxyServer:
    return ProxyServer(kind, HOST, port, user, Secret(password if user else ""))


def says(conn: Conn, data: bytes) -> bool:
    """Tell whether the other end sends the same bytes back; closes the conn."""
    try:
        conn.sendall(data)
        return recv_exactly(conn, len(data)) == data
    finally:
        conn.close()


# ---- the tunnel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "answers"), [("http", [OK]), ("socks5h", [b"\5\0", GRANTED])])
def test_conn_through_a_proxy_is_one_to_the_server_and_names_it(
    serve: Callable[[Serve], int], kind: str, answers: list[bytes]
) -> None:
    dialler = ProxyDialler(proxy_at(serve(answering(*answers, then=echo)), kind))
    for host in ("gnar.test", "::1"):
        conn = dialler.dial(host, 8910)
        assert conn.getpeername() == (host, 8910)
        assert str(conn) == ("[::1]:8910" if ":" in host else "gnar.test:8910")
        assert says(conn, b"hello")


def test_bytes_that_come_with_the_answer_belong_to_the_tunnel(serve: Callable[[Serve], int]) -> None:
    conn = ProxyDialler(
        proxy_at(serve(answering(OK + b"Welc", then=lambda conn: conn.sendall(b"ome"))))
    ).dial("a", 1)
    assert conn.has_unread
    assert recv_exactly(conn, 7) == b"Welcome"
    assert conn.recv(1) == b""
    conn.close()


def test_proxy_that_speaks_tls_gets_the_login_by_tls(
    serve: Callable[[Serve], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate()))
    below: list[EventedConn] = []
    asked: list[bytes] = []

    def run(conn: EventedConn) -> None:
        below.append(conn)
        answering(OK, then=echo, asked=asked)(TlsConn.accept(conn, server_context()))

    conn = ProxyDialler(proxy_at(serve(run), "https", "user")).dial("gnar.test", 443)
    assert isinstance(conn, TlsConn)
    assert conn.getpeername() == ("gnar.test", 443)
    assert says(conn, b"hello" * 1000)
    assert b"\r\nProxy-Authorization: Basic " in asked[0]


def test_name_is_looked_up_here_for_socks5_and_there_for_socks5h(serve: Callable[[Serve], int]) -> None:
    for kind, encoded in (("socks5", b"\1\x7f\0\0\1"), ("socks5h", b"\3\x09localhost")):
        asked: list[bytes] = []
        port = serve(answering(b"\5\0", GRANTED, asked=asked))
        dialler = ProxyDialler(proxy_at(port, kind), family=socket.AF_INET)
        conn = dialler.dial("localhost", 80)
        assert conn.getpeername() == ("localhost", 80)
        conn.close()
        assert asked[1] == b"\5\1\0" + encoded + b"\0\x50"
        assert dialler.looks_up_here is (kind == "socks5")


def test_address_that_the_proxy_cannot_reach_is_not_the_last_one(
    serve: Callable[[Serve], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(int(socket.AF_INET6), ("2001:db8::1", 80)), (int(socket.AF_INET), ("192.0.2.1", 80))]
    asked: list[bytes] = []

    def run(conn: EventedConn) -> None:
        conn.sendall(conn.recv(3)[:1] + b"\0")
        asked.append(conn.recv(100))
        conn.sendall(GRANTED if asked[-1][3] == 1 else b"\5\3")
        conn.close()

    dialler = ProxyDialler(ProxyServer("socks5", LOOPBACK, serve(run)))
    dialler.look_up()
    monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: found)
    for _ in range(2):
        dialler.dial("gnar.test", 80).close()
    assert [each[3] for each in asked] == [4, 1, 1]  # the address that has worked goes first


# ---- what goes wrong ---------------------------------------------------------------------------------------


def failed(proxy: ProxyServer, host: str = "gnar.test", how: DialSettings = SOON) -> DialError:
    with pytest.raises(DialError) as caught:
        ProxyDialler(proxy, how).dial(host, 8910)
    assert PASSWORD not in str(caught.value)
    return caught.value


def test_proxy_that_cannot_be_reached_is_told_from_a_server_that_cannot() -> None:
    error = failed(proxy_at(port := free_port()))
    assert isinstance(error, RefusedError)
    assert str(error).startswith(f"the proxy http://localhost:{port} cannot be reached: cannot connect to")
    with blackhole() as (host, full):
        error = failed(ProxyServer("http", host, full))
    assert isinstance(error, UnreachableError)
    assert str(error).startswith(f"the proxy http://{host}:{full} cannot be reached: ")


def test_name_of_a_proxy_that_is_unknown_is_told_from_that_of_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(host: str, *_: object) -> NoReturn:
        raise DialError(f"cannot resolve {host}")

    monkeypatch.setattr("gnar_lib.net.place.resolve", resolve)
    text = (
        "the proxy http://proxy.test:80 cannot be reached: cannot resolve proxy.test; is its address right?"
    )
    assert str(failed(ProxyServer("http", "proxy.test", 80))) == text
    with pytest.raises(DialError, match=re.escape(text)):
        ProxyDialler(ProxyServer("http", "proxy.test", 80)).look_up()
    error = failed(ProxyServer("socks5", LOOPBACK, 1080))
    assert str(error) == "cannot resolve gnar.test; socks5h://127.0.0.1:1080 has the proxy look it up"


@pytest.mark.parametrize(
    ("kind", "answers", "advice"),
    [
        ("http", [], "perhaps it cannot reach gnar.test:8910"),
        ("http", [b"HTTP/1.1 2"], "perhaps it cannot reach gnar.test:8910"),
        ("socks5h", [], "if it is an HTTP proxy, write http://localhost:"),
        ("socks5h", [b"\5\0"], "perhaps it cannot reach gnar.test:8910"),
        ("https", [], "if the proxy does not speak TLS itself, as most do not, write http://localhost:"),
    ],
)
def test_proxy_that_does_not_answer_is_given_up_with_a_word(
    serve: Callable[[Serve], int], kind: str, answers: list[bytes], advice: str
) -> None:
    ends: list[bytes] = []

    def wait(conn: EventedConn) -> None:
        while data := conn.recv(1000):
            ends.append(data)
        ends.append(b"")

    error = failed(proxy_at(serve(answering(*answers, then=wait)), kind, "user"))
    assert isinstance(error, UnreachableError)
    assert "has not answered within 0.1 s" in str(error)
    assert advice in str(error)
    wait_until(lambda: ends[-1:] == [b""], "the dialler has closed its conn")


def test_conn_is_closed_and_the_error_is_that_of_the_answer_when_a_proxy_refuses(
    serve: Callable[[Serve], int],
) -> None:
    ends: list[bytes] = []
    refusal = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 9\r\n\r\n"
    port = serve(answering(refusal, then=lambda conn: ends.append(conn.recv(1))))
    error = failed(proxy_at(port, user="user"))
    assert isinstance(error, ProxyLoginError)
    wait_until(lambda: ends, "the dialler has closed its conn")
    assert ends == [b""]


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_reset_is_as_good_as_hanging_up(serve: Callable[[Serve], int], kind: str) -> None:
    error = failed(proxy_at(serve(lambda conn: conn.abort()), kind))
    assert "has hung up without an answer" in str(error)


def test_proxy_whose_certificate_nobody_trusts_is_not_told_the_password(
    serve: Callable[[Serve], int],
) -> None:
    seen: list[ConnError] = []

    def run(conn: EventedConn) -> None:
        try:
            TlsConn.accept(conn, server_context()).recv(1)
        except ConnError as exc:
            seen.append(exc)
        finally:
            conn.close()

    error = failed(proxy_at(port := serve(run), "https", "user"))
    assert f"the proxy https://localhost:{port}: " in str(error)
    assert "certificate verify failed" in str(error)
    wait_until(lambda: seen, "the proxy has seen the handshake fail")


def test_proxy_without_tls_is_told_from_one_that_is_not_trusted(serve: Callable[[Serve], int]) -> None:
    error = failed(proxy_at(port := serve(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")), "https"))
    assert f"if the proxy does not speak TLS itself, as most do not, write http://localhost:{port}" in str(
        error
    )


# ---- real proxies ------------------------------------------------------------------------------------------

needs_tinyproxy = pytest.mark.skipif(not shutil.which("tinyproxy"), reason="needs tinyproxy")
needs_squid = pytest.mark.skipif(not shutil.which("squid"), reason="needs squid")
needs_microsocks = pytest.mark.skipif(not shutil.which("microsocks"), reason="needs microsocks")


@needs_tinyproxy
def test_tinyproxy_lets_through_what_it_allows(serve: Callable[[Serve], int], tmp_path: Path) -> None:
    port, nobody = serve(echo), free_port()
    with tinyproxy(tmp_path, [port, nobody], f"user {PASSWORD}") as at:
        dialler = ProxyDialler(proxy_at(at, user="user"))
        conns = [dialler.dial("localhost", port) for _ in range(3)]
        assert all(says(conn, b"x" * 1000) for conn in conns)
        for proxy, to, text in (
            (proxy_at(at), port, "wants a user and a password"),
            (proxy_at(at, user="other"), port, "does not take this user or password"),
            (proxy_at(at, user="user"), free_port(), "perhaps it lets only port 443 through"),
            (proxy_at(at, user="user"), nobody, f"cannot reach localhost:{nobody} (500 "),
        ):
            with pytest.raises(DialError) as caught:
                ProxyDialler(proxy).dial("localhost", to)
            assert text in str(caught.value)


@needs_squid
def test_squid_lets_one_port_through(serve: Callable[[Serve], int], tmp_path: Path) -> None:
    port = serve(echo)
    with squid(tmp_path, port) as at:
        dialler = ProxyDialler(proxy_at(at))
        assert says(dialler.dial(LOOPBACK, port), b"x" * 1000)
        with pytest.raises(DialError, match=r"\(403 Forbidden\); perhaps it lets only port 443 through"):
            dialler.dial(LOOPBACK, free_port())


@needs_microsocks
@pytest.mark.parametrize("kind", ["socks5", "socks5h"])
def test_microsocks_connects(serve: Callable[[Serve], int], kind: str) -> None:
    port, nobody = serve(echo), free_port()
    with microsocks() as at:
        dialler = ProxyDialler(proxy_at(at, kind), family=socket.AF_INET)
        assert says(dialler.dial("localhost", port), b"x" * 1000)
        with pytest.raises(DialError, match=rf"cannot reach .*:{nobody} \(connection refused\)"):
            dialler.dial("localhost", nobody)
    with microsocks(f"user {PASSWORD}") as at:
        assert says(ProxyDialler(proxy_at(at, kind, "user")).dial(LOOPBACK, port), b"x" * 1000)
        with pytest.raises(ProxyLoginError, match="wants a user and a password"):
            ProxyDialler(proxy_at(at, kind)).dial(LOOPBACK, port)
        with pytest.raises(ProxyLoginError, match="does not take this user or password"):
            ProxyDialler(proxy_at(at, kind, "user", "wrong")).dial(LOOPBACK, port)


@needs_microsocks
def test_socks_proxy_that_is_taken_for_an_http_proxy_is_recognised(serve: Callable[[Serve], int]) -> None:
    with microsocks() as at, pytest.raises(DialError, match=f"SOCKS proxy, write socks5h://localhost:{at}"):
        ProxyDialler(proxy_at(at)).dial(LOOPBACK, serve(echo))
