"""A page that the browser loads by name through a tunnel, with a WebSocket and an EventSource."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.harness import LOOPBACK, TOKEN, Tunnels, free_port
from tests.helpers.local_web import DOMAIN, EVENTS, app, host_of, websocket_echo
from tests.panel.browser import Browser

CLIENT = """
[[proxys]]
subdomain = "app"
local-port = {app}

[[proxys]]
subdomain = "app"
path = "/ws"
local-port = {echo}
"""


def test_page_has_a_websocket_and_an_event_source_by_name(
    multiplexed_tunnels: Tunnels, browser: Browser, tmp_path: Path
) -> None:
    with app() as service, websocket_echo() as echo:
        port, file = free_port(), tmp_path / "client.toml"
        _, control = multiplexed_tunnels.server("--domain", DOMAIN, "--http-port", str(port))
        file.write_text(CLIENT.format(app=service.port, echo=echo))
        server = ("-s", f"{LOOPBACK}:{control}")
        client = multiplexed_tunnels.run("client", "-c", str(file), *server, env={"GNAR_TOKEN": TOKEN})
        client.wait_log("open at", count=2)
        browser.open(f"http://{host_of('app')}:{port}/page")
        browser.wait("window.got.includes('socket hello')")
        for number in range(EVENTS):
            browser.wait("window.got.includes(arguments[0])", f"event {number}")
            service.go_on.release()
        assert browser.run("return document.title") == "by name"
        browser.leave()
