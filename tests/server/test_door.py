"""What comes to the control port in front of a login, by TLS and HTTP: users of names, people, clients."""

from __future__ import annotations

import base64
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub

from gnar_lib.auth import ClientLogin
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import ConnError
from gnar_lib.http import Limits
from gnar_lib.http import share as share_module
from gnar_lib.http.h2 import PREFACE
from gnar_lib.http.share import Share, handshakes
from gnar_lib.net import EventedConn, SocketConn, descriptors
from gnar_lib.net.conn import socket_class
from gnar_lib.proto import Challenge, ProxyReq, expect, send
from gnar_lib.server import in_progress
from gnar_lib.server.ingress import door as door_module
from gnar_lib.transport import websocket
from gnar_lib.transport.tls import TlsConn, unverified_context
from tests.helpers.certificates import make_certificate
from tests.helpers.harness import free_port
from tests.helpers.hello import real_hello
from tests.helpers.logins import TOKEN, go_login
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import Running, answer_of, serving
from tests.helpers.sites import Passed, Service, give_name, scripted, tell_request
from tests.helpers.web import LOOPBACK

DOMAIN = "example.com"
HOST = f"web.{DOMAIN}"
SCHEMES = ("http", "https")
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"


def get(target: str = "/", host: str = HOST, fields: str = "", *, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode()


@contextmanager
def named(serve: Callable[[SocketConn], None] = tell_request, **settings: Any) -> Iterator[Running]:
    """Run a server for the block where `HOST` is a service's; it has the control port alone."""
    with scripted(serve) as service, serving(domain=DOMAIN, **settings) as running:
        give_name(running.server.shared.names, HOST, Service(service.port, http2=True))
        yield running


def reach(running: Running, scheme: str, host: str = HOST) -> EventedConn:
    """Return a connection to the control port, by TLS if it is for https; the caller closes it."""
    conn = running.dial()
    return TlsConn.connect(conn, unverified_context(), host) if scheme == "https" else conn


def all_of(conn: EventedConn) -> bytes:
    """Return what comes, to the end of the stream or to a reset; closes the conn."""
    data = b""
    try:
        while more := conn.recv(1 << 16):
            data += more
    except ConnError:
        data += b"[reset]"
    conn.close()
    return data


def ask(running: Running, request: bytes, scheme: str = "http", *, in_bytes: bool = False) -> bytes:
    """Send a request, and return all that comes."""
    conn = reach(running, scheme)
    for piece in (bytes([each]) for each in request) if in_bytes else [request]:
        conn.sendall(piece)
        gevent.idle()
    return all_of(conn)


LAST = "Connection: close\r\n"


def is_idle(running: Running) -> bool:
    server = running.server
    return not (len(server.shared.users) or len(server.control_ingress.in_progress))


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


# ---- too many, too slow ------------------------------------------------------------------------------------


def test_users_are_turned_away_when_descriptors_run_short_and_clients_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with named() as running:
        passed = Passed()
        give_name(running.server.shared.names, f"tls.{DOMAIN}", passed)
        monkeypatch.setattr(descriptors, "has_room", lambda _count: False)
        for scheme in SCHEMES:
            answer = ask(running, get(), scheme)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After" in answer
        conn = running.dial()
        conn.sendall(real_hello(f"tls.{DOMAIN}"))
        assert all_of(conn) == b"[reset]"
        assert passed.received == b""
        for tls in ("on", "off"):
            config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, tls=tls)
            client = ControlConn.dial(config, tls)
            client.log_in(ProxyReq(0, "x", f"x{tls}", "http"))
            assert answer_of(client.conn).status == "success"
            client.close()


def test_users_have_so_many_places_as_at_other_ports() -> None:
    with named() as running:
        running.server.web.site.use_limits(Limits(connections=1, connections_of_network=1))  # type: ignore[union-attr]
        first = reach(running, "http")
        first.sendall(get("/1"))
        while b"/1" not in first.recv(4096):
            pass
        assert b"told: " in ask(running, get(fields=LAST), "https")  # in place of the one that waits
        assert all_of(first) == b""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_slow_head_waits_among_users_and_not_among_those_who_log_in(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "HEAD_S", 0.05)
    with named() as running:
        request, server = get(fields=LAST), running.server
        conn = reach(running, scheme)
        conn.sendall(request[:30])
        wait_until(lambda: len(server.shared.users) == 1, "the user waits among users")
        assert len(server.control_ingress.in_progress) == 0
        conn.sendall(request[30:])
        assert b"told: " in all_of(conn)
        conn = reach(running, scheme)
        conn.sendall(request[:30])
        wait_until(lambda: len(server.shared.users) == 1, "the user waits among users")
        (visitor,) = server.web._visitors  # type: ignore[union-attr]
        wait_until(lambda: visitor.until_s, "the head is awaited")
        get_hub().loop.run_callback(visitor.expire, time.monotonic() + 11.0)
        assert all_of(conn).startswith(b"HTTP/1.1 408 ")


def test_slow_head_is_answered_where_there_are_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "HEAD_S", 0.05)
    with serving() as running:
        assert ask(running, b"GET / HT").startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "begun", [b"", b"GET ", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02", b"\x16", b"PROXY"], ids=repr
)
def test_connection_that_does_not_say_in_time_what_it_is_for_is_reset(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_progress, "LOGIN_DEADLINE_S", 0.0)
    with named() as running:
        going_on = running.server.control_ingress.in_progress
        conn = running.dial()
        conn.sendall(begun)
        wait_until(lambda: len(going_on) == 1, "it has come")
        turn()
        going_on.expire()
        assert all_of(conn) in (b"[reset]", b"")
        wait_until(lambda: is_idle(running), "nothing stays")


@contextmanager
def handshakes_standing() -> Iterator[Share]:
    """Have nobody get a turn to shake hands during the block; yield who gives turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share_module, "SHARE", 1e-9)
        handshakes._credit_s = -1.0
        yield handshakes
    handshakes._credit_s = 0.0
    if handshakes._timer is not None:
        handshakes._timer.stop()
        handshakes._set_timer()


def begin_tls(running: Running, host: str = LOOPBACK) -> SocketConn:
    """Begin to shake hands, from an address of this machine; the caller closes the conn."""
    sock = socket.create_connection((LOOPBACK, running.port), source_address=(host, 0))
    sock.setblocking(False)
    conn = SocketConn(socket_class(sock.family, sock.type, fileno=sock.detach()), (LOOPBACK, running.port))
    conn.sendall(real_hello(HOST))
    return conn


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux alone")
def test_networks_take_turns_to_shake_hands() -> None:
    with serving() as running, handshakes_standing() as turns:
        conns = [begin_tls(running, "127.0.0.2") for _ in range(20)] + [begin_tls(running)]
        wait_until(lambda: len(turns._waiters) == 21, "all wait for a turn")
        assert {network: len(queue) for network, queue in turns._queues.items()} == {
            "127.0.0.2": 20,
            LOOPBACK: 1,
        }
        for conn in conns:
            conn.close()


def test_who_waits_to_shake_hands_and_has_to_make_room_leaves_the_line_at_once() -> None:
    with serving() as running, handshakes_standing() as turns:
        running.server.control_ingress.in_progress._limit = 5
        before = len(running.server.shared.crew)
        conns = [begin_tls(running) for _ in range(12)]
        wait_until(lambda: len(turns._waiters) == 5, "the others have left")
        wait_until(lambda: len(running.server.shared.crew) == before + 5, "nothing of them stays")
        assert [all_of(conn) for conn in conns[:7]] == [b"[reset]"] * 7
        running.server.control_ingress.in_progress._clock = lambda: time.monotonic() + 60.0
        running.server.control_ingress.in_progress.expire()
        wait_until(lambda: not turns._waiters, "nobody waits for longer than a login may take")
        for conn in conns:
            conn.close()


def test_user_who_waits_to_shake_hands_at_the_https_port_and_makes_room_leaves_the_line() -> None:
    with serving(domain=DOMAIN, https_port=free_port()) as running, handshakes_standing() as turns:
        web = running.server.web
        web._certificates = running.server.shared.certificates  # type: ignore[union-attr]
        web.site.use_limits(Limits(connections=2, connections_of_network=2))  # type: ignore[union-attr]
        at_https = Running(running.server, running.server.shared.config.https_port)
        conns = [begin_tls(at_https) for _ in range(6)]
        wait_until(lambda: len(running.server.shared.users) == len(turns._waiters) == 2, "four have left")
        for conn in conns:
            conn.close()


# ---- others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_names", [False, True], ids=["without names", "with names"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_health_is_told_to_whoever_asks(scheme: str, has_names: bool) -> None:
    with named() if has_names else serving() as running:
        answer = ask(running, get("/healthz", "any.org"), scheme)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain")
        assert body == b"ok\n"
        assert ask(running, get("/healthz?x=1", "any.org", method="HEAD"), scheme) == head + b"\r\n\r\n"
        assert ask(running, b"GET /healthz HTTP/1.0\r\n\r\n", scheme).endswith(b"\r\n\r\nok\n")
        wait_until(lambda: is_idle(running), "nothing stays")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_people_get_a_page_that_says_what_this_is_and_no_more(scheme: str) -> None:
    with serving() as running:
        answer = ask(running, get(), scheme)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert body.startswith(b"This is a gnar server.")
        assert f"Content-Length: {len(body)}\r\n".encode() in head
        assert ask(running, get(method="HEAD"), scheme) == head + b"\r\n\r\n"
        posted = ask(running, get("/x", fields="Content-Length: 50000\r\n", method="POST") + bytes(50_000))
        assert posted == answer
        for wrong, status in (
            (b"GET nonsense\r\n\r\n", 400),
            (get(fields=f"X: {'x' * 20_000}\r\n"), 431),
            (get(method="CONNECT"), 405),
        ):
            assert ask(running, wrong, scheme).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_request_for_clients_that_wants_no_websocket_is_told_what_is_missing(scheme: str) -> None:
    with serving() as running:
        for request in (get("/gnar", "any.org"), b"GET /gnar HTTP/1.0\r\n" + UPGRADE.encode() + b"\r\n"):
            head, _, body = ask(running, request, scheme).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
            assert head.endswith(b"\r\nUpgrade: websocket\r\nConnection: close, upgrade")
            assert body.startswith(b"This is a gnar server.")


@pytest.mark.parametrize("tls", ["on", "off"])
def test_clients_log_in_at_the_port_of_users(tls: str) -> None:
    with named() as running:
        config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, tls=tls, multiplex=tls == "on")
        client = ControlConn.dial(config, "one")
        client.log_in(ProxyReq(0, "blog", "blog", "http"))
        assert answer_of(client.conn).url == f"http://blog.{DOMAIN}:{running.port}"
        client.close()


def test_go_client_logs_in_at_the_port_of_users() -> None:
    with named() as running:
        conn = running.dial()
        send(conn, go_login(int(time.time())))
        send(conn, ProxyReq(0, "go", "go", "tcp"))
        assert answer_of(conn).domain == f"go.{DOMAIN}"
        conn.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_client_that_comes_by_websocket_logs_in_by_tls_inside(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    def accept(conn: EventedConn, head: bytes) -> EventedConn:  # in place of what RFC 6455 has
        heads.append(head)
        return conn

    module = SimpleNamespace(WebSocketConn=SimpleNamespace(accept=accept))
    monkeypatch.setitem(sys.modules, "gnar_lib.transport.websocket", module)
    with named(ws_path="/way") as running:
        request = get("/way?x", "any.org", UPGRADE)
        outer = reach(running, scheme)
        outer.sendall(request)
        inner = TlsConn.connect(outer, unverified_context(), "any.org")
        send(inner, ClientLogin(TOKEN, "hmac").message())
        challenge = expect(inner, Challenge)
        assert challenge.certificate == inner.certificate
        assert heads == [request]
        assert len(running.server.control_ingress.in_progress) == 1
        inner.close()


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


@pytest.mark.parametrize("behind", [b"\x82\x81\0\0\0\0\x17", b""], ids=["nonsense", "nothing"])
def test_websocket_on_which_no_login_comes_is_forgotten(behind: bytes) -> None:
    request = (
        b"GET /gnar HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % base64.b64encode(bytes(16))
    )
    with serving() as running:
        before = len(websocket._rota._due_s)
        for _ in range(3):
            conn = running.dial()
            conn.sendall(request)
            assert conn.recv(4096).startswith(b"HTTP/1.1 101")
            if behind:
                conn.sendall(behind)
            conn.close()
        wait_until(lambda: not running.server.control_ingress.in_progress, "none is logging in")
        wait_until(lambda: len(websocket._rota._due_s) == before, "nobody looks after them")
