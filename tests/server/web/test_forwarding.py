"""How requests and answers are passed on: bodies, early answers, other protocols, services that fail."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gevent
import pytest

from gnar_lib.errors import ConnError
from gnar_lib.net import SocketConn, deadline, recv_exactly
from tests.helpers.loop import wait_until
from tests.helpers.sites import read_until, scripted, site_before
from tests.helpers.web import received, responses

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
END = b"\r\n\r\n"
WAIT_S = 20.0

Serve = Callable[[SocketConn], None]


def answering(*answers: bytes) -> Serve:
    """Return a service that gives one answer for each head, the last one again and again."""

    def serve(conn: SocketConn) -> None:
        left = [*answers]
        while read_until(conn, END):
            conn.sendall(left.pop(0) if len(left) > 1 else left[0])

    return serve


def exchange(serve: Serve, *pieces: bytes, **wanted: object) -> bytes:
    """Return what a user gets who sends these pieces to a name with this service."""
    with scripted(serve) as service, site_before(service.port, wanted=wanted) as site:
        return site.ask(b"", pieces)


def heads_seen(serve_answer: bytes, *pieces: bytes, **wanted: object) -> list[bytes]:
    """Return the heads that the service gets."""
    heads = []

    def serve(conn: SocketConn) -> None:
        while head := read_until(conn, END):
            heads.append(head)
            conn.sendall(serve_answer)

    exchange(serve, *pieces, **wanted)
    return heads


# ---- answers -----------------------------------------------------------------------------------------------

BODY = b"0123456789"
ANSWERS = {
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY, BODY),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n" + BODY + b"\r\n0\r\n\r\n", BODY),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n" + BODY + b"\r\n0\r\nX-Sum: 1\r\n\r\n",
        BODY,
    ),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 10\r\n\r\n', b""),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY, BODY),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("way", ["at once", "byte by byte"])
def test_an_answer_comes_as_it_is_and_another_may_follow(name: str, way: str) -> None:
    answer, body = ANSWERS[name]

    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        for at in range(len(answer)) if way == "byte by byte" else ():
            conn.sendall(answer[at : at + 1])
            gevent.idle()
        if way == "at once":
            conn.sendall(answer)
        if name != "HTTP/1.0" and read_until(conn, END):
            conn.sendall(OK)

    raw = exchange(serve, GET, LAST)
    if name == "early hints":
        assert raw.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        raw = raw[raw.index(b"HTTP/1.1 200") :]
    got = responses(raw)
    assert got[0].body == body
    if name != "HTTP/1.0":  # whose service takes one connection here
        assert [each.status for each in got[1:]] == [200]
        assert got[1].headers["Connection"] == "close"


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)

    got = responses(exchange(serve, GET))
    assert (got[0].body, got[0].headers["Connection"]) == (BODY, "close")


def test_answer_that_ends_a_connection_is_not_lost_when_more_comes_than_was_asked_for() -> None:
    last = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    body = bytes(100_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body
    with scripted(answering(answer)) as service, site_before(service.port) as site:
        user = site.dial()
        user.sendall(last + bytes(100_000))
        (got,) = responses(received(user))
        user.close()
    assert got.body == body


def test_head_has_no_body_and_another_request_may_follow() -> None:
    raw = exchange(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", OK),
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        LAST,
    )
    assert [each.status for each in responses(raw, ["HEAD", "GET"])] == [200, 200]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n01234",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\nx",
    ],
)
def test_half_an_answer_does_not_pass_for_the_whole(answer: bytes) -> None:
    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        conn.sendall(answer[:-1])
        gevent.idle()
        conn.sendall(answer[-1:])

    assert exchange(serve, GET).endswith(b"[reset]")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 40,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000,
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_what_is_no_answer_is_no_good_gateway(answer: bytes) -> None:
    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        conn.sendall(answer)
        if len(answer) < 40_000:
            conn.shutdown(socket.SHUT_WR)
        conn.recv(1)

    raw = exchange(serve, GET, LAST)
    assert [each.status for each in responses(raw)][:1] == [502]


def test_what_a_service_sends_without_being_asked_is_for_nobody() -> None:
    """An answer that comes behind another one would be taken for that to the next request."""
    served = []

    def serve(conn: SocketConn) -> None:
        while read_until(conn, END):
            served.append(conn)
            conn.sendall(OK + OK.replace(b"ok", b"no"))

    got = responses(exchange(serve, GET + GET + LAST))
    assert [each.body for each in got] == [b"ok"] * 3
    assert len({*served}) == 3


@pytest.mark.parametrize(
    ("request_", "answer", "late"),
    [
        (b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n", OK),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n", OK),
        (GET, b"HTTP/1.1 304 Not Modified\r\n\r\n", OK),
        (GET, OK, OK),
    ],
)
def test_what_a_service_sends_late_is_for_nobody(request_: bytes, answer: bytes, late: bytes) -> None:
    """Such as a body that looks like an answer: behind a proxy, the next request may be somebody else's."""
    has_come: list[SocketConn] = []

    def serve(conn: SocketConn) -> None:
        if read_until(conn, END).startswith(request_[:6]):
            conn.sendall(answer)
            wait_until(lambda: bool(has_come), "the user has the answer")
            conn.sendall(late.replace(b"ok", b"no"))
            has_come.append(conn)
            conn.recv(1)
        else:
            conn.sendall(OK)

    with scripted(serve) as service, site_before(service.port) as site, deadline(WAIT_S, "answers"):
        user = site.dial()
        user.sendall(request_)
        assert read_until(user, answer[-4:]) == answer
        has_come.append(user)
        wait_until(lambda: len(has_come) > 1, "the service has sent more")
        user.sendall(LAST)
        got = responses(received(user))
        user.close()
    assert [(each.status, each.body) for each in got] == [(200, b"ok")]


def test_a_body_that_a_service_leaves_unread_becomes_no_request() -> None:
    """Python's `http.server` does not look for a body of GET, and reads the next request in its place."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.path)))
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_: object) -> None:
            pass

    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        try:
            with site_before(service.server_port) as site:
                first = b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(hidden)
                got = responses(site.ask(first + hidden + LAST))
        finally:
            service.shutdown()
            thread.join()
    assert [each.body for each in got] == [b"/x", b"/last"]
    assert paths == ["/x", "/last"]


def test_the_last_answer_arrives_though_the_user_sends_more() -> None:
    """To close with bytes unread would reset the connection, and could take the answer away."""
    with (
        scripted(answering(OK)) as service,
        site_before(service.port) as site,
        deadline(WAIT_S, "the answer"),
    ):
        user = site.dial()
        user.sendall(LAST + b"x")
        gevent.idle()
        for _ in range(100):
            user.sendall(b"x" * 100)
            gevent.idle()
        assert [each.body for each in responses(received(user))] == [b"ok"]
        user.close()


# ---- uploads -----------------------------------------------------------------------------------------------


def test_a_large_body_reaches_the_service_while_it_is_sent() -> None:
    size = 3_000_000

    def serve(conn: SocketConn) -> None:
        head = read_until(conn, END)
        body = head[head.index(END) + 4 :]
        recv_exactly(conn, size - len(body))
        conn.sendall(OK)
        while read_until(conn, END):
            conn.sendall(OK)

    got = responses(exchange(serve, POST % size + b"x" * size, LAST))
    assert [each.status for each in got] == [200, 200]


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_answer_comes_before_the_upload_has_ended(goes_on: bool) -> None:
    """The service has seen enough, and closes, or reads on."""
    size = 50_000_000
    answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"
    counted = []

    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        conn.sendall(answer)
        if goes_on:
            count = 0
            while data := conn.recv(1 << 16):
                count += len(data)
            counted.append(count)

    with scripted(serve) as service, site_before(service.port) as site, deadline(WAIT_S, "the answer"):
        user = site.dial()
        user.sendall(POST % size + b"x" * 100_000)
        got = responses(read_until(user, b"no"))
        assert (got[0].status, got[0].headers["Connection"]) == (413, "close")
        if goes_on:
            user.sendall(b"x" * (size - 100_000))
            assert received(user) == b""
        user.close()
    if goes_on:
        assert counted[0] > size - 200_000


def test_a_user_is_told_to_go_on_by_the_service() -> None:
    def serve(conn: SocketConn) -> None:
        head = read_until(conn, END)
        assert b"\r\nExpect: 100-continue\r\n" in head
        conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert recv_exactly(conn, 3) == b"abc"
        conn.sendall(OK)

    with scripted(serve) as service, site_before(service.port) as site, deadline(WAIT_S, "the answers"):
        user = site.dial()
        user.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert read_until(user, END) == b"HTTP/1.1 100 Continue\r\n\r\n"
        user.sendall(b"abc")
        assert read_until(user, b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
        user.close()


def test_a_user_who_is_not_told_to_go_on_gets_the_answer_and_an_end() -> None:
    ask = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    raw = exchange(answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), ask)
    got = responses(raw)
    assert [each.status for each in got] == [401]
    assert got[0].headers["Connection"] == "close"


def test_a_chunked_body_that_is_malformed_ends_the_request() -> None:
    seen = []

    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        try:
            seen.append(received(conn))
        except ConnError:
            seen.append(b"[reset]")

    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = exchange(serve, head, b"3\r\nabc\r\n", b"x\r\n", LAST)
    assert [each.status for each in responses(raw)] == [400]
    assert seen[0].endswith(b"[reset]")


def test_a_user_who_goes_in_the_middle_of_an_upload_takes_the_request_along() -> None:
    ends = []

    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        ends.append(received(conn))

    with scripted(serve) as service, site_before(service.port) as site, deadline(WAIT_S, "the end"):
        user = site.dial()
        user.sendall(POST % 1000 + b"x" * 10)
        gevent.idle()
        user.close()
        wait_until(lambda: bool(ends), "the service sees the end")
    assert ends[0].endswith(b"[reset]")


# ---- other protocols, and events ---------------------------------------------------------------------------


def test_behind_an_upgrade_both_ends_speak_as_they_like() -> None:
    def serve(conn: SocketConn) -> None:
        head = read_until(conn, END)
        assert b"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n" in head
        conn.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello")
        while data := conn.recv(100):
            conn.sendall(data)
        conn.sendall(b"bye")

    with scripted(serve) as service, site_before(service.port) as site, deadline(WAIT_S, "the echo"):
        user = site.dial()
        user.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly")
        head = read_until(user, b"helloearly")
        assert b"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n" in head
        user.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert recv_exactly(user, 18) == b"GET / HTTP/1.1\r\n\r\n"
        user.shutdown(socket.SHUT_WR)
        assert received(user) == b"bye"
        user.close()


def test_events_come_without_delay() -> None:
    conns: list[SocketConn] = []

    def noting(conn: SocketConn) -> None:
        conns.append(conn)
        read_until(conn, END)
        conn.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        conn.recv(1)

    with scripted(noting) as service, site_before(service.port) as site, deadline(WAIT_S, "the events"):
        user = site.dial()
        user.sendall(GET)
        read_until(user, END)
        for number in range(3):
            conns[0].sendall(b"9\r\ndata: %d\n\n\r\n" % number)
            assert read_until(user, b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
        user.close()


# ---- services that fail ------------------------------------------------------------------------------------


def test_a_service_that_refuses_is_no_good_gateway() -> None:
    with scripted(lambda _conn: None) as service:
        port = service.port
    with site_before(port) as site:
        got = responses(site.ask(GET + LAST))
    assert [each.status for each in got] == [502, 502]
    assert b"web does not answer" in got[0].body


def test_programs_get_json_and_people_a_page() -> None:
    with site_before(1) as site:
        ask = b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\nAccept: %b\r\n\r\n"
        program = responses(site.ask(ask % b"application/json"))[0]
        person = responses(site.ask(ask % b"text/html,application/json"))[0]
    assert program.headers["Content-Type"] == "application/problem+json"
    assert json.loads(program.body)["status"] == 404
    assert person.headers["Content-Type"] == "text/html; charset=utf-8"


def test_a_connection_that_ended_between_two_requests_is_replaced() -> None:
    """The service closes each connection behind its answer, without having said so."""

    def serve(conn: SocketConn) -> None:
        read_until(conn, END)
        conn.sendall(OK)

    with scripted(serve) as service, site_before(service.port) as site:
        user = site.dial()
        with deadline(WAIT_S, "the answers"):
            for _ in range(3):
                user.sendall(GET)
                assert read_until(user, b"ok").endswith(b"ok")
        user.close()
        assert site.names.proxies["a"].connects == 3


def test_a_request_that_must_not_be_repeated_is_not() -> None:
    """A user whose own connection ends knows that it may have ended between two requests."""
    heads = []

    def serve(conn: SocketConn) -> None:
        for answer in (OK, b""):
            heads.append(read_until(conn, END)[:4])
            conn.sendall(answer)

    raw = exchange(serve, GET, POST % 0)
    assert raw == OK + b"[reset]" or raw.endswith(b"ok[reset]")
    assert heads == [b"GET ", b"POST"]


def test_a_way_that_is_used_again_serves_many_requests() -> None:
    with scripted(answering(OK)) as service, site_before(service.port) as site:
        got = responses(site.ask(GET * 50 + LAST))
        assert [each.body for each in got] == [b"ok"] * 51
        assert site.names.proxies["a"].connects == 1


def test_a_name_whose_client_is_away_says_so() -> None:
    with site_before(1) as site:
        site.names.proxies["a"].is_away = True
        got = responses(site.ask(LAST))[0]
    assert (got.status, got.headers["Retry-After"]) == (503, "10")
