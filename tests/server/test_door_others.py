"""Those at the control port who are no users: health checks, people, clients."""

from __future__ import annotations

import base64
import sys
import time
from types import SimpleNamespace

import pytest

from gnar_lib.auth import ClientLogin
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.net import EventedConn
from gnar_lib.proto import Challenge, ProxyReq, expect, send
from gnar_lib.transport import websocket
from gnar_lib.transport.tls import TlsConn, unverified_context
from tests.helpers.doors import DOMAIN, SCHEMES, UPGRADE, ask, get, is_idle, named, reach
from tests.helpers.logins import TOKEN, go_login
from tests.helpers.loop import wait_until
from tests.helpers.servers import answer_of, serving
from tests.helpers.web import LOOPBACK


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
