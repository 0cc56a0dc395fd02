"""Users of names who come to the control port, by HTTP and by TLS."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gevent
import pytest

from gnar_lib.errors import ConnError
from gnar_lib.http.h2 import PREFACE
from gnar_lib.net import SocketConn
from gnar_lib.transport.tls import TlsConn
from tests.helpers.certificates import make_certificate
from tests.helpers.doors import DOMAIN, HOST, LAST, SCHEMES, UPGRADE, all_of, ask, get, is_idle, named, reach
from tests.helpers.hello import real_hello
from tests.helpers.loop import wait_until
from tests.helpers.servers import serving
from tests.helpers.sites import Passed, Service, give_name, scripted, tell_request

# ---- users of names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_bytes", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_user_of_a_name_is_served_on_the_control_port(scheme: str, in_bytes: bool) -> None:
    with named() as running:
        answer = ask(running, get("/a", fields=LAST), scheme, in_bytes=in_bytes)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"told: GET /a HTTP/1.1\r\n" in answer
        assert f"X-Forwarded-Proto: {scheme}\r\n".encode() in answer
        assert b"X-Forwarded-For: 127.0.0.1" in answer
        wait_until(lambda: is_idle(running), "nothing stays")
        assert running.server.shared.answers[2] == 1


@pytest.mark.parametrize(
    "request_",
    [
        get("/healthz", fields=LAST),
        get("/gnar", fields=UPGRADE + LAST),
        get(f"http://{HOST}/x", "elsewhere.org", LAST),
        get(fields=LAST, method="M-SEARCH"),
        f"GET / HTTP/1.0\r\nHost: {HOST.upper()}.\r\n\r\n".encode(),
    ],
    ids=["health", "WebSocket", "absolute target", "odd method", "HTTP/1.0"],
)
def test_request_of_a_name_is_its_service_s_whatever_it_asks_for(request_: bytes) -> None:
    with named() as running:
        assert b"told: " in ask(running, request_)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_requests_in_a_row_are_answered_on_one_connection(scheme: str) -> None:
    with named() as running:
        conn = reach(running, scheme)
        conn.sendall(get("/1") + get("/2") + get("/3"))
        data = b""
        while b"/3" not in data:
            data += conn.recv(4096)
        conn.sendall(get("/4", fields=LAST))
        data += all_of(conn)
        assert [at in data for at in (b"told: GET /1 ", b"told: GET /2 ", b"told: GET /3 ")] == [True] * 3
        assert data.count(b"HTTP/1.1 200 ") == 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_user_is_served_among_users_and_takes_no_place_of_those_who_log_in(scheme: str) -> None:
    def wait_for_more(conn: SocketConn) -> None:
        conn.recv(4096)
        conn.recv(1)

    with named(wait_for_more) as running:
        crew = running.server.shared.crew
        before = len(crew)
        conn = reach(running, scheme)
        conn.sendall(get())
        wait_until(lambda: len(running.server.shared.users) == 1, "the user is served")
        assert len(running.server.control_ingress.in_progress) == 0
        assert len(crew) == before
        assert "users=1 " in running.server.status()
        conn.close()


def test_page_of_names_says_what_is_wrong_with_a_request() -> None:
    with named() as running:
        for request, status, words in (
            (get(host="other.example.com"), 404, b"nobody has the name other.example.com here"),
            (get("/healthz", "other.example.com", method="POST"), 404, b"nobody has the name"),
            (get("/gnar", "other.example.com"), 404, b"nobody has the name"),
            (b"GET nonsense\r\n\r\n", 400, b"the request line is malformed"),
            (b"GET / HTTP/1.1\nHost: a\n\n", 400, b"does not end with carriage return"),
            (b"GET / HTTP/1.1\r\n\r\n", 400, b"there has to be one Host"),
            (b"GET / HTTP/3.0\r\n\r\n", 505, b"HTTP/1.1 and HTTP/1.0 are served here"),
            (get(host=HOST, fields=f"X: {'x' * 40_000}\r\n"), 431, b"longer than 32768 bytes"),
            (get("/" + "x" * 20_000), 414, b"longer than 16384 bytes"),
        ):
            answer = ask(running, request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert answer.startswith(b"HTTP/1.1 %d " % status), request[:60]
            assert words in answer
        wait_until(lambda: is_idle(running), "nothing stays")


def test_connection_of_http_2_is_for_names_where_there_are_some() -> None:
    with named() as running:
        answer = ask(running, PREFACE + bytes(9))
        assert answer[3:4] == b"\x04"  # SETTINGS: HTTP/2 is spoken
    with serving() as running:
        assert ask(running, PREFACE).startswith(b"HTTP/1.1 505 ")


def test_redirect_to_https_leads_to_the_control_port_if_that_has_the_certificate(tmp_path: Any) -> None:
    certificate = make_certificate(tmp_path / "a.pem", HOST)
    ways: list[tuple[dict[str, Any], bool]] = [({"tls_cert": (str(certificate),)}, True), ({}, False)]
    for settings, port in ways:
        with scripted(tell_request) as service, serving(domain=DOMAIN, **settings) as running:
            give_name(running.server.shared.names, HOST, Service(service.port, redirect_https=True))
            where = f"{HOST}:{running.port}" if port else HOST
            assert f"\r\nLocation: https://{where}/a\r\n".encode() in ask(running, get("/a", fields=LAST))
            assert b"told: " in ask(running, get("/a", fields=LAST), "https")


@pytest.mark.parametrize("host", ["", "unknown.org", HOST], ids=["no SNI", "unknown SNI", "SNI"])
def test_user_by_tls_gets_the_default_certificate_unless_one_has_the_name(host: str, tmp_path: Any) -> None:
    certs = tuple(str(make_certificate(tmp_path / f"{name}.pem", name)) for name in ("default.org", HOST))
    with named(tls_cert=certs) as running:
        conn = reach(running, "https", host)
        assert isinstance(conn, TlsConn)
        assert (b"default.org" in conn.peer_certificate) is (host != HOST)
        conn.sendall(get(fields=LAST))
        assert b"told: " in all_of(conn)


def test_control_port_is_not_for_users_where_another_program_is_in_front() -> None:
    with serving(domain=DOMAIN, caddy_api="http://127.0.0.1:1") as running:
        for proxy in (Service(1), Passed()):
            give_name(running.server.shared.names, HOST, proxy)
        assert b"This is a gnar server." in ask(running, get(fields=LAST))
        assert b"This is a gnar server." in ask(running, get(fields=LAST), "https")


# ---- TLS that is passed through ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_tls_is_passed_through_to_who_has_the_name(size: int) -> None:
    hello, proxy = real_hello(f"tls.{DOMAIN}"), Passed()
    with named() as running:
        give_name(running.server.shared.names, f"tls.{DOMAIN}", proxy)
        conn = running.dial()
        pieces = [hello[at : at + size] for at in range(0, len(hello), size)]
        for piece in pieces[:250]:
            conn.sendall(piece)
            gevent.idle()
        conn.sendall(b"".join(pieces[250:]) + b"more")
        wait_until(lambda: proxy.received == hello + b"more", "all bytes have come")
        assert len(running.server.shared.users) == 1
        assert len(running.server.control_ingress.in_progress) == 0
        conn.close()


def test_client_hello_in_very_many_pieces_ends_the_connection() -> None:
    with named() as running:
        conn = running.dial()
        for each in real_hello(HOST)[:300]:
            with suppress(ConnError):
                conn.sendall(bytes([each]))
            gevent.idle()
        assert all_of(conn) in (b"", b"[reset]")


# ---- stopping ----------------------------------------------------------------------------------------------


def test_answer_is_the_last_one_once_another_process_is_to_take_over_or_the_server_stops() -> None:
    with named() as running:
        web = running.server.web
        waiting = reach(running, "https")
        waiting.sendall(get("/1"))
        while b"/1" not in waiting.recv(4096):
            pass
        late = reach(running, "http")
        wait_until(lambda: len(running.server.control_ingress.in_progress) == 1, "somebody has come")
        web.pause()
        assert b"Connection: close" in ask(running, get("/2"))
        assert web.expects_requests  # of the one who has just had an answer
        web.resume()
        running.server.stop_listening()
        assert all_of(waiting) == b""
        late.sendall(get())
        assert all_of(late).startswith(b"HTTP/1.1 503 ")
        assert running.server.shared.users.wait_empty(5.0)
