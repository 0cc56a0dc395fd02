"""Control connections at a real server and logins in progress, when something fails meanwhile."""

from __future__ import annotations

import errno
import gc
import os
import socket
import time
from contextlib import suppress

import gevent
import gevent.event
import pytest

from gnar_lib import events
from gnar_lib.auth import ClientLogin, ReplayWindow
from gnar_lib.config import PortRanges
from gnar_lib.errors import ConnError
from gnar_lib.events import CloseReason, ProxyClosed
from gnar_lib.net import Listener, Sockaddr, dial, listen
from gnar_lib.net.conn import socket_class
from gnar_lib.proto import ProxyCancel, ProxyReq, send
from gnar_lib.server import control as control_module
from gnar_lib.server.control import Control
from gnar_lib.server.in_progress import InProgress
from tests.helpers.logins import go_login
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, answer_of, exchange_of, serving


@pytest.mark.parametrize(("kind", "module"), [("tcp", "endpoint"), ("udp", "datagram")])
def test_port_for_which_no_descriptor_is_left_may_be_asked_for_again(
    kind: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoDescriptorLeft(socket_class):  # type: ignore[valid-type,misc]  # which class is known when it runs
        def __init__(self, *_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def __del__(self) -> None:
            """Do nothing: the socket was never opened."""

    with serving() as running:
        ours, _ = running.log_in("ours")
        monkeypatch.setattr(f"gnar_lib.net.{module}.socket_class", NoDescriptorLeft)
        send(ours.conn, ProxyReq(remote_port=9001, proxy_name="x", subdomain="", proxy_type=kind))
        answer = answer_of(ours.conn)
        assert (answer.status, answer.retry) == ("failed", True)
        assert "Too many open files" in answer.error
        ours.conn.close()


def test_client_that_comes_back_while_a_port_of_its_is_being_opened_finds_it_free() -> None:
    with serving() as running:
        ports = running.server.shared.ports
        opened: list[Listener] = []
        go_on = gevent.event.Event()

        def open_slowly(port: int, allowed: PortRanges) -> Listener:
            """Open the listener, and return it late, as a slow look-up of the address to bind to would."""
            assert allowed.allows(port)
            listener = listen(LOOPBACK, port)
            opened.append(listener)
            if len(opened) == 2:
                go_on.wait()
            return listener

        ports.listen = open_slowly  # type: ignore[method-assign]  # for this test alone
        before, _ = running.log_in("same")
        send(before.conn, ProxyReq(remote_port=0, proxy_name="x", subdomain="", proxy_type="tcp"))
        wait_until(lambda: len(opened) == 2, "the second port is being opened")
        port = opened[1].port
        after, _ = running.log_in("same")
        go_on.set()
        wait_until(lambda: opened[1].sock.fileno() < 0, "the listener that came too late is closed")
        assert len(ports) == 1
        listen(LOOPBACK, port).close()
        before.conn.close()
        after.conn.close()


def test_data_connections_that_wait_are_closed_with_the_last_tcp_proxy() -> None:
    with serving() as running:
        ours, port = running.log_in("ours")
        assert ours.session is not None
        send(ours.conn, ProxyReq(remote_port=0, proxy_name="dns", subdomain="", proxy_type="udp"))
        assert answer_of(ours.conn).status == "success"
        waiting = running.dial()
        send(waiting, ClientLogin.waiting_message(ours.session, 1))
        (control,) = running.server.control_ingress.clients
        wait_until(lambda: control.upstream.waiting, "the data connection waits")
        send(ours.conn, ProxyCancel(proxy_name="ours", remote_port=port))
        assert waiting.recv(1) == b""
        assert len(running.server.shared.ports) == 1
        waiting.close()
        ours.conn.close()


class Login:
    """A connection that says nothing."""

    def __init__(self, host: str) -> None:
        self.address = (host, 4000, 0, 0) if ":" in host else (host, 4000)
        self.is_open = True

    def getpeername(self) -> Sockaddr:
        return self.address

    def abort(self) -> None:
        self.is_open = False


@pytest.mark.parametrize(
    ("honest", "crowd"),
    [
        ("192.0.2.1", ["192.0.2.2"]),
        ("::ffff:192.0.2.1", ["::ffff:192.0.2.2"]),
        ("192.0.2.1", [f"2001:db8::{number:x}" for number in range(1, 200)]),
        ("2001:db8:0:1::1", [f"2001:db8::{number:x}:1" for number in range(1, 200)]),
    ],
)
def test_one_network_cannot_keep_others_from_logging_in(honest: str, crowd: list[str]) -> None:
    logins = InProgress(limit=10)
    first = Login(honest)
    logins.add(first)
    many = [Login(crowd[number % len(crowd)]) for number in range(200)]
    for login in many:
        logins.add(login)
    assert first.is_open
    assert [login.is_open for login in many] == [False] * 191 + [True] * 9
    for login in (first, *many):
        logins.discard(login)
    assert not logins._of_network


def test_logins_from_everywhere_make_room_from_the_oldest_on() -> None:
    logins = InProgress(limit=10)
    many = [Login(f"192.0.2.{number}") for number in range(30)]
    for login in many:
        logins.add(login)
    assert [login.is_open for login in many] == [False] * 20 + [True] * 10


@pytest.mark.parametrize("reason", [CloseReason.STOPPING, CloseReason.CLIENT_LEFT])
def test_proxy_that_ends_says_whether_the_server_stops_or_the_client_has_left(
    reason: CloseReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_listeners", {})
    said: list[CloseReason] = []
    events.subscribe(ProxyClosed, lambda event: said.append(event.reason))
    with serving() as running:
        ours, _ = running.log_in("ours")
        if reason is CloseReason.STOPPING:
            running.server.stop_listening()
        ours.close()
        wait_until(lambda: bool(said), "the proxy has ended")
    assert said == [reason]


def test_proxy_that_is_cancelled_leaves_the_users_of_another_with_the_same_name_alone() -> None:
    with serving() as running:
        ours, old_port = running.log_in("blog")
        send(ours.conn, ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp"))
        new_port = answer_of(ours.conn).remote_port
        user = dial(socket.AF_INET, (LOOPBACK, new_port))
        exchange = exchange_of(ours.conn)
        send(ours.conn, ProxyCancel(proxy_name="blog", remote_port=old_port))
        wait_until(lambda: len(running.server.shared.ports) == 1, "the old proxy is cancelled")
        data = ours.open_data(exchange)
        user.sendall(b"x")
        assert data.recv(1) == b"x"
        for each in (user, data, ours.conn):
            each.close()


@pytest.mark.parametrize("tls", ["off", "on"])
@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_what_a_client_has_had_is_freed_without_the_collector(
    multiplex: bool, tls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnar_lib.server.control.TICK_S", 0.01)

    def held() -> int:
        return sum(isinstance(thing, Control | ReplayWindow) for thing in gc.get_objects())

    with serving() as running:
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                client, port = running.log_in("blog", multiplex=multiplex, tls=tls)
                dial(socket.AF_INET, (LOOPBACK, port)).close()
                client.close()
                wait_until(lambda: not running.server.control_ingress.clients, "the client has gone")
            wait_until(lambda: held() <= 2, "the clients are freed")
        finally:
            gc.enable()


@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_client_that_has_nothing_to_say_needs_no_greenlet(multiplex: bool) -> None:
    with serving() as running:
        clients = [running.log_in(f"blog{number}", multiplex=multiplex)[0] for number in range(3)]
        crew = running.server.shared.crew
        wait_until(lambda: len(crew) == 1, "the greenlets but `Server._expire` have ended")
        for client in clients:
            send(client.conn, ProxyReq(remote_port=0, proxy_name="other", subdomain="", proxy_type="tcp"))
            assert answer_of(client.conn).remote_port
        for client in clients:
            client.close()
        wait_until(lambda: not running.server.control_ingress.clients, "the clients have gone")


def test_client_whose_end_came_before_it_was_served_is_called_no_more() -> None:
    with serving() as running:
        before = set(control_module._rota._due_s)
        running.server.control_ingress.is_left = True  # the connection was accepted before that
        conn = running.dial()
        send(conn, go_login(int(time.time())))
        send(conn, ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp"))
        with suppress(ConnError):
            while conn.recv(100):
                pass
        assert set(control_module._rota._due_s) <= before
        conn.close()
