"""The server as a whole, in this process: what a reload changes, and which addresses are loopback."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gnar_lib.config import PortRanges, ServerConfig
from gnar_lib.config.values import is_loopback
from gnar_lib.errors import ListenError
from gnar_lib.events import Reloaded, Side
from gnar_lib.net import listen
from gnar_lib.server import serve
from gnar_lib.server.serve import run_server
from tests.helpers.events import hear
from tests.helpers.stoppers import FakeStopper

LOOPBACK = "127.0.0.1"
CONFIG = ServerConfig(port=0, bind=LOOPBACK, grace_s=3.0)


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> FakeStopper:
    made = FakeStopper()
    monkeypatch.setattr(serve, "Stopper", lambda: made)
    return made


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[Reloaded]:
    return hear(monkeypatch, Reloaded)


def run(*configs: ServerConfig) -> int:
    """Run a server that starts with one configuration and reloads another."""
    left = [*configs]
    return run_server(lambda: left.pop(0))


def test_users_have_the_grace_of_the_last_reload_to_finish(
    stopper: FakeStopper, reloads: list[Reloaded]
) -> None:
    assert run(CONFIG, replace(CONFIG, grace_s=7.0)) == 0
    assert stopper.grace_s == [7.0]
    assert stopper.is_closed
    assert reloads == [Reloaded(Side.SERVER, 0)]


@pytest.mark.parametrize("changed", [{"port": 9001}, {"bind": "::1"}, {"udp_bind": LOOPBACK}], ids=str)
def test_addresses_stay_in_a_reload_which_says_so(
    changed: dict[str, object], stopper: FakeStopper, reloads: list[Reloaded]
) -> None:
    assert run(CONFIG, replace(CONFIG, **changed)) == 0  # type: ignore[arg-type]  # of any field
    (key,) = changed
    assert reloads == [Reloaded(Side.SERVER, 0, unchanged=(key.replace("_", "-"),))]
    assert stopper.statuses[0] == stopper.statuses[1]


def test_reload_gives_new_rights_to_logins_to_come_and_keeps_the_addresses() -> None:
    server = serve.Server(CONFIG)
    ports = PortRanges("9001", ((9001, 9001),))
    server.reload(ServerConfig(port=9001, bind="::1", allow_ports=ports))
    assert server.shared.config == replace(CONFIG, allow_ports=ports, grace_s=ServerConfig().grace_s)


def test_status_says_what_there_is_in_numbers() -> None:
    assert serve.Server(CONFIG).status() == (
        "clients=0 proxies=0 users=0 users_total=0 bytes_up=0 bytes_down=0 "
        "udp_users=0 udp_dropped=0 waiting=0 conn_map=0 logins=0"
    )


def test_server_that_cannot_listen_ends_and_leaves_no_handler_of_signals(stopper: FakeStopper) -> None:
    other = listen(LOOPBACK, 0)
    with pytest.raises(ListenError):
        run(replace(CONFIG, port=other.port))
    assert stopper.is_closed
    other.close()


def test_signal_during_the_start_ends_the_server(
    stopper: FakeStopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopper, "call_until_stopped", lambda _: None)
    assert run(CONFIG) == 0
    assert stopper.is_closed
    assert stopper.grace_s == []


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("example.org", False),
    ],
)
def test_loopback_is_what_others_cannot_reach(bind: str, expected: bool) -> None:
    assert is_loopback(bind) is expected
