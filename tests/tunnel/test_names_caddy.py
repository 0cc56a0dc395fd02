"""Names with HTTPS by a real Caddy: users come through Caddy, server and client to a service."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from gnar_lib.proto import ProxyReq, ProxyResp, to_frame
from tests.helpers.caddy import DOMAIN, IS_HERE, RealCaddy
from tests.helpers.client_file import proxy_table
from tests.helpers.harness import LOOPBACK, TOKEN, WAIT_S, Gnar, Tunnels, free_port
from tests.helpers.local_web import MIB, WebSocket, app, curl, host_of, websocket_echo
from tests.peers.plain import own_client, recv_message

pytestmark = pytest.mark.skipif(not IS_HERE, reason="caddy is not installed")

UPLOAD_MIB = 100
TUNNELS = 20


@dataclass
class Site:
    """What runs: the name `app` leads through Caddy to an app, and its path /ws to a WebSocket echo."""

    caddy: RealCaddy
    server: Gnar
    control: int  # the server's port for clients

    def curl(self, label: str, path: str, *arguments: object) -> str:
        """Return what curl gets by HTTPS, which trusts Caddy's own authority."""
        return curl("--cacert", self.caddy.root, *arguments, self.url(label, path))

    def url(self, label: str, path: str) -> str:
        return f"https://{host_of(label)}:{self.caddy.https}{path}"


@pytest.fixture(scope="module")
def site(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("caddy")
    with ExitStack() as stack:
        tunnels = stack.enter_context(Tunnels(gnar_pyz, folder / "run", ("-m",)))
        caddy = stack.enter_context(RealCaddy(folder / "caddy"))
        caddy.start(caddy.config())
        server, control = tunnels.server(
            *("--domain", DOMAIN, "--http-port", str(free_port()), "--caddy-api", caddy.api)
        )
        server.wait_log("leads users of")
        service, echo = stack.enter_context(app()), stack.enter_context(websocket_echo())
        file = folder / "client.toml"
        file.write_text(
            f'token = "{TOKEN}"\n'
            + "".join(
                proxy_table(name, port, 0, "http") + f'subdomain = "app"\npath = "{path}"\n'
                for name, port, path in (("app", service.port, "/"), ("echo", echo, "/ws"))
            )
        )
        client = tunnels.run("client", "-c", str(file), "-s", f"{LOOPBACK}:{control}")
        client.wait_log(f"open at https://app.{DOMAIN}", count=2)
        caddy.dial(f"app.{DOMAIN}").close()  # makes the certificate, and waits until it is valid
        yield Site(caddy, server, control)


def test_user_comes_by_https_and_the_service_is_told_who_it_is(site: Site) -> None:
    shown = site.curl("app", "/show", "-H", "X-Forwarded-For: 192.0.2.66")
    assert '"X-Forwarded-Proto": "https"' in shown
    assert f'"X-Forwarded-For": "{LOOPBACK}' in shown  # Caddy believes nobody
    assert "192.0.2.66" not in shown
    assert site.curl("app", "/chunked") == "one two three"


def test_tunnels_come_and_go_while_an_upload_and_a_websocket_stay(site: Site) -> None:
    loads = site.caddy.loads
    config = site.caddy.apps
    piece, digest = os.urandom(MIB), hashlib.sha256()
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "60", "--cacert", str(site.caddy.root)]
    with (
        WebSocket(site.caddy.https, "app", site.caddy.root) as user,
        Popen([*command, "-T", "-", site.url("app", "/upload")], stdin=PIPE, stdout=PIPE) as upload,
    ):
        assert upload.stdin is not None
        for number in range(TUNNELS):
            for _ in range(UPLOAD_MIB // TUNNELS):
                upload.stdin.write(piece)
                digest.update(piece)
            come_and_go(site, f"tunnel-{number}")
            assert user.ask(f"{number}") == f"{number}"
        shown, _ = upload.communicate(timeout=3 * WAIT_S)
    assert shown.decode() == f"{UPLOAD_MIB * MIB} {digest.hexdigest()}"
    assert (site.caddy.loads, site.caddy.apps) == (loads, config)


def come_and_go(site: Site, label: str) -> None:
    """Open a proxy with a name as a client does, and leave."""
    with closing(own_client(site.control)) as control:
        control.sendall(to_frame(ProxyReq(0, label, label, "http")))
        answer = recv_message(control)
        assert isinstance(answer, ProxyResp)
        assert (answer.status, answer.url) == ("success", f"https://{host_of(label)}")


def test_name_that_nobody_has_gets_no_certificate(site: Site) -> None:
    with pytest.raises(AssertionError, match="alert internal error"):
        site.curl("nobody", "/")


def test_caddy_is_killed_and_comes_back_without_what_gnar_has_told_it(site: Site) -> None:
    loads = site.caddy.loads
    site.caddy.kill()
    site.server.wait_log("WARN .*Caddy")  # said once, in words
    site.caddy.start(site.caddy.config())
    site.server.wait_log("is right again and leads users")
    assert '"path": "/again"' in site.curl("app", "/again")
    with WebSocket(site.caddy.https, "app", site.caddy.root) as user:
        assert user.ask("hello") == "hello"
    assert site.caddy.loads == 2 * loads  # gnar has written once, as it did at first
