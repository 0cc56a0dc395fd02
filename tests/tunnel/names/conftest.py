"""A server with names that the tests of this folder share, and two clients with services behind names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.certificates import make_certificate
from tests.helpers.harness import LOOPBACK, WAIT_S, Gnar, Tunnels, free_port, is_open, wait_until
from tests.helpers.local_web import DOMAIN, App, app, websocket_echo
from tests.helpers.nginx import nginx

WAYS = ("plain", "mux")  # how the clients carry their users


@dataclass
class Names:
    """What runs; each label ends with the way of its client, such as `app-mux`."""

    tunnels: Tunnels
    folder: Path
    server: Gnar
    control: int  # the ports of the server
    http: int
    https: int
    app: App
    clients: dict[str, Gnar]

    def url(self, label: str, path: str = "/") -> str:
        return f"http://{label}.{DOMAIN}:{self.http}{path}"

    def client(self, label: str, *args: str) -> Gnar:
        """Start one more client, whose service is the app, and wait until it has the name."""
        wanted = ("-l", str(self.app.port), "-y", "http", "-d", label, *args)
        client, _ = self.tunnels.client(self.control, *wanted, wait=False)
        client.wait_log("open at")
        return client


@pytest.fixture(scope="session")
def _names(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    folder = tmp_path_factory.mktemp("names")
    with ExitStack() as stack:
        tunnels = stack.enter_context(Tunnels(gnar_pyz, folder / "run", ()))
        ports = _services(folder, stack)
        for name in ("wild", "special"):
            make_certificate(folder / f"{name}.pem", f"{'*' if name == 'wild' else name}.{DOMAIN}")
        http, https = free_port(), free_port()
        server, control = tunnels.server(
            *("--domain", DOMAIN, "--http-port", str(http), "--https-port", str(https)),
            *("--tls-cert", f"{folder}/wild.pem,{folder}/special.pem", "--hsts", "60"),
        )
        clients = {}
        for way in WAYS:
            file = folder / f"{way}.toml"
            file.write_text(_client_file(ports, way))
            clients[way] = tunnels.run("client", "-c", str(file), "-s", f"{LOOPBACK}:{control}")
        service = ports["app"]
        names = Names(tunnels, folder, server, control, http, https, service, clients)
        for way in WAYS:
            names.clients[way].wait_log("open at", count=len(_proxies(ports, way)))
        yield names


def _services(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Start the local services, and return their ports, and the app itself."""
    ports: dict[str, Any] = {name: free_port() for name in ("nginx", "secure", "files")}
    site = folder / "site"
    site.mkdir()
    (site / "index.html").write_text("a page")
    (site / "large").write_bytes(bytes(range(256)) * (1 << 14))
    certificate = make_certificate(folder / "secure.pem", f"*.{DOMAIN}")
    stack.enter_context(nginx(site, ports["nginx"], tls_port=ports["secure"], certificate=certificate))
    ports["app"] = stack.enter_context(app())
    ports["ws"] = stack.enter_context(websocket_echo())
    argv = [sys.executable, "-m", "http.server", "--bind", LOOPBACK, ports["files"], "--directory", site]
    files = subprocess.Popen([*map(str, argv)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(files.wait, WAIT_S)
    stack.callback(files.kill)
    wait_until(lambda: is_open(ports["files"]), "python -m http.server listens")
    return ports


def _proxies(ports: dict[str, Any], way: str) -> list[str]:
    """Return the tables of the proxies of one client."""
    local = {name: getattr(port, "port", port) for name, port in ports.items()}
    wanted = [
        ("nginx", local["nginx"], ""),
        ("files", local["files"], ""),
        ("app", local["app"], ""),
        ("app", local["ws"], 'path = "/ws"'),
        ("secure", local["secure"], 'proxy-type = "https"'),
        ("slow", local["nginx"], 'speed-limit = "2mb"'),
        ("one", local["app"], "max-users = 1"),
    ]
    return [
        f'[[proxys]]\nsubdomain = "{name}-{way}"\nlocal-port = {port}\n'
        f'proxy-name = "{name} {number}"\n{more}\n'
        for number, (name, port, more) in enumerate(wanted)
    ]


def _client_file(ports: dict[str, Any], way: str) -> str:
    multiplex = f"multiplex = {str(way == 'mux').lower()}\n"
    return f'token = "a token of the tests"\n{multiplex}' + "\n".join(_proxies(ports, way))


@pytest.fixture
def names(_names: Names, request: pytest.FixtureRequest) -> Iterator[Names]:
    """Return what runs; if the test fails, the logs of the server and the two clients are shown."""
    failures = request.session.testsfailed
    yield _names
    if request.session.testsfailed > failures:
        for process in (_names.server, *_names.clients.values()):
            print(f"---- {' '.join(process.args)} ----\n{process.log}")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Return how the client carries its users."""
    return str(request.param)
