"""A tapped conn: everything passes on as it came, whatever whoever looks makes of it."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

import gevent
import pytest

from gnar_lib.errors import ConnError
from gnar_lib.inspect import Conversation, Exchange, Inspector, State, tap
from gnar_lib.net import Conn, deadline
from gnar_lib.pio.flow import Flow
from gnar_lib.proxy.stream import stream
from tests.helpers.conns import read_all, tcp_pair

TIMEOUT_S = 20.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"until the end " * 20_000


def exchanged(sent: bytes, answer: bytes) -> tuple[bytes, bytes, list[Exchange]]:
    """Return what the service and the user have got, through a tap, and the exchanges."""
    inspector = Inspector(100)
    user, near = tcp_pair()
    far, service = tcp_pair()
    got = b""

    def serve() -> None:
        nonlocal got
        got = service.recv(len(sent)) if sent.startswith(b"GET") else read_all(service)
        service.sendall(answer)
        service.close()

    with deadline(TIMEOUT_S, "the test"):
        serving = gevent.spawn(serve)
        joined = gevent.spawn(stream, inspector.tapped(near, "192.0.2.1:1", "web"), far, Flow(), Flow())
        user.sendall(sent)
        if not sent.startswith(b"GET"):
            user.shutdown(socket.SHUT_WR)
        back = read_all(user)
        user.close()
        serving.join()
        joined.join()
    return got, back, [*inspector.store]


def test_both_directions_pass_on_and_the_exchange_is_recorded() -> None:
    got, back, found = exchanged(GET, ANSWER)
    assert (got, back) == (GET, ANSWER)
    assert [(each.status, each.state, each.user) for each in found] == [(200, State.DONE, "192.0.2.1:1")]
    assert found[0].response_body.size == 14 * 20_000


def test_what_is_no_http_passes_on_untouched() -> None:
    data = random.Random(1).randbytes(300_000)  # noqa: S311  (no secret)
    assert exchanged(b"\x16" + data, data) == (b"\x16" + data, data, [])


@pytest.mark.parametrize("broken", ["requested", "answered", "give_up"])
def test_a_defect_in_what_looks_costs_the_user_nothing(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    said: list[str] = []
    monkeypatch.setattr(tap._log, "exception", said.append)
    monkeypatch.setattr(Conversation, broken, fail)
    got, back, _ = exchanged(GET, ANSWER)
    assert (got, back) == (GET, ANSWER)
    assert any(each.startswith("a defect in the inspector") for each in said)


def test_a_reset_leaves_the_exchange_broken() -> None:
    inspector = Inspector(100)
    user, near = tcp_pair()
    tapped: Conn = inspector.tapped(near, "", "web")
    with deadline(TIMEOUT_S, "the test"):
        user.sendall(GET)
        assert tapped.recv(1000) == GET
        tapped.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        tapped.abort()
        with suppress(ConnError):
            read_all(user)
        user.close()
    (found,) = inspector.store
    assert (found.state, found.problem, found.status) == (State.BROKEN, "the connection was reset", 200)


def test_bytes_that_were_put_back_are_looked_at_once() -> None:
    inspector = Inspector(100)
    user, near = tcp_pair()
    tapped: Conn = inspector.tapped(near, "", "web")
    with deadline(TIMEOUT_S, "the test"):
        user.sendall(GET)
        data = tapped.recv(1000)
        tapped.unread(data)
        assert tapped.recv(1000) == GET
        assert len(inspector.store) == 1
        user.close()
        tapped.close()
