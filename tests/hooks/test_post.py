"""One try to post: what the request is, what each answer means, and receivers that mean no good."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from gnar_lib import __version__
from gnar_lib.config import HookConfig, Secret
from gnar_lib.events import Side, Stopping
from gnar_lib.hooks.message import Message, signature
from gnar_lib.hooks.outcome import Outcome
from gnar_lib.hooks.post import MAX_WAIT_S, Poster
from gnar_lib.transport.tls import client_context
from tests.helpers.certificates import make_certificate
from tests.helpers.harness import LOOPBACK, Service, free_port, read_until
from tests.helpers.receiver import Receiver

MESSAGE = Message.of(Stopping(Side.SERVER), 1790000000.25, "an-id", "server", "vps")


def post(url: str, context: ssl.SSLContext | None = None, **settings: object) -> Outcome:
    config = HookConfig(("stopping",), Secret(url), **{"timeout_s": 20.0, **settings})  # type: ignore[arg-type]
    return Poster(config, context).deliver(MESSAGE)


def serve(answer: bytes | Callable[[socket.socket], None]) -> Service:
    """Start a service that reads a request, and sends these bytes, or does this."""

    def run(conn: socket.socket) -> None:
        read_until(conn, b"\r\n\r\n" + MESSAGE.json())
        if callable(answer):
            answer(conn)
        else:
            conn.sendall(answer)

    return Service(run)


def at(service: Service) -> str:
    return f"http://{LOOPBACK}:{service.port}/"


def test_request_has_the_documented_headers_and_those_of_the_settings() -> None:
    with Receiver() as receiver:
        headers = (("Title", Secret("Gr\u00fc\u00dfe")), ("user-agent", Secret("me")))
        assert post(receiver.url + "?a=b&c", secret=Secret("s3cret"), headers=headers)
        assert post(f"http://localhost:{receiver.port}")
        signed, plain = receiver.posted
    assert (signed.path, plain.path) == ("/hook?a=b&c", "/")
    assert signed.headers["title"].encode("latin-1").decode() == "Gr\u00fc\u00dfe"
    assert (signed.headers["user-agent"], plain.headers["user-agent"]) == ("me", f"gnar/{__version__}")
    assert (signed.headers["host"], plain.headers["host"]) == (
        f"{LOOPBACK}:{receiver.port}",
        f"localhost:{receiver.port}",
    )
    assert (signed.headers["x-gnar-event"], signed.headers["x-gnar-delivery"]) == ("stopping", "an-id")
    assert abs(int(signed.headers["x-gnar-timestamp"]) - time.time()) < 60
    assert signed.body == MESSAGE.json()
    assert signed.headers["x-gnar-signature"] == signature(
        Secret("s3cret"), signed.headers["x-gnar-timestamp"], signed.body
    )
    assert "x-gnar-signature" not in plain.headers


@pytest.mark.parametrize(
    ("status", "headers", "outcome"),
    [
        (200, {}, Outcome()),
        (299, {}, Outcome()),
        (400, {"Retry-After": "5"}, Outcome("the answer was 400 Bad Request")),
        (404, {}, Outcome("the answer was 404 Not Found")),
        (307, {"Location": "/"}, Outcome("the answer was 307 Temporary Redirect: no redirect is followed")),
        (408, {}, Outcome("the answer was 408 Request Timeout", may_retry=True)),
        (
            429,
            {"Retry-After": "5"},
            Outcome("the answer was 429 Too Many Requests", True, 5.0),
        ),
        (500, {"Retry-After": "soon"}, Outcome("the answer was 500 Internal Server Error", may_retry=True)),
        (
            503,
            {"Retry-After": "9" * 400},
            Outcome("the answer was 503 Service Unavailable", may_retry=True, wait_s=MAX_WAIT_S),
        ),
    ],
)
def test_answer_means_success_another_try_or_the_end(
    status: int, headers: dict[str, str], outcome: Outcome
) -> None:
    with Receiver((status, headers)) as receiver:
        assert post(receiver.url) == outcome
        assert len(receiver.posted) == 1


def test_retry_after_may_be_a_date() -> None:
    with Receiver((503, {"Retry-After": formatdate(time.time() + 100, usegmt=True)})) as receiver:
        assert 50 < post(receiver.url).wait_s <= 100


def test_variables_that_name_http_proxies_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:{free_port()}")
    with Receiver() as receiver:
        assert post(receiver.url)


# ---- receivers that do not answer well ---------------------------------------------------------------------


def test_nobody_there_is_a_reason_to_try_again() -> None:
    port = free_port()
    outcome = post(f"http://{LOOPBACK}:{port}/")
    assert outcome == Outcome(f"cannot connect to {LOOPBACK}:{port}: Connection refused", may_retry=True)
    assert "nosuchname.invalid" in post("http://nosuchname.invalid/").reason


def test_receiver_that_hangs_is_given_up_in_time() -> None:
    ended = threading.Event()
    with serve(lambda _: [ended.wait()].clear()) as service:
        assert post(at(service), timeout_s=0.2) == Outcome(
            "the answer took longer than 0.2 s", may_retry=True
        )
        ended.set()


@pytest.mark.parametrize(
    "part", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: ", b"x" * 50, b"A: b\r\n"], ids=repr
)
def test_receiver_that_never_stops_answering_is_left(part: bytes) -> None:
    def flood(conn: socket.socket) -> None:
        while True:
            conn.sendall(part * 1000)

    with serve(flood) as service:
        outcome = post(at(service))
        assert outcome.reason
        assert outcome.may_retry


def test_endless_body_does_not_matter() -> None:
    def flood(conn: socket.socket) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            conn.sendall(bytes(1000))

    with serve(flood) as service:
        assert post(at(service)) == Outcome()


def reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (b"Content-Length: 9\r\n\r\nhell", None),
        (b"Content-Length: 9\r\n\r\nhell", reset),
        (b"Content-Length: 9\r\n\r\nhell", "hang"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", None),
        (b"Transfer-Encoding: chunked\r\n\r\nno number\r\n", None),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000, None),
    ],
    ids=["cut", "reset", "hangs", "cut-chunk", "odd-chunk", "endless-chunk"],
)
@pytest.mark.parametrize("status", [200, 400])
def test_status_decides_however_the_body_ends(status: int, body: bytes, end: object) -> None:
    posted = threading.Event()

    def answer(conn: socket.socket) -> None:
        conn.sendall(b"HTTP/1.1 %d x\r\n%s" % (status, body))
        if end == "hang":
            posted.wait()
        elif callable(end):
            end(conn)

    with serve(answer) as service:
        outcome = post(at(service), timeout_s=0.5)
        posted.set()
    assert outcome == (Outcome() if status == 200 else Outcome("the answer was 400 x"))


def test_host_of_a_url_may_be_an_ipv6_address_whose_last_part_is_no_port() -> None:
    with Receiver() as receiver:
        assert post(f"http://[::ffff:{LOOPBACK}]:{receiver.port}/") == Outcome()
        assert receiver.posted[0].headers["host"] == f"[::ffff:{LOOPBACK}]:{receiver.port}"


def test_no_answer_whatever_it_is_ends_more_than_its_try() -> None:
    seeds = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nRetry-After: 1\r\n\r\nhello",
        b"HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 503 x\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n",
        b"HTTP/1.0 301\r\nLocation: x\r\nContent-Type: text/html; charset=\xff\r\n\r\n",
    ]
    chance = random.Random(16)  # noqa: S311  (not for a secret)
    for number in range(150):
        answer = bytearray(seeds[number % len(seeds)])
        for _ in range(chance.randrange(8)):
            place = chance.randrange(len(answer))
            answer[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        with serve(bytes(answer)) as service:
            assert isinstance(post(at(service)), Outcome), answer


# ---- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for localhost, with its key, and return the file."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "localhost.pem", "localhost")


@pytest.fixture
def secure_receiver(certificate: Path) -> Iterator[Receiver]:
    with Receiver() as receiver:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
        yield receiver


def test_https_goes_to_a_receiver_whose_certificate_is_trusted(
    secure_receiver: Receiver, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://localhost:{secure_receiver.port}/hook"
    assert post(url, client_context()) == Outcome()
    assert secure_receiver.events == ["stopping"]


@pytest.mark.parametrize(("host", "is_trusted"), [("localhost", False), (LOOPBACK, True)])
def test_https_tells_nothing_to_a_receiver_whose_certificate_is_wrong(
    secure_receiver: Receiver,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    *,
    is_trusted: bool,
) -> None:
    if is_trusted:  # but for another name
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    outcome = post(f"https://{host}:{secure_receiver.port}/hook", client_context())
    assert "certificate verify failed" in outcome.reason
    assert not secure_receiver.posted


def test_https_to_a_receiver_without_tls_is_no_answer() -> None:
    with Service(lambda conn: conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) as service:
        outcome = post(f"https://{LOOPBACK}:{service.port}/", client_context())
        assert outcome.may_retry
        assert outcome.reason.startswith(f"{LOOPBACK}:{service.port}: TLS: ")
