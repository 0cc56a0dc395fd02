"""What services say when they are asked: real ones, each with one connection and at most one request."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gnar_lib.discover import asking
from gnar_lib.discover.asking import Kind, Service, ask, ask_all, name_in_answer
from gnar_lib.discover.listening import Listening, Process
from gnar_lib.errors import ConnError
from tests.helpers import harness
from tests.helpers.harness import LOOPBACK, free_port, read_until

SSH_GREETING = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"


@contextmanager
def web_server(folder: Path) -> Iterator[int]:
    """Serve the files of a folder; yield the port."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


class Answering:
    """Answers a request, whatever it is, and keeps all that was received."""

    def __init__(self, *answer: bytes, greeting: bytes = b"", stays: bool = False) -> None:
        self.answer = answer
        self.greeting = greeting
        self.stays = stays
        self.received = b""

    def __call__(self, conn: socket.socket) -> None:
        conn.sendall(self.greeting)
        if not self.greeting:
            self.received += read_until(conn, b"\r\n\r\n")
        for part in self.answer:
            conn.sendall(part)
        while self.stays and (more := conn.recv(4096)):
            self.received += more


def asked(serve: Callable[[socket.socket], None]) -> Service:
    """Return what is found out of a service, which has been connected to once."""
    with harness.Service(serve) as service:
        found = ask(Listening(service.port))
        assert service.served == 1
    assert found.listening.port == service.port
    return found


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers as long as a busy machine may need; a test whose service is silent waits less."""
    monkeypatch.setattr(asking, "ANSWER_S", harness.WAIT_S)
    monkeypatch.setattr(asking, "DIAL_S", harness.WAIT_S)


def test_title_of_a_page_is_its_name(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>\n My &amp; own\tblog</title>")
    with web_server(tmp_path) as port:
        assert ask(Listening(port)) == Service(Listening(port), Kind.WEB, "My & own blog")


def test_service_without_a_page_is_called_as_its_program_calls_itself(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("no title")
    with web_server(tmp_path) as port:
        found = ask(Listening(port))
    assert found.kind is Kind.WEB
    assert re.fullmatch(r"SimpleHTTP/[\d.]+ Python/[\d.]+, HTTP 200", found.name)


def test_one_request_is_sent_and_says_who_asks() -> None:
    service = Answering(OK, b"<title>x</title>", stays=True)
    assert asked(service).name == "x"
    assert service.received.count(b"\r\n\r\n") == 1
    assert service.received.startswith(b"GET / HTTP/1.1\r\nHost: localhost:")
    assert b"\r\nUser-Agent: gnar/" in service.received
    assert b"\r\nConnection: close\r\n" in service.received


def test_service_that_speaks_first_is_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "GREETING_S", harness.WAIT_S)
    service = Answering(greeting=SSH_GREETING, stays=True)
    found = asked(service)
    assert (found.kind, found.name) == (Kind.OTHER, "SSH (SSH-2.0-OpenSSH_9.2p1 Debian-2)")
    assert service.received == b""


def test_well_known_service_is_not_even_connected_to() -> None:
    with harness.Service(harness.echo) as service:
        found = ask(Listening(service.port, process=Process("redis-server")))
        assert (found.kind, found.name, service.served) == (Kind.OTHER, "Redis", 0)


@pytest.mark.parametrize(
    ("answer", "kind", "name"),
    [
        (b"HTTP/1.0 404 Not Found\r\nServer: thing/1\r\n\r\n", Kind.WEB, "thing/1, HTTP 404"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", Kind.WEB, "leads to /login"),
        (b"HTTP/1.1 ", Kind.WEB, "HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x32", Kind.OTHER, "TLS"),
        (b"-ERR unknown command\r\n", Kind.OTHER, "-ERR unknown command"),
        (b"\x00\xff\xfe", Kind.OTHER, ""),
    ],
)
def test_answers_that_are_no_pages(answer: bytes, kind: Kind, name: str) -> None:
    found = asked(Answering(answer))
    assert (found.kind, found.name) == (kind, name)


def test_service_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.2)
    assert asked(Answering(stays=True)).kind is Kind.SILENT


def test_answer_that_does_not_end_is_read_up_to_a_bound() -> None:
    def pour(conn: socket.socket) -> None:
        read_until(conn, b"\r\n\r\n")
        conn.sendall(OK)
        while True:
            conn.sendall(b"x" * 4096)

    assert asked(pour).name == "HTTP 200"


def test_answer_that_drips_is_read_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 1.0)

    def drip(conn: socket.socket) -> None:
        read_until(conn, b"\r\n\r\n")
        conn.sendall(OK)
        while True:
            conn.sendall(b"x")
            time.sleep(0.05)  # the pace of the service, which nobody waits for

    assert asked(drip).name == "HTTP 200"


def test_nobody_at_a_port_is_an_error_and_is_left_out_of_several() -> None:
    port = free_port()
    with pytest.raises(ConnError, match="Connection refused"):
        ask(Listening(port))
    assert ask_all([Listening(port)]) == []


def test_many_are_asked_at_the_same_time_and_web_services_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "GREETING_S", 1.0)
    with ExitStack() as stack:
        services = [
            stack.enter_context(harness.Service(Answering(OK, f"<title>{number}</title>".encode())))
            for number in range(20)
        ]
        ssh = stack.enter_context(harness.Service(Answering(greeting=SSH_GREETING)))
        begin_s = time.monotonic()
        found = ask_all([Listening(each.port) for each in (ssh, *services)])
        took_s = time.monotonic() - begin_s
    assert took_s < 10.0  # one after the other would take 20 s
    assert [each.kind for each in found] == [Kind.WEB] * 20 + [Kind.OTHER]
    assert {each.name for each in found[:-1]} == {str(number) for number in range(20)}
    assert {each.served for each in services} == {1}


def test_no_more_than_some_dozens_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST_PORTS", 2)
    with ExitStack() as stack:
        services = [stack.enter_context(harness.Service(Answering(OK))) for _ in range(3)]
        assert len(ask_all([Listening(each.port) for each in services])) == 2
        assert [each.served for each in services] == [1, 1, 0]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"<TITLE lang=en>a</TITLE>", "a"),
        (b"<title>\x1b[2J&#27;]0;x\xe2\x80\xae b</title>", "\\x1b[2J]0;x\\u202e b"),
        (b"<title></title>", "HTTP 200"),
        (b"<title", "HTTP 200"),
        (b"<title></titl", "HTTP 200"),
        (b"</title><title>", "HTTP 200"),
        (b"<title>\xff</title>", "\ufffd"),
        (b"<title>" + b"y" * 5000 + b"</title>", "y" * 200),
    ],
)
def test_title_is_text_that_a_terminal_can_show(body: bytes, name: str) -> None:
    assert name_in_answer(OK + body) == name


@pytest.mark.parametrize("part", [b"<title", b"<title>", b"\r\n:", b"a:\r\n", b"\r\na: "])
def test_hostile_answers_cost_no_time(part: bytes) -> None:
    answer = b"HTTP/1.1 200 OK" + part * (asking.MAX_ANSWER_BYTES // len(part))
    begin_s = time.thread_time()
    name_in_answer(answer)
    name_in_answer(OK + answer)
    assert time.thread_time() - begin_s < 1.0
