"""Those at the control port who are too many or too slow, and who waits to shake hands."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gevent.hub import get_hub

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.http import Limits
from gnar_lib.http import share as share_module
from gnar_lib.http.share import Share, handshakes
from gnar_lib.net import SocketConn, descriptors
from gnar_lib.net.conn import socket_class
from gnar_lib.proto import ProxyReq
from gnar_lib.server import in_progress
from gnar_lib.server.ingress import door as door_module
from tests.helpers.doors import DOMAIN, HOST, LAST, SCHEMES, all_of, ask, get, is_idle, named, reach
from tests.helpers.harness import free_port
from tests.helpers.hello import real_hello
from tests.helpers.logins import TOKEN
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import Running, answer_of, serving
from tests.helpers.sites import Passed, give_name
from tests.helpers.web import LOOPBACK


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
