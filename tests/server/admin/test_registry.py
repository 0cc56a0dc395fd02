"""The clients and proxies that a watcher sees: who is there, who has gone, when and why, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.net import SocketConn, format_address
from gnar_lib.proto import Heartbeat, ProxyCancel, ProxyReq, recv, send
from gnar_lib.server import control as control_module
from gnar_lib.server.admin import registry as registry_module
from gnar_lib.server.admin.registry import GONE_S, ProxyEntry, Registry
from gnar_lib.server.belongings import BY_ADMINISTRATOR
from tests.helpers.clock import Clock
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, serving


class Watch:
    """A server with a registry whose clock the test sets."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.clock = Clock()
        self.registry = Registry(running.server.control_ingress, self.clock)

    def clients(self) -> list[tuple[Any, ...]]:
        """Return, for each client, its id, whether it is there, and why not."""
        self.registry.look()
        return [(each.id, each.control is not None, each.reason) for each in self.registry.clients.values()]

    def proxies(self) -> list[tuple[Any, ...]]:
        """Return, for each proxy, its name, what it is at the moment, and why it is gone."""
        self.registry.look()
        return [(each.name, state_of(each), each.reason) for each in self.registry.proxies.values()]

    def log_in(
        self, name: str, port: int = 0, client_id: str = "", **options: Any
    ) -> tuple[ControlConn, int]:
        """Log in, by default as a client of its own, and open a proxy."""
        config = ClientConfig(
            Address(LOOPBACK, self.running.port), (), TOKEN, tls="off", **{"multiplex": False, **options}
        )
        control = ControlConn.dial(config, client_id or f"the client of {name}")
        control.log_in(ProxyReq(port, name, "", "tcp"))
        return control, answer_of(control.conn).remote_port

    def wait_clients(self, count: int) -> None:
        """Wait until the server has so many clients."""
        clients = self.running.server.control_ingress.clients
        wait_until(lambda: len(clients) == count, f"{count} clients are there")


@pytest.fixture
def watch() -> Iterator[Watch]:
    with serving() as running:
        watch = Watch(running)
        watch.registry.start()
        yield watch
        watch.registry.close()


def state_of(entry: ProxyEntry) -> str:
    return "gone" if entry.ingress is None else "waiting" if entry.is_waiting else "open"


def address_of(control: ControlConn) -> str:
    """Return the client's address as the server sees it."""
    assert isinstance(control.conn, SocketConn)
    return format_address(control.conn.sock.getsockname())


def ask(control: ControlConn, name: str, port: int = 0, kind: str = "tcp") -> int:
    send(control.conn, ProxyReq(port, name, "", kind))
    return answer_of(control.conn).remote_port


def test_a_client_and_its_proxies_are_there_with_ids_of_their_own(watch: Watch) -> None:
    first, port = watch.log_in("blog")
    ask(first, "dns", kind="udp")
    second, _ = watch.log_in("nas", multiplex=True)
    (one, is_there, _), (other, _, _) = watch.clients()
    assert is_there
    assert one != other
    assert watch.proxies() == [("blog", "open", ""), ("dns", "open", ""), ("nas", "open", "")]
    shown = [*watch.registry.proxies.values()]
    assert len({each.id for each in shown}) == 3
    assert (shown[0].kind, shown[0].port, shown[1].kind) == ("tcp", port, "udp")
    client = watch.registry.clients[one]
    assert client.proxies == shown[:2]
    assert (client.is_multiplexed, watch.registry.clients[other].is_multiplexed) == (False, True)
    assert client.address == address_of(first)
    watch.clock.now_s += 60
    assert {client.since, *(each.since for each in shown)} == {1000.0}
    first.close()
    second.close()


def test_a_client_that_went_stays_listed_with_when_why_and_what_it_had(watch: Watch) -> None:
    control, _ = watch.log_in("blog")
    watch.clients()
    ask(control, "new")  # which no look has found
    watch.clock.now_s = 1060
    control.close()
    watch.wait_clients(0)
    watch.clock.now_s = 1070
    ((_, is_there, reason),) = watch.clients()
    assert not is_there
    assert reason == "the peer closed the connection"
    (client,) = watch.registry.clients.values()
    assert client.gone_at == 1060.0
    assert [each.name for each in client.had] == ["blog", "new"]
    assert watch.proxies() == [("blog", "gone", "the client left"), ("new", "gone", "the client left")]


def test_a_client_that_came_and_went_between_two_looks_is_listed(watch: Watch) -> None:
    control, _ = watch.log_in("blog")
    control.close()
    watch.wait_clients(0)
    assert [each[1] for each in watch.clients()] == [False]
    (client,) = watch.registry.clients.values()
    assert [each.name for each in client.had] == ["blog"]


def test_a_client_that_is_there_again_is_listed_once(watch: Watch) -> None:
    control, port = watch.log_in("blog")
    watch.clients()
    control.close()
    watch.wait_clients(0)
    watch.clients()
    again, _ = watch.log_in("blog", port)
    assert [each[1] for each in watch.clients()] == [True]
    assert watch.proxies() == [("blog", "open", "")]
    other, _ = watch.log_in("nas")  # another client does not hide it
    assert len(watch.clients()) == 2
    again.close()
    other.close()


def test_a_client_that_comes_back_before_its_end_was_noticed_keeps_its_id(watch: Watch) -> None:
    before, port = watch.log_in("blog", client_id="me")
    ((client, _, _),) = watch.clients()
    (proxy,) = watch.registry.proxies
    after, _ = watch.log_in("blog", port, client_id="me")
    watch.wait_clients(1)
    assert watch.clients() == [(client, True, "")]
    assert [*watch.registry.proxies] == [proxy]
    assert watch.registry.clients[client].address == address_of(after)
    assert watch.registry.clients[client].since == 1000.0
    after.close()
    watch.wait_clients(0)
    ((_, is_there, reason),) = watch.clients()
    assert (is_there, reason) == (False, "the peer closed the connection")
    before.close()


def test_a_proxy_that_the_client_has_not_asked_for_again_waits(watch: Watch) -> None:
    before, port = watch.log_in("blog", client_id="me")
    ask(before, "other")
    after, _ = watch.log_in("blog", port, client_id="me")
    watch.wait_clients(1)
    assert watch.proxies() == [("blog", "open", ""), ("other", "waiting", "")]
    before.close()
    after.close()


def test_a_proxy_that_was_cancelled_is_gone_and_not_what_its_client_had_in_the_end(watch: Watch) -> None:
    control, port = watch.log_in("blog")
    ask(control, "nas")
    watch.proxies()
    send(control.conn, ProxyCancel("blog", port))
    wait_until(lambda: len(watch.running.server.shared.ports) == 1, "the port is free")
    assert sorted(watch.proxies()) == [("blog", "gone", "cancelled"), ("nas", "open", "")]
    watch.clock.now_s += registry_module.JUST_S
    control.close()
    watch.wait_clients(0)
    watch.clients()
    (client,) = watch.registry.clients.values()
    assert [each.name for each in client.had] == ["nas"]


def test_ports_that_wait_for_their_client_are_shown_and_were_those_of_the_client(watch: Watch) -> None:
    control, port = watch.log_in("blog")
    watch.clients()
    send(control.conn, Heartbeat(leaving=True))
    wait_until(lambda: len(watch.running.server.control_ingress.kept), "the port waits")
    assert watch.proxies() == [("blog", "waiting", "")]
    (proxy,) = watch.registry.proxies.values()
    assert proxy.client is not None
    control.close()
    watch.wait_clients(0)
    watch.clients()
    (client,) = watch.registry.clients.values()
    assert [each.id for each in client.had] == [proxy.id]
    again, _ = watch.log_in("blog", port)
    assert watch.proxies() == [("blog", "open", "")]
    assert [*watch.registry.proxies.values()] == [proxy]
    again.close()


def test_what_an_administrator_ends_says_so(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(control_module, "DISMISS_S", 0.05)
    control, _ = watch.log_in("blog")
    watch.clients()
    (dismissed,) = watch.running.server.control_ingress.clients
    dismissed.dismiss()
    assert watch.proxies() == [("blog", "gone", BY_ADMINISTRATOR)]
    watch.wait_clients(0)
    wait_until(lambda: watch.clients()[0][1:] == (False, BY_ADMINISTRATOR), "the reason is known")
    (client,) = watch.registry.clients.values()
    assert [each.name for each in client.had] == ["blog"]
    control.close()


def test_dismissing_again_gives_a_client_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(control_module, "DISMISS_S", 0.1)
    with serving() as running:
        ours, _ = running.log_in("blog")
        (client,) = running.server.control_ingress.clients

        def is_gone_though_asked_again() -> bool:
            client.dismiss()
            return not running.server.control_ingress.clients

        wait_until(is_gone_though_asked_again, "the client is hung up on")
        while not (isinstance(message := recv(ours.conn), Heartbeat) and message.ended):
            pass
        ours.close()


def test_what_is_gone_is_listed_for_a_day_and_the_first_of_many_is_forgotten(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_GONE", 3)
    for number in range(5):
        control, _ = watch.log_in(f"proxy {number}")
        watch.clock.now_s = 2000.0 + number
        control.close()
        watch.wait_clients(0)
        watch.clients()
    assert [each[1] for each in watch.clients()] == [False] * 3
    assert [each[0] for each in watch.proxies()] == ["proxy 2", "proxy 3", "proxy 4"]
    watch.clock.now_s = 2002.0 + GONE_S
    assert len(watch.clients()) == 3
    watch.clock.now_s += 0.5
    assert (len(watch.clients()), len(watch.proxies())) == (2, 2)
    watch.clock.now_s += 5.0
    assert (watch.clients(), watch.proxies()) == ([], [])
    registry = watch.registry
    kept = [registry._gone_clients, registry._gone_proxies, registry._by_address, registry._reasons]
    assert kept == [{}] * 4
