"""A real Caddy that gnar keeps right: HTTPS to the web port, whatever happens to Caddy or is done to it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from gnar_lib.server.caddy import keeper as keeper_module
from gnar_lib.server.caddy.plan import Made
from tests.helpers.caddy import DOMAIN, IS_HERE, Json, Kept, RealCaddy, WebPort, respond, wait_ready
from tests.helpers.harness import LOOPBACK, free_port, is_open, read_until
from tests.helpers.loop import wait_until

pytestmark = pytest.mark.skipif(not IS_HERE, reason="caddy is not installed")

NAME = f"blog.{DOMAIN}"
UPGRADE = f"GET /live HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n".encode()


@pytest.fixture
def web() -> Iterator[WebPort]:
    with WebPort(NAME) as port:
        yield port


@pytest.fixture
def caddy(tmp_path: Path) -> Iterator[RealCaddy]:
    with RealCaddy(tmp_path / "caddy") as real:
        yield real


def upgraded(caddy: RealCaddy) -> ssl.SSLSocket:
    """Return a connection that goes on as bytes, as that of a WebSocket."""
    sock = caddy.dial(NAME)
    sock.sendall(UPGRADE)
    assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    return sock


def is_echoed(sock: socket.socket) -> bool:
    sock.sendall(b"still there?")
    return sock.recv(100) == b"still there?"


def test_users_reach_names_by_https_and_unknown_names_get_no_certificate(
    caddy: RealCaddy, web: WebPort
) -> None:
    others = [respond("theirs", f"www.{DOMAIN}", terminal=True), respond("the rest")]
    caddy.start(
        caddy.config(others, tls={"automation": {"policies": [{"issuers": [{"module": "internal"}]}]}})
    )
    with Kept(caddy, web) as keeper:
        wait_ready(keeper, caddy)
        status, body = caddy.get(NAME, "/page")
        assert (status, b'"path": "/page"' in body, b'"x-forwarded-proto": "https"' in body) == (
            200,
            True,
            True,
        )
        wait_until(lambda: caddy.is_certified(f"www.{DOMAIN}"), "Caddy has obtained their certificate")
        assert caddy.get(f"www.{DOMAIN}") == (200, b"theirs")
        with pytest.raises(ssl.SSLError):
            caddy.dial(f"nobody.{DOMAIN}")
        assert web.asked == [NAME, f"nobody.{DOMAIN}"]
    keeper.remove()
    assert caddy.routes == others
    assert caddy.apps["tls"] == {"automation": {"policies": [{"issuers": [{"module": "internal"}]}]}}


def test_a_caddy_that_comes_back_empty_leads_users_to_gnar_again(
    caddy: RealCaddy, web: WebPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "FIRST_RETRY_S", 0.1)
    monkeypatch.setattr(keeper_module, "LOOK_PAUSE_S", 0.1)
    caddy.start(caddy.config())
    with Kept(caddy, web) as keeper:
        wait_ready(keeper, caddy)
        caddy.kill()
        wait_until(lambda: "cannot be reached" in keeper.trouble, "gnar sees that Caddy has gone")
        assert keeper.is_ready
        caddy.start(caddy.empty)
        wait_ready(keeper, caddy)
        wait_until(lambda: not keeper.trouble, "gnar sees that Caddy is back")
        assert caddy.get(NAME)[0] == 200
        assert caddy.apps["http"]["servers"]["srv0"]["@id"] == "gnar-server"
    keeper.remove()
    assert caddy.ask("GET", "/config/") == caddy.empty


def test_a_connection_that_is_open_is_not_cut_while_names_come_and_go(caddy: RealCaddy, web: WebPort) -> None:
    caddy.start(caddy.config())
    with Kept(caddy, web) as keeper:
        wait_ready(keeper, caddy)
        sock = upgraded(caddy)
        wait_until(lambda: caddy.log[-1]["msg"] != "autosaved config", "Caddy is at rest")
        loads = caddy.loads
        for name in [f"a{number}.{DOMAIN}" for number in range(20)]:
            web.names.add(name)
            assert caddy.get(name)[0] == 200
            web.names.remove(name)
        assert is_echoed(sock)
        assert caddy.loads == loads


def test_what_others_change_is_seen_at_once_and_kept(
    caddy: RealCaddy, web: WebPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_PAUSE_S", 0.1)
    caddy.start(caddy.config([respond("one", "one.example.org", terminal=True)]))
    with Kept(caddy, web) as keeper:
        wait_ready(keeper, caddy)
        others = [respond("two", f"two.{DOMAIN}", terminal=True), respond("the rest")]
        caddy.ask("POST", "/load", caddy.config(others))
        wait_ready(keeper, caddy)  # long before the minute is over after which gnar looks again anyway
        assert [route.get("@id", "theirs") for route in caddy.routes] == ["theirs", "gnar", "theirs"]
        behind = respond("three", f"three.{DOMAIN}", terminal=True)
        caddy.ask("PUT", "/config/apps/http/servers/srv0/routes/2", behind)
        wait_until(lambda: caddy.routes.index(behind) == 1, "gnar's route is behind the new one")
        assert caddy.get(f"three.{DOMAIN}") == (200, b"three")
        assert caddy.get(f"two.{DOMAIN}") == (200, b"two")


def test_an_old_connection_outlives_looks_of_gnar_at_a_caddy_that_is_right(
    caddy: RealCaddy, web: WebPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    caddy.start(caddy.config())
    with Kept(caddy, web) as keeper:
        wait_ready(keeper, caddy)
    sock = upgraded(caddy)
    monkeypatch.setattr(keeper_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(keeper_module, "LOOK_PAUSE_S", 0.0)
    loads = caddy.loads
    with Kept(caddy, web) as keeper:
        looks = len(caddy.log)
        wait_until(lambda: len(caddy.log) > looks + 3, "gnar has looked several times")
        assert keeper.is_ready
    assert caddy.loads == loads
    assert is_echoed(sock)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({}, "Caddy has no server 'web': give --caddy-srv-name one that it has ('srv0')"),
        ({"automatic_https": {"disable": True}}, "Caddy's server 'srv0' has automatic HTTPS off"),
    ],
    ids=["no server", "no automatic HTTPS"],
)
def test_what_is_wrong_is_said_once_and_that_it_is_right_again(
    caddy: RealCaddy,
    web: WebPort,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    change: Json,
    trouble: str,
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(keeper_module, "LOOK_PAUSE_S", 0.0)
    config = caddy.config([respond("theirs", "www.example.org")])
    wrong = caddy.config([respond("theirs", "www.example.org")])
    wrong["apps"]["http"]["servers"]["srv0"].update(change)
    srv_name = "srv0" if change else "web"
    if not change:
        servers = config["apps"]["http"]["servers"]
        servers["web"] = {**servers["srv0"], "listen": [f"{LOOPBACK}:{free_port()}"]}
    caddy.start(wrong)
    caplog.set_level("INFO", "gnar")
    with Kept(caddy, web, srv_name=srv_name) as keeper:
        wait_until(lambda: keeper.trouble.startswith(trouble), "gnar says what is wrong")
        looks = len(caddy.log)
        wait_until(lambda: len(caddy.log) > looks + 3, "gnar has looked several times")
        assert not keeper.is_ready
        caddy.ask("POST", "/load", config)
        wait_until(lambda: keeper.is_ready and not keeper.trouble, "gnar says that it is right")
    lines = [record.getMessage() for record in caplog.records if record.module == "keeper"]
    assert len(lines) == 2
    assert lines[0].startswith(trouble)
    assert lines[1].startswith(f"Caddy ({caddy.api}) is right again and leads users of *.{DOMAIN}")


def test_a_configuration_that_caddy_does_not_take_is_said_in_caddys_words(
    caddy: RealCaddy, web: WebPort
) -> None:
    caddy.start(caddy.empty)
    with Kept(caddy, web, made=Made(LOOPBACK, web.port, caddy.http)) as keeper:
        wait_until(lambda: keeper.trouble, "Caddy has refused")
        assert keeper.trouble.startswith("Caddy does not take the configuration: ")
        assert "address already in use" in keeper.trouble
        assert not keeper.is_ready
    assert caddy.apps == caddy.empty["apps"]


def test_two_that_want_the_same_route_give_way(
    caddy: RealCaddy, web: WebPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_PAUSE_S", 0.0)
    caddy.start(caddy.config())
    with Kept(caddy, web) as one, Kept(caddy, web, domain="other.localhost") as other:
        wait_until(lambda: "again and again" in one.trouble + other.trouble, "one of them says so")
        loads = caddy.loads
        wait_until(lambda: one.trouble and other.trouble, "both say so")
        assert caddy.loads < loads + 2 * keeper_module.MAX_UNDONE


def test_an_api_at_a_unix_socket_and_one_that_wants_an_origin_are_spoken_to(
    tmp_path: Path, caddy: RealCaddy, web: WebPort
) -> None:
    config = caddy.config()
    config["admin"]["enforce_origin"] = True
    caddy.start(config)
    with Kept(caddy, web) as keeper:
        wait_until(lambda: keeper.is_ready, "gnar's route is there")
    caddy.kill()
    path = tmp_path / "admin.sock"
    config["admin"] = {"listen": f"unix/{path}"}
    caddy.start(config, path.exists)
    caddy.api = f"unix/{path}"
    with Kept(caddy, web) as keeper:
        wait_until(lambda: keeper.is_ready, "gnar's route is there")
        assert caddy.get(NAME)[0] == 200
    keeper.remove()


def test_remove_is_bounded_and_raises_nothing(caddy: RealCaddy, web: WebPort) -> None:
    caddy.start(caddy.config())
    with Kept(caddy, web) as keeper, Kept(caddy, web, removes=False) as leaves:
        wait_ready(keeper, caddy)
        leaves.remove()
        assert [route["@id"] for route in caddy.routes] == ["gnar"]
        keeper.remove()
        assert caddy.routes == []
    caddy.kill()
    assert not is_open(caddy.admin)
    keeper.remove()
