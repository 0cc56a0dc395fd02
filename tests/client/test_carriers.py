"""A client with a real server in this process: further sessions on long paths, connections beside streams."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import gevent
import pytest

from gnar_lib import net
from gnar_lib.client import carriers
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.errors import ConnError, DialError
from gnar_lib.net import Crew, EventedConn, SocketConn
from tests.helpers.conns import accept
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, TIMEOUT_S, Running, serving

MIB = 1 << 20


@dataclass
class World:
    """A client with one proxy, its server, and the listener of its service."""

    running: Running
    client: Client
    service: net.Listener

    @property
    def carriers(self) -> carriers.Carriers:
        """What the client has beside its control connection."""
        (link,) = self.client._links
        assert link.connection is not None
        return link.connection._carriers

    @property
    def sessions_at_server(self) -> int:
        (control,) = self.running.server.control_ingress.clients
        return 0 if control._carriers is None else 1 + len(control._carriers._further)

    def user(self) -> tuple[SocketConn, SocketConn]:
        """Return the conn of a new user, and that of the service on which the user has come."""
        (proxy,) = self.client._proxies.values()
        user = net.dial(socket.AF_INET, (LOOPBACK, proxy.remote_port))
        user.sendall(b"hello")
        service = accept(self.service)
        assert service.recv(5) == b"hello"
        return user, service


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(carriers, "LONG_PATH_S", getattr(request, "param", 0.0))
    service = net.listen(LOOPBACK, 0)
    with serving() as running:
        proxies = (ProxyConfig(proxy_name="blog", local_port=service.port),)
        client = Client(ClientConfig(Address(LOOPBACK, running.port), proxies, TOKEN), lambda: None)
        client.start()
        assert client.answered.wait(TIMEOUT_S)
        yield World(running, client, service)
        client.close()
        service.close()
        assert client.shared.users.wait_empty(TIMEOUT_S)
        assert client.shared.crew.wait_empty(TIMEOUT_S)


def close(*conns: SocketConn) -> None:
    for conn in conns:
        conn.close()


def test_client_on_a_long_path_opens_further_sessions_once_a_user_has_come(world: World) -> None:
    assert world.sessions_at_server == 1
    first = world.user()
    wait_until(lambda: world.sessions_at_server == carriers.MAX_CARRIERS, "all sessions are there")
    users = [world.user() for _ in range(2 * carriers.MAX_CARRIERS)]
    for user, service in users:
        service.sendall(b"welcome")
        assert user.recv(7) == b"welcome"
        close(user, service)
    close(*first)


@pytest.mark.parametrize("world", [10.0], indirect=True)
def test_client_nearby_has_one_session(world: World) -> None:
    for _ in range(3):
        close(*world.user())
    assert world.sessions_at_server == 1


def test_session_that_has_broken_is_replaced_when_the_next_user_comes(world: World) -> None:
    close(*world.user())
    wait_until(lambda: world.sessions_at_server == carriers.MAX_CARRIERS, "all sessions are there")
    for _ in range(carriers.MAX_CARRIERS):  # each has a user
        close(*world.user())
    next(iter(world.carriers._further)).abort()
    wait_until(lambda: world.sessions_at_server == carriers.MAX_CARRIERS - 1, "one has gone")
    close(*world.user())
    wait_until(lambda: world.sessions_at_server == carriers.MAX_CARRIERS, "all sessions are there")


def test_users_are_served_on_the_first_session_while_no_other_can_be_opened(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def refuse(_: ControlConn, number: int) -> EventedConn:
        tries.append(number)
        raise DialError("a firewall")

    monkeypatch.setattr(ControlConn, "open_carrier", refuse)
    for _ in range(5):
        close(*world.user())
    assert 0 < len(tries) <= carriers.MAX_CARRIERS  # the pace of tries slows down
    assert world.sessions_at_server == 1


def test_tries_slow_down_where_a_firewall_ends_further_sessions_as_soon_as_they_are_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def open_in_vain(control: ControlConn, number: int) -> EventedConn:
        tries.append(number)
        return control.open_beside("0:99998")

    monkeypatch.setattr(ControlConn, "open_carrier", open_in_vain)
    close(*world.user())
    wait_until(lambda: bool(world.client.shared.turns._pause_s), "the first tries have failed")
    for _ in range(20):
        close(*world.user())
    assert len(tries) <= 2 * carriers.MAX_CARRIERS


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_goes_over_a_connection_of_its_own_and_ends_in_order(world: World, direction: str) -> None:
    user, service = world.user()
    src, dst = (user, service) if direction == "up" else (service, user)
    before = net.descriptors.taken

    def send() -> None:
        src.sendall(bytes(32 * MIB))
        src.shutdown(socket.SHUT_WR)

    sending = gevent.spawn(send)
    count, most = 0, before
    while data := dst.recv(MIB):
        count += len(data)
        most = max(most, net.descriptors.taken)
    sending.get()
    assert count == 32 * MIB
    assert most > before  # both ends of the connection are in this process, and the pipes
    assert world.carriers._besides
    dst.sendall(b"thanks")
    assert src.recv(10) == b"thanks"
    close(user, service)


def test_stream_goes_on_without_a_connection_that_the_server_does_not_take(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "READY_S", 0.0)
    wrong = ControlConn.open_beside
    monkeypatch.setattr(ControlConn, "open_beside", lambda self, _: wrong(self, "0:99998"))
    user, service = world.user()
    sending = gevent.spawn(service.sendall, bytes(8 * MIB))
    left = 4 * MIB
    while left:
        left -= len(user.recv(min(left, MIB)))
    wait_until(lambda: bool(world.carriers._besides), "the client has tried")
    wait_until(lambda: not world.carriers._besides, "the client has given up")
    left = 4 * MIB
    while left:
        left -= len(user.recv(min(left, MIB)))
    sending.get()
    service.sendall(b"still here")
    assert user.recv(100) == b"still here"
    close(user, service)


def test_connection_that_has_taken_too_long_to_open_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "READY_S", 0.0)
    opened: list[EventedConn] = []
    right = ControlConn.open_beside

    def open_late(control: ControlConn, stream: str) -> EventedConn:
        wait_until(lambda: bool(world.carriers._besides), "it is asked for")
        wait_until(lambda: not world.carriers._besides, "nobody waits for it any more")
        opened.append(right(control, stream))
        return opened[0]

    monkeypatch.setattr(ControlConn, "open_beside", open_late)
    user, service = world.user()
    sending = gevent.spawn(service.sendall, bytes(2 * MIB))
    left = 2 * MIB
    while left:
        left -= len(user.recv(left))
    sending.get()
    wait_until(lambda: bool(opened) and opened[0].closed, "it is closed")
    service.sendall(b"still here")
    assert user.recv(100) == b"still here"
    close(user, service)


@pytest.mark.parametrize("world", [10.0], indirect=True)
def test_server_that_asks_for_connections_beside_all_streams_gets_no_more_than_there_is_room_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [world.user() for _ in range(6)]
    asked: list[str] = []

    def open_beside(_: ControlConn, stream: str) -> EventedConn:
        asked.append(stream)
        raise DialError("never mind")

    monkeypatch.setattr(ControlConn, "open_beside", open_beside)
    (control,) = world.running.server.control_ingress.clients
    assert control._carriers is not None
    streams = [each for each in control._carriers.first.streams.values() if each.id % 2 == 0]
    assert len(streams) == len(pairs)
    monkeypatch.setattr(net.descriptors, "has_room", lambda count=2: count < 4)
    for stream in streams:
        stream.ask_beside()
    wait_until(lambda: bool(asked), "the client has been asked")
    assert len(asked) == 2
    for user, service in pairs:
        close(user, service)


def test_end_of_the_client_ends_all_sessions_and_resets_what_has_moved(world: World) -> None:
    user, service = world.user()
    wait_until(lambda: world.sessions_at_server == carriers.MAX_CARRIERS, "all sessions are there")

    def send() -> None:
        service.sendall(bytes(64 * MIB))

    crew = Crew("service")
    crew.spawn(send)
    while not world.carriers._besides:
        assert user.recv(MIB)
    world.client.close()
    with pytest.raises(ConnError):
        _read_to_end(user)
    close(user, service)
    assert crew.wait_empty(TIMEOUT_S)


def _read_to_end(conn: SocketConn) -> None:
    while conn.recv(MIB):
        pass
