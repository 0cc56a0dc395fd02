"""The admin port as `gnar top` asks it: what goes wrong is said in one line."""

from __future__ import annotations

import errno
import queue
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gnar_lib import cmd
from gnar_lib.config import Secret
from gnar_lib.errors import AuthError, ConnError, ProtocolError, UsageError
from gnar_lib.top import api as api_module
from gnar_lib.top.api import Api
from gnar_lib.top.feed import Feed
from tests.helpers.harness import LOOPBACK, WAIT_S, Service, free_port, greet, read_all, wait_until
from tests.top.stand_in import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NO_SECRET = Secret()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("example.com", "http://example.com:8911"),
        ("[::1]", "http://[::1]:8911"),
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        ("http://example.com", "http://example.com"),
        ("https://example.com/gnar/", "https://example.com/gnar"),
    ],
)
def test_urls_may_be_short(given: str, url: str) -> None:
    assert Api(given, NO_SECRET).url == url


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://example.com", "expected such as"),
        ("http://", "expected such as"),
        ("http://x:99999", "Port out of range"),
        ("http://x/?a=b", "expected such as"),
        ("http://me:s3cret@x", "a password is not for command lines"),
    ],
)
def test_what_is_no_url_is_refused_in_one_line(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cmd.main(["top", given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert "s3cret" not in err


def test_secret_that_http_cannot_carry_is_refused_without_its_text() -> None:
    with pytest.raises(UsageError) as caught:
        Api("x", Secret("a\nb"))
    assert "a\nb" not in str(caught.value)


def test_objects_and_events_are_read() -> None:
    with StandIn("s3cret \u00e4") as server:
        api = Api(server.url, Secret("s3cret \u00e4"))
        assert api.get("/server")["version"] == "0.9.0"
        stream = api.stream("/live", proxy="p5", sort="age")
        events = iter(stream)
        name, data = next(events)
        assert (name, data["proxies"][0]["name"]) == ("state", "web")
        assert server.queries == [{"proxy": "p5", "sort": "age"}]
        stream.cut()
        with pytest.raises(ConnError):
            list(events)
        stream.close()


def test_server_that_is_not_there_is_said() -> None:
    with pytest.raises(ConnError, match=r"^no answer from .*: Connection refused; was .* started with -a\?$"):
        Api(f"http://{LOOPBACK}:{free_port()}", NO_SECRET).get("/server")
    with pytest.raises(ConnError, match=r"^no answer from http://a\.\.b:1: "):
        Api("http://a..b:1", NO_SECRET).get("/server")


@pytest.mark.parametrize("host", ["[2001:db8::1]", "[2001:db8::a]"])
def test_url_of_an_ipv6_address_needs_no_port(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(address: object, *_: object) -> None:
        asked.append(address)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for scheme, port in (("http", 80), ("https", 443)):
        with pytest.raises(ConnError, match="Connection refused"):
            Api(f"{scheme}://{host}", NO_SECRET).stream("/live")
        assert asked.pop() == (host.strip("[]"), port)


def test_missing_and_wrong_passwords_are_told_apart() -> None:
    with StandIn("s3cret") as server:
        with pytest.raises(AuthError, match="wants a password: set GNAR_ADMIN_READ_TOKEN or"):
            Api(server.url, NO_SECRET).get("/server")
        with pytest.raises(AuthError, match="does not take the password or token that was given"):
            Api(server.url, Secret("wrong")).stream("/live")


def answer_with(text: bytes) -> Callable[[socket.socket], None]:
    def serve(conn: socket.socket) -> None:
        conn.recv(4096)
        conn.sendall(text)
        conn.shutdown(socket.SHUT_WR)
        read_all(conn)

    return serve


@pytest.mark.parametrize(
    ("serve", "error", "said"),
    [
        (greet, ProtocolError, "this is not HTTP"),
        (answer_with(b""), ConnError, "hung up"),
        (answer_with(HEAD + b"Content-Length: 9\r\n\r\n{"), ConnError, "hung up"),
        (answer_with(HEAD + b"\r\nx"), ProtocolError, "its answer is no JSON"),
        (answer_with(HEAD + b"\r\n[1]"), ProtocolError, "its answer is no object"),
        (answer_with(HEAD + b"\r\n" + b"[" * 100_000), ProtocolError, "its answer is no JSON"),
        (answer_with(b"HTTP/1.1 200 OK\r\n\r\n<html>"), ProtocolError, "it answers with something else"),
        (answer_with(b"HTTP/1.1 404 Not Found\r\n\r\n"), ProtocolError, "it answers with status 404"),
        (answer_with(b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n"), ProtocolError, "with status 302"),
        (answer_with(b"HTTP/1.1 429 Slow\r\n\r\n"), AuthError, "too many wrong passwords from here"),
        (answer_with(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), ConnError, r"is busy \(status 502\): try again"),
        (answer_with(b"HTTP/1.1 503 Busy\r\n\r\n"), ConnError, r"is busy \(status 503\)"),
        (answer_with(b"HTTP/1.1 504 Late\r\n\r\n"), ConnError, r"is busy \(status 504\)"),
        (
            answer_with(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n"),
            ProtocolError,
            "this is not HTTP",
        ),
    ],
)
def test_what_is_no_admin_port_is_said(
    serve: Callable[[socket.socket], None], error: type[Exception], said: str
) -> None:
    with Service(serve) as service, pytest.raises(error, match=said) as caught:
        Api(f"http://{LOOPBACK}:{service.port}", NO_SECRET).get("/server")
    assert "\n" not in str(caught.value)


def test_answers_and_events_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_BYTES", 1000)
    monkeypatch.setattr(api_module, "MAX_EVENT_BYTES", 1000)
    endless = HEAD.replace(b"application/json", b"text/event-stream")
    said = "its answer does not end"
    with (
        Service(answer_with(HEAD + b"\r\n" + b" " * 5000)) as service,
        pytest.raises(ProtocolError, match=said),
    ):
        Api(f"http://{LOOPBACK}:{service.port}", NO_SECRET).get("/server")
    for body in (b"data: " + b"x" * 5000, b"data: x\n" * 5000):
        with Service(answer_with(endless + b"\r\n" + body)) as service:
            stream = Api(f"http://{LOOPBACK}:{service.port}", NO_SECRET).stream("/live")
            with pytest.raises(ProtocolError, match=said):
                list(stream)
            stream.close()


def test_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "TIMEOUT_S", 0.1)
    with (
        Service(read_all_of) as service,
        pytest.raises(ConnError, match=r"^no answer from .* within 0\.1 s$"),
    ):
        Api(f"http://{LOOPBACK}:{service.port}", NO_SECRET).get("/server")


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "head"])
def test_server_that_trickles_is_given_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "ANSWER_S", 0.3)
    ended = threading.Event()

    def trickle(conn: socket.socket) -> None:
        conn.recv(4096)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n" % kind.encode())
        conn.sendall(b"A: " if kind == "head" else b"\r\n")
        with suppress(OSError):
            while not ended.wait(0.01):
                conn.sendall(b" ")

    with Service(trickle) as service:
        api = Api(f"http://{LOOPBACK}:{service.port}", NO_SECRET)
        try:
            with pytest.raises(ConnError, match=r"^no whole answer from .* within 0\.3 s$"):
                list(api.stream("/live")) if kind == "text/event-stream" else api.get("/server")
        finally:
            ended.set()


def test_server_that_is_busy_is_asked_again_also_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnar_lib.top.feed.FIRST_PAUSE_S", 0.01)
    news = queue.Queue[str]()
    with StandIn() as server:
        server.busy = 2
        feed = Feed(Api(server.url, NO_SECRET), lambda: news.put(feed.state.error))
        feed.start()
        errors = [news.get(timeout=WAIT_S) for _ in range(3)]
        assert feed.failure is None
        assert [bool(error) for error in errors] == [True, True, False]
        assert "is busy (status 503)" in errors[0]
        server.secret = "another"  # which ends the feed
        server.stop()
        server.start()
        wait_until(lambda: feed.failure is not None, "the end of the feed")


def read_all_of(conn: socket.socket) -> None:
    read_all(conn)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a certificate for loopback that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=gnar", "-addext", f"subjectAltName=IP:{LOOPBACK}"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    done = subprocess.run(
        ["openssl", "req", *kind, *names, "-keyout", key, "-out", cert],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return cert, key


def test_python_without_tls_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssl", None)
    with pytest.raises(ConnError, match=r"^this Python cannot speak https"):
        Api("https://example.com", NO_SECRET).get("/server")


def test_certificates_are_verified(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ssl = pytest.importorskip("ssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with StandIn(context=context) as server:
        api = Api(server.url, NO_SECRET)
        with pytest.raises(AuthError, match=r"^the certificate of .* is not to be trusted: self.signed"):
            api.get("/server")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert api.get("/server")["version"] == "0.9.0"
