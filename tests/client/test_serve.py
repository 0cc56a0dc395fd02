"""A client in this process with a real server: reloads, refusals, and what is shown to a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gnar_lib import events, logger
from gnar_lib.client import serve
from gnar_lib.client.link import Link
from gnar_lib.client.live import Board
from gnar_lib.client.serve import Client, run_client
from gnar_lib.config import Address, ClientConfig, PortRanges, ProxyConfig, Secret, ServerConfig
from gnar_lib.config.model import ProxyServer
from gnar_lib.errors import CertificateError, DialError, GnarError
from gnar_lib.events import ProxyOpened, Reloaded, Side
from gnar_lib.net import deadline
from gnar_lib.server.serve import Server
from tests.helpers.harness import free_port
from tests.helpers.stoppers import FakeStopper

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 10.0
TOKEN = Secret("s3cret")
BLOG = ProxyConfig(proxy_name="blog", local_port=1)


@dataclass
class Running:
    """A server in this process, and the configuration of a client of that server."""

    server: Server
    config: ClientConfig


@pytest.fixture
def running() -> Iterator[Running]:
    allowed = free_port()
    ports = PortRanges(f"{allowed}", ((allowed, allowed),))
    server = Server(ServerConfig(port=0, bind=LOOPBACK, token=TOKEN, allow_ports=ports))
    address = Address(LOOPBACK, server.start())
    proxies = (replace(BLOG, remote_port=allowed),)
    with deadline(TIMEOUT_S, "the test"):
        yield Running(server, ClientConfig(server=address, token=TOKEN, proxies=proxies, grace_s=3.0))
    server.stop_listening()
    server.close()
    assert server.shared.crew.wait_empty(TIMEOUT_S)


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> FakeStopper:
    made = FakeStopper()
    monkeypatch.setattr(serve, "Stopper", lambda: made)
    return made


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    monkeypatch.setattr(events, "_listeners", {})
    got: list[events.Event] = []
    events.subscribe(Reloaded, got.append)

    def on_opened(event: ProxyOpened) -> None:
        if event.side is Side.CLIENT:
            got.append(event)

    events.subscribe(ProxyOpened, on_opened)
    return got


def run(*configs: ClientConfig) -> int:
    """Run a client that starts with one configuration and reloads another."""
    left = [*configs]
    return run_client(lambda: left.pop(0))


def test_users_have_the_grace_of_the_last_reload_to_finish(
    running: Running, stopper: FakeStopper, said: list[events.Event]
) -> None:
    config = running.config
    assert run(config, replace(config, grace_s=7.0)) == 0
    assert stopper.grace_s == [7.0]
    assert stopper.is_closed
    (proxy,) = config.proxies
    where = f"{LOOPBACK}:{proxy.remote_port}"
    peer = (LOOPBACK, config.server.port)
    assert said == [
        ProxyOpened(Side.CLIENT, "blog", "tcp", proxy.remote_port, peer, where),
        Reloaded(Side.CLIENT, 0),
    ]


def test_address_of_the_server_stays_in_a_reload_which_says_so(
    running: Running, stopper: FakeStopper, said: list[events.Event]
) -> None:
    assert run(running.config, replace(running.config, server=Address(LOOPBACK, 1))) == 0
    assert said[-1] == Reloaded(Side.CLIENT, 0, unchanged=("server-addr",))
    assert "links=1 proxies=1" in stopper.statuses[1]


def test_settings_of_the_login_change_at_the_next_one_and_a_reload_says_so(
    running: Running, stopper: FakeStopper, said: list[events.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(running.config, token=Secret("0ther"), auth="md5", multiplex=True, heartbeat=7)
    clients: list[Client] = []

    def make_client(config: ClientConfig, stop: Callable[[], None]) -> Client:
        clients.append(Client(config, stop))
        return clients[0]

    monkeypatch.setattr(serve, "Client", make_client)
    assert run(running.config, changed) == 0
    assert said[-1] == Reloaded(Side.CLIENT, 0, at_login=("token", "auth", "multiplex", "heartbeat"))
    assert "links=1 proxies=1" in stopper.statuses[1]
    assert clients[0].shared.config == changed


def test_wrong_token_ends_the_client_at_once(running: Running, stopper: FakeStopper) -> None:
    config = replace(running.config, token=Secret("0ther"))
    assert run(config, config) == 1
    assert stopper.grace_s == [0]


def test_client_without_an_allowed_proxy_ends(running: Running, stopper: FakeStopper) -> None:
    config = replace(running.config, proxies=(replace(BLOG, remote_port=1),))
    assert run(config, config) == 1
    assert stopper.grace_s == [0]


def test_refused_proxy_is_given_up_the_others_are_shown(
    running: Running, stopper: FakeStopper, capsys: pytest.CaptureFixture[str]
) -> None:
    config = running.config
    both = replace(config, proxies=(replace(BLOG, proxy_name="refused", remote_port=1), *config.proxies))
    assert run(both, config) == 0
    assert "proxies=1" in stopper.statuses[0]
    logger.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [f"  blog  {LOOPBACK}:{config.proxies[0].remote_port}  ->  {LOOPBACK}:1"]


def test_defect_of_a_link_ends_the_client(
    running: Running, stopper: FakeStopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Link, "run", lambda _: 1 / 0)
    assert run(running.config, running.config) == 1
    assert stopper.is_closed


def test_reload_starts_new_proxies_ends_removed_ones_and_leaves_the_rest(
    running: Running, stopper: FakeStopper
) -> None:
    running.server.reload(replace(running.server.shared.config, allow_ports=PortRanges()))
    kept, old, new = (replace(BLOG, proxy_name=name, remote_port=0) for name in ("kept", "old", "new"))
    other = replace(new, proxy_name="other", proxy_type="udp")
    before, after = (replace(running.config, proxies=each) for each in ((kept, old), (kept, new, other)))
    assert run(before, after) == 0
    assert "links=1 proxies=2" in stopper.statuses[0]
    assert "links=1 proxies=3" in stopper.statuses[1]


def test_reload_that_replaces_the_only_proxy_keeps_the_link(running: Running, stopper: FakeStopper) -> None:
    config = running.config
    assert run(config, replace(config, proxies=(replace(config.proxies[0], proxy_name="other"),))) == 0
    assert "links=1 proxies=1" in stopper.statuses[1]


def test_client_that_cannot_start_leaves_no_handler_of_signals(
    running: Running, stopper: FakeStopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "start", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(running.config)
    assert stopper.is_closed


def test_location_of_a_proxy_is_known_while_it_is_open(running: Running) -> None:
    client = Client(running.config, lambda: None)
    assert client.location("blog") == ""
    client.start()
    client.answered.wait()
    assert client.location("blog") == f"{LOOPBACK}:{running.config.proxies[0].remote_port}"
    assert client.location("other") == ""
    client.close()
    assert client.shared.crew.wait_empty(TIMEOUT_S)
    assert client.shared.users.wait_empty(TIMEOUT_S)
    assert client.location("blog") == ""


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("fingerprint", ("0" * 64,), CertificateError),
        ("tls", "off", None),
        ("proxy", ProxyServer("http", LOOPBACK, 1), DialError),
    ],
)
def test_how_the_server_is_reached_changes_with_the_next_login(
    running: Running, said: list[events.Event], key: str, value: object, error: type[GnarError] | None
) -> None:
    client = Client(running.config, lambda: None)
    client.start()
    client.answered.wait()
    client.reload(replace(running.config, **{key: value}))  # type: ignore[arg-type]
    assert said[-1] == Reloaded(Side.CLIENT, 0, at_login=(key,))
    if error is None:
        reached = client.shared.way.dial()
        assert not reached.certificate
        reached.conn.close()
    else:
        with pytest.raises(error):
            client.shared.way.dial()
    client.close()
    assert client.shared.crew.wait_empty(TIMEOUT_S)


def test_the_inspector_looks_at_proxies_of_a_reload_and_its_settings_stay(
    running: Running, said: list[events.Event], tmp_path: Path
) -> None:
    page = Address(LOOPBACK, free_port())
    before = replace(running.config, inspect=page, inspect_log=str(tmp_path / "requests.log"))
    client = Client(before, lambda: None)
    client.open_inspector()
    client.start()
    client.answered.wait()
    other = replace(running.config.proxies[0], proxy_name="other")
    client.reload(replace(running.config, proxies=(other,), inspect_bodies=0))
    (proxy,) = client._proxies.values()
    assert proxy.inspector is not None
    unchanged = ("inspect", "inspect-bodies", "inspect-log")
    assert said[-1] == Reloaded(Side.CLIENT, 1, unchanged=unchanged)
    board = Board(page, client.shared.meter, client.inspector_url)
    view = client.view(board, 0, 1)
    assert [fact.text for fact in view.facts if fact.label == "Requests"] == [f"http://{page}/"]
    client.close()
    assert client.shared.crew.wait_empty(TIMEOUT_S)


def test_without_an_inspector_users_conns_are_not_tapped(running: Running) -> None:
    client = Client(running.config, lambda: None)
    client.open_inspector()
    assert [proxy.inspector for proxy in client._proxies.values()] == [None]
    assert client.inspector_url == ""
