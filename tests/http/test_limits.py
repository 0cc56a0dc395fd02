"""Slow and greedy peers: who is given up when, and that the others are served meanwhile."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.event import Event

from gnar_lib.errors import ConnError
from gnar_lib.http import Limits, Request, Response, codec
from gnar_lib.http.service import MAX_REFUSING
from gnar_lib.net import SocketConn, deadline
from tests.helpers.loop import turn, wait_until
from tests.helpers.web import LOOPBACK, WAIT_S, Served, echo_routes, received, responses, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENT = Limits(linger_s=WAIT_S)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ASK_ONCE = b"GET / HTTP/1.0\r\n\r\n"


def status_of(served: Served) -> int:
    """Return the status of the answer that an uninvolved peer gets."""
    (got,) = responses(served.ask(ASK_ONCE))
    return got.status


@pytest.fixture
def conns() -> Iterator[list[SocketConn]]:
    """Return a list for connections, which are closed behind the test."""
    opened: list[SocketConn] = []
    yield opened
    for conn in opened:
        conn.close()


def ended(conn: SocketConn) -> bytes:
    """Wait for the end of a connection, and return what came before."""
    with deadline(WAIT_S, "the end"):
        data = received(conn)
    conn.close()
    return data


# ---- time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", GET], ids=["at the beginning", "between requests"])
def test_an_idle_peer_is_closed_without_a_word(before: bytes) -> None:
    with serving(limits=Limits(idle_s=0.2)) as served:
        conn = served.dial()
        conn.sendall(before)
        assert [got.status for got in responses(ended(conn))] == [200] * bool(before)


@pytest.mark.parametrize(
    "start",
    [b"G", b"GET / HTTP/1.1\r\nHost: ", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx"],
    ids=["request line", "field", "body"],
)
def test_a_slow_request_is_given_up_however_busy_its_peer_is(start: bytes) -> None:
    with serving(limits=Limits(head_s=0.1, body_s=0.1)) as served:
        conn = served.dial()
        conn.sendall(start)
        sender = gevent.spawn(trickle, conn)
        (got,) = responses(ended(conn).removesuffix(b"[reset]"))
        sender.kill()
    assert got.status == 408
    assert got.headers["Connection"] == "close"


def trickle(conn: SocketConn) -> None:
    """Send a byte now and then, for as long as the service takes it."""
    try:
        while True:
            gevent.sleep(0.01)
            conn.sendall(b"x")
    except ConnError:
        pass


def test_a_peer_that_does_not_take_its_answer_is_cut_off(conns: list[SocketConn]) -> None:
    routes = echo_routes()
    routes.add("GET", "/big", lambda _request: Response(200, bytes(30_000_000)))
    with serving(routes, limits=Limits(send_s=0.2, send_bytes_per_s=10**9)) as served:
        conns.append(served.dial())
        conns[0].sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: len(served.crew) == 1, "the request has come")
        assert status_of(served) == 200
        wait_until(lambda: not len(served.crew), "the peer is given up")


def test_a_long_answer_has_time_by_its_length_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    @contextmanager
    def noted(seconds: float, what: str) -> Iterator[None]:
        waits.append(seconds)
        with deadline(seconds, what):
            yield

    monkeypatch.setattr(codec, "deadline", noted)
    routes = echo_routes()
    routes.add("GET", "/big", lambda _request: Response(200, bytes(100_000)))
    with serving(routes, limits=Limits(send_s=7, send_bytes_per_s=1000)) as served:
        data = served.ask(b"GET /big HTTP/1.0\r\n\r\n")
        (got,) = responses(data)
    assert len(got.body) == 100_000
    assert waits == [7 + len(data) / 1000]


# ---- the last answer arrives -------------------------------------------------------------------------------


def test_a_refusal_arrives_although_the_body_goes_on(conns: list[SocketConn]) -> None:
    with serving(limits=PATIENT) as served:
        conn = served.dial()
        conns.append(conn)
        conn.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
        turn()  # the answer is there, and the service has sent the end of the stream
        conn.sendall(bytes(500_000))
        (got,) = responses(received(conn))
        assert got.status == 413


def test_a_client_that_first_sends_all_of_a_body_reads_the_refusal() -> None:
    statuses: list[int] = []

    def ask(port: int) -> None:
        client = http.client.HTTPConnection(LOOPBACK, port, timeout=WAIT_S)
        client.request("POST", "/echo", bytes(900_000))
        statuses.append(client.getresponse().status)
        client.close()

    with serving(limits=PATIENT) as served:
        thread = threading.Thread(target=ask, args=(served.port,))
        thread.start()
        wait_until(lambda: statuses, "the answer")
        thread.join()
    assert statuses == [413]


def test_a_peer_that_sends_for_ever_is_cut_off() -> None:
    with serving(limits=PATIENT) as served:
        conn = served.dial()
        conn.sendall(b"nonsense\r\n\r\n")
        with pytest.raises(ConnError), deadline(WAIT_S, "being cut off"):
            flood(conn)
        conn.close()


def flood(conn: SocketConn) -> None:
    while True:
        conn.sendall(bytes(100_000))
        gevent.sleep(0)


def test_a_peer_that_does_not_close_is_waited_for_a_moment() -> None:
    with serving(limits=Limits(linger_s=0.1)) as served:
        conn = served.dial()
        conn.sendall(ASK_ONCE)
        assert len(responses(received(conn))) == 1
        wait_until(lambda: not len(served.crew), "the service has closed")
        conn.close()


def test_expect_is_not_answered_with_continue_if_the_body_is_refused() -> None:
    ask = b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with serving(limits=PATIENT) as served:
        conn = served.dial()
        conn.sendall(ask % 100_000)
        assert received(conn).startswith(b"HTTP/1.1 413 ")
        conn.close()
        conn = served.dial()
        conn.sendall(ask % 3)
        assert conn.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        conn.sendall(b"abc")
        assert conn.recv(1000).endswith(b"abc")
        conn.close()


# ---- how many ----------------------------------------------------------------------------------------------


def test_a_connection_ends_after_its_last_request() -> None:
    with serving(limits=Limits(requests=3)) as served:
        got = responses(served.ask(GET * 5))
    assert [each.headers["Connection"] for each in got] == [None, None, "close"]


def test_a_new_peer_takes_the_place_of_the_one_that_was_idle_for_longest(conns: list[SocketConn]) -> None:
    with serving(limits=Limits(connections=3)) as served:
        for _ in range(3):
            conns.append(served.dial())
            turn()
        conns[0].sendall(GET)  # so that it is no longer the one that has waited longest
        assert conns[0].recv(1000).startswith(b"HTTP/1.1 200 ")
        assert status_of(served) == 200
        assert received(conns[1]) == b""
        for conn in (conns[0], conns[2]):
            conn.sendall(GET)
            assert conn.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_slow_heads_and_bodies_keep_nobody_out(conns: list[SocketConn]) -> None:
    starts = (b"GET / HT", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    with serving(limits=Limits(connections=10)) as served:
        for number in range(100):
            conns.append(served.dial())
            conns[-1].sendall(starts[number % 2])
            turn()
            assert len(served.service.crowd) <= 10
            if not number % 10:
                assert status_of(served) == 200


def test_readers_who_take_nothing_keep_nobody_out(
    conns: list[SocketConn], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited: list[int] = []
    monkeypatch.setattr(SocketConn, "limit_unsent", lambda _conn, limit_bytes: limited.append(limit_bytes))
    begun: list[Request] = []

    def show_much(request: Request) -> Response:
        begun.append(request)
        return Response(200, bytes(30_000_000))

    routes = echo_routes()
    routes.add("GET", "/big", show_much)
    with serving(routes, limits=Limits(connections=2)) as served:
        for number in range(1, 5):
            conns.append(served.dial())
            conns[-1].sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda number=number: len(begun) == number, "the answer begins")  # type: ignore[misc]
            assert len(served.service.crowd) <= 2
        assert status_of(served) == 200
    assert limited == [Limits().unsent_bytes] * 5


def test_peers_are_told_when_nobody_can_go_for_them(conns: list[SocketConn]) -> None:
    go_on = Event()
    begun: list[Request] = []

    def slow(request: Request) -> Response:
        begun.append(request)
        go_on.wait()
        return Response(200, b"at last")

    routes = echo_routes()
    routes.add("GET", "/slow", slow)
    with serving(routes, limits=Limits(connections=2)) as served:
        for _ in range(2):
            conns.append(served.dial())
            conns[-1].sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        wait_until(lambda: len(begun) == 2, "both are served")
        (got,) = responses(served.ask(ASK_ONCE))
        assert (got.status, got.headers["Connection"]) == (503, "close")
        assert got.headers["Retry-After"]
        conns += [served.dial() for _ in range(MAX_REFUSING + 20)]  # of which none closes
        turn()
        assert len(served.crew) == 2 + MAX_REFUSING
        go_on.set()
        assert received(conns[0]).endswith(b"at last")
        for conn in conns:
            conn.close()


def test_a_service_that_closes_keeps_nobody(conns: list[SocketConn]) -> None:
    begun, go_on = Event(), Event()

    def slow(_request: Request) -> Response:
        begun.set()
        go_on.wait()
        return Response(200, b"done")

    routes = echo_routes()
    routes.add("GET", "/slow", slow)
    with serving(routes) as served:
        conns += [served.dial(), served.dial()]
        conns[1].sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        begun.wait()
        served.service.close()
        assert received(conns[0]) == b""
        go_on.set()
        (got,) = responses(received(conns[1]))
        assert (got.body, got.headers["Connection"]) == (b"done", "close")
        assert status_of(served) == 503


def test_a_pipeline_gives_way_to_others(conns: list[SocketConn]) -> None:
    order: list[str] = []

    def note(_request: Request, name: str) -> Response:
        order.append(name)
        return Response(204)

    routes = echo_routes()
    routes.add("GET", "/note/{name}", note)
    with serving(routes) as served:
        for name in ("a", "b"):
            conns.append(served.dial())
            conns[-1].sendall(b"GET /note/%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode() * 100)
        wait_until(lambda: len(order) == 200, "all are answered")
    assert "b" in order[:10]


def test_a_chunked_body_may_not_consist_of_padding() -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(limits=PATIENT) as served:
        small = b"1\r\nx\r\n" * 5000
        assert len(responses(served.ask(head + small + b"0\r\n\r\n" + ASK_ONCE))[0].body) == 5000
        padded = b"1;" + b"a" * 10_000 + b"\r\nx\r\n"
        (got,) = responses(served.ask(head + padded * 100))
    assert got.status == 400
