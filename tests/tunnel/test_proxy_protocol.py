"""The addresses of users (PROXY protocol), told to services and by load balancers: nginx and haproxy."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from gnar_lib.transport.proxy_protocol import V2, encode, parse
from tests.helpers.balancers import STREAM_MODULE, haproxy, nginx
from tests.helpers.certificates import make_certificate
from tests.helpers.client_file import proxy_table
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Service,
    Tunnels,
    echo,
    free_port,
    read_all,
    wait_until,
)
from tests.helpers.local_web import DOMAIN, curl
from tests.helpers.udp import UdpService, user_of

pytestmark = pytest.mark.skipif(
    not (STREAM_MODULE.exists() and shutil.which("haproxy", path="/usr/sbin:/usr/bin")),
    reason="haproxy or nginx with its stream module is not installed",
)

USER = "127.0.0.3"  # from where users come
STRANGER = "127.0.0.4"  # who may not come to the echo


@dataclass
class Site:
    """What runs: a server that believes load balancers alone, a client, services, and load balancers."""

    ports: dict[str, int]
    log: Path  # of nginx, with a line for each request
    folder: Path


@pytest.fixture(scope="module")
def site(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("addresses")
    names = (
        *("nginx", "haproxy", "tcp-v1", "tcp-v2", "echo", "udp", "http", "https"),
        *("nginx to tcp", "haproxy v1 to tcp", "haproxy v2 to tcp", "haproxy to http", "haproxy to https"),
    )
    ports = {name: free_port() for name in names}
    balancers = {
        ports["haproxy v1 to tcp"]: (ports["tcp-v1"], "send-proxy"),
        ports["haproxy v2 to tcp"]: (ports["tcp-v2"], "send-proxy-v2 proxy-v2-options crc32c,unique-id"),
        ports["haproxy to http"]: (ports["http"], "send-proxy-v2"),
        ports["haproxy to https"]: (ports["https"], "send-proxy"),
    }
    with ExitStack() as stack:
        tunnels = stack.enter_context(Tunnels(gnar_pyz, folder / "run", ()))
        certificate = make_certificate(folder / "site.pem", f"*.{DOMAIN}")
        _, control = tunnels.server(
            *("--accept-proxy-protocol", "127.0.0.2/32", "--domain", DOMAIN, "--tls-cert", str(certificate)),
            *("--http-port", str(ports["http"]), "--https-port", str(ports["https"])),
            *("--trust-forwarded", "none"),
        )
        service = stack.enter_context(Service(echo))
        udp = stack.enter_context(UdpService())
        log = stack.enter_context(
            nginx(folder / "nginx", ports["nginx"], ports["nginx to tcp"], ports["tcp-v1"])
        )
        stack.enter_context(haproxy(folder / "haproxy", ports["haproxy"], balancers))
        file = folder / "client.toml"
        file.write_text(
            f'token = "{TOKEN}"\n'
            + proxy_table("tcp-v1", ports["nginx"], ports["tcp-v1"]) + 'proxy-protocol = "v1"\n'
            + proxy_table("tcp-v2", ports["nginx"], ports["tcp-v2"]) + 'proxy-protocol = "v2"\n'
            + proxy_table("a", ports["haproxy"], 0, "http") + 'proxy-protocol = "v2"\nsubdomain = "named"\n'
            + proxy_table("b", ports["nginx"], 0, "http") + 'proxy-protocol = "v1"\nsubdomain = "plain"\n'
            + proxy_table("udp", udp.port, ports["udp"], "udp") + 'proxy-protocol = "v2"\n'
            + proxy_table("echo", service.port, ports["echo"])
            + f'deny-from = ["{STRANGER}", "192.0.2.0/24"]\n'
        )  # fmt: skip
        client = tunnels.run("client", "-c", str(file), "-s", f"{LOOPBACK}:{control}")
        client.wait_log("open at", count=6)
        yield Site(ports, log, folder)


def ask(port: int, request: bytes, host: str = USER) -> tuple[int, bytes]:
    """Come from an address, ask, and return the port from which that was, and all that comes back."""
    with closing(socket.create_connection((LOOPBACK, port), WAIT_S, (host, 0))) as user:
        user.sendall(request)
        return int(user.getsockname()[1]), read_all(user)


GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("name", ["tcp-v1", "tcp-v2"])
def test_nginx_logs_the_address_of_the_user(site: Site, name: str) -> None:
    port, answer = ask(site.ports[name], GET)
    line = f"{USER} {port} {LOOPBACK} {site.ports[name]}"
    assert answer.decode().splitlines()[-1].strip() == line
    wait_until(lambda: line in site.log.read_text().splitlines(), "a line of the log")


@pytest.mark.parametrize("way", ["nginx to tcp", "haproxy v1 to tcp", "haproxy v2 to tcp"])
def test_service_behind_a_load_balancer_is_told_of_the_user_and_not_of_that(site: Site, way: str) -> None:
    port, answer = ask(site.ports[way], GET)
    assert answer.decode().splitlines()[-1].startswith(f"{USER} {port} {LOOPBACK} ")


def test_service_behind_a_name_is_told_of_the_user_and_of_the_name(site: Site) -> None:
    asked = GET.replace(b"Host: a", f"Host: named.{DOMAIN}".encode())
    for way in ("http", "haproxy to http"):
        port, answer = ask(site.ports[way], asked)
        shown = answer.decode().splitlines()[-1]
        assert shown == f"{USER}:{port} {LOOPBACK}:{site.ports['https']} named.{DOMAIN}"


def test_load_balancer_may_stand_in_front_of_https(site: Site) -> None:
    shown = curl(
        *("--interface", USER, "--cacert", site.folder / "site.crt"),
        f"https://plain.{DOMAIN}:{site.ports['haproxy to https']}/",
    )
    assert shown.split()[0] == shown.split()[-1] == USER  # by the PROXY protocol, and as X-Forwarded-For


def test_header_from_elsewhere_reaches_the_service_and_convinces_nobody(site: Site) -> None:
    spoofed = encode(V2, ("192.0.2.1", 1), (LOOPBACK, 1)) + b"hello"
    with closing(socket.create_connection((LOOPBACK, site.ports["echo"]), WAIT_S, (USER, 0))) as user:
        user.sendall(spoofed)
        assert user.recv(len(spoofed), socket.MSG_WAITALL) == spoofed
    with pytest.raises(ConnectionResetError):
        ask(site.ports["echo"], encode(V2, ("198.51.100.1", 1), (LOOPBACK, 1)), STRANGER)


def test_first_datagram_of_a_user_of_udp_has_a_header(site: Site) -> None:
    with user_of(site.ports["udp"]) as user:
        user.send(b"one")
        first = user.recv(1000)
        user.send(b"two")
        assert user.recv(1000) == b"two"
        header = parse(first)
        assert header is not None
        assert header.is_datagram
        assert (header.source, header.destination) == (user.getsockname(), (LOOPBACK, site.ports["udp"]))
        assert first[header.size :] == b"one"
