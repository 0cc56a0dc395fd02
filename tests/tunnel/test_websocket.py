"""Clients that come by WebSocket: to a server itself, and through a real nginx, Caddy and haproxy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.client.way import Way
from gnar_lib.config import ClientConfig, Secret
from gnar_lib.config.transport import server_address
from gnar_lib.errors import CertificateError, GnarError
from gnar_lib.proto import ProxyReq
from gnar_lib.transport.x509 import fingerprint_of
from tests.helpers import fronts
from tests.helpers.certificates import make_certificate
from tests.helpers.client_file import proxy_table
from tests.helpers.conns import MIB
from tests.helpers.fronts import Front, nginx_location
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Forwarder,
    Gnar,
    Service,
    Tunnels,
    ask,
    connections_to,
    echo,
    exchange_both_ways,
    free_port,
)
from tests.helpers.udp import UdpService, ask_udp
from tests.helpers.websocket import HEAD_END, frames_in

pytestmark = pytest.mark.skipif(not fronts.ARE_HERE, reason="nginx, caddy or haproxy is not installed")

BULK = 4 * MIB
HASTY_S = 3  # after which one path of nginx cuts a connection on which nothing has come from the server
# What nginx answers in place of other programs, by paths.
ANSWERS = {
    "/401": "return 401;",
    "/403": "return 403;",
    "/426": "return 426;",
    "/503": "return 503;",
    "/504": "return 504;",
    "/moved": "return 302 https://portal.example/;",
    "/page": "default_type text/html; return 200 '<html></html>';",
}
FAILED = "TLS with the server has failed: {}: TLS: unexpected message"
LOST = "something in between lets no WebSocket through"
AWAY = "what stands in front of the gnar server does not reach it"
NOWHERE = "is the path that of the server's --ws-path?"


class Recorder(Forwarder):
    """A path to a server on which everything that passes is recorded."""

    def __init__(self, target: int) -> None:
        self._streams: list[bytearray] = []  # of all connections, one for each direction
        super().__init__(target)

    def _copy(self, src: socket.socket, dst: socket.socket) -> None:
        self._streams.append(stream := bytearray())
        with contextlib.suppress(OSError):
            while data := src.recv(65536):
                stream += data
                dst.sendall(data)
            dst.shutdown(socket.SHUT_WR)

    def take_messages(self) -> bytes:
        """Return what the WebSockets since the last call have carried, both ways, without their masks."""
        streams, self._streams = self._streams, []
        parts = [bytes(stream).partition(HEAD_END) for stream in streams]
        assert all(b"Upgrade: websocket" in head for head, _, _ in parts)
        return b"".join(payload for _, _, frames in parts for _, _, payload in frames_in(frames))


@dataclass
class Site:
    """What runs: a server, programs in front of the server, and services."""

    tunnels: Tunnels
    folder: Path
    server: Gnar
    port: int
    fronts: dict[str, Front]
    recorder: Recorder
    service: Service
    udp: UdpService
    certificate: Path  # of nginx and haproxy

    def url(self, way: str) -> str:
        """Return where a client comes: to the server itself by "ws" or "wss", or to a program in front."""
        return self.fronts[way].url() if way in self.fronts else f"{way}://{LOOPBACK}:{self.port}"

    def run(self, url: str, *args: str, trusts: bool = False) -> Gnar:
        """Start a client; `trusts`: the client trusts the certificate of nginx and haproxy."""
        env = {"GNAR_TOKEN": TOKEN} | ({"SSL_CERT_FILE": str(self.certificate)} if trusts else {})
        return self.tunnels.run("client", "-s", url, *args, env=env)

    def file(self, tcp: int) -> str:
        """Return the path of a file with two proxies; the one of TCP is for a service at a port."""
        file = self.folder / f"{tcp}.toml"
        file.write_text(proxy_table("by-tcp", tcp, 0) + proxy_table("by-udp", self.udp.port, 0, "udp"))
        return str(file)


def port_of(client: Gnar, kind: str = "") -> int:
    """Return the port at which a proxy of a client is open."""
    return int(client.wait_log(rf"{kind}.*open at \S+:(\d+)")[1])


@pytest.fixture(scope="module")
def site(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("websocket")
    certificate = make_certificate(folder / "site.pem", fronts.NAME)
    with ExitStack() as stack:
        tunnels = stack.enter_context(Tunnels(gnar_pyz, folder / "run", ()))
        server, port = tunnels.server("--heartbeat", "1")
        recorder = Recorder(port)
        pages = ANSWERS | {"/http10": f"proxy_pass http://{LOOPBACK}:{port}{fronts.PATH};"}
        more = "".join(f"location = {path} {{ {what} }}" for path, what in pages.items())
        more += nginx_location(recorder.port, "/recorded") + nginx_location(free_port(), "/away")
        more += nginx_location(port, "/hasty", f"proxy_read_timeout {HASTY_S}s;")
        programs = {
            "nginx": fronts.nginx(folder / "nginx", port, certificate, more),
            "caddy": fronts.caddy(folder / "caddy", port),
            "haproxy": fronts.haproxy(folder / "haproxy", port, certificate),
        }
        for program in programs.values():
            stack.callback(program.stop)
            program.start()
        service, udp = stack.enter_context(Service(echo)), stack.enter_context(UdpService())
        yield Site(tunnels, folder, server, port, programs, recorder, service, udp, certificate)


@pytest.mark.parametrize("way", ["ws", "wss", "nginx", "caddy", "haproxy"])
def test_users_of_tcp_and_udp_are_served_by_one_connection(site: Site, way: str) -> None:
    with site.run(site.url(way), "-c", site.file(site.service.port)) as client:
        data = os.urandom(MIB) * (BULK // MIB)
        assert exchange_both_ways(port_of(client, "TCP"), data) == hashlib.sha256(data).hexdigest()
        assert ask_udp(port_of(client, "UDP"), b"hello") == b"hello"
        assert connections_to(client.pid, site.fronts[way].port if way in site.fronts else site.port) == 1
        assert len(client.log.splitlines()) == 3


@pytest.mark.parametrize("tls", ["on", "off"])
def test_program_in_front_reads_nothing_unless_tls_inside_is_off(site: Site, tls: str) -> None:
    said = f"what nobody may read with TLS {tls}".encode()
    url = site.fronts["nginx"].url("/recorded")
    with (
        Service(lambda conn: conn.sendall(conn.recv(100).upper())) as service,
        site.run(url, "-c", site.file(service.port), "--tls", tls, trusts=True) as client,
    ):
        assert ask(port_of(client, "TCP"), said) == said.upper()
        assert ask_udp(port_of(client, "UDP"), said[::-1]) == said[::-1]
        read = site.recorder.take_messages()
    assert TOKEN.encode() not in read
    secrets = {said, said.upper(), said[::-1], b"by-tcp"}
    assert {each for each in secrets if each in read} == (secrets if tls == "off" else set())


def test_each_end_knows_what_proves_the_server_behind_a_program_that_ends_tls(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proof(*pins: str, tls: str = "on") -> str:
        config = ClientConfig(
            *(server_address(site.url("nginx")), ()),
            token=Secret(TOKEN),
            multiplex=True,
            tls=tls,
            fingerprint=pins,
        )
        control = ControlConn.dial(config, "a client")
        try:
            control.log_in(ProxyReq(0, "proven", "proven", "tcp"))
            return control.proof
        finally:
            control.abort()

    own = fingerprint_of(site.certificate.read_bytes())
    assert proof() == "the token"
    with pytest.raises(CertificateError, match="somebody stands in between: the server shows no certificate"):
        proof(tls="off")
    with pytest.raises(CertificateError, match="is not that of --fingerprint"):
        proof(own)
    assert proof(own, tls="off") == "its fingerprint"
    monkeypatch.setenv("SSL_CERT_FILE", str(site.certificate))
    assert proof() == "the token"
    assert proof(tls="off") == "an authority that this system trusts"


def test_client_is_back_with_its_ports_when_nginx_and_the_server_have_restarted(site: Site) -> None:
    nginx = site.fronts["nginx"]
    with site.run(nginx.url(), "-c", site.file(site.service.port)) as client:
        ports = [port_of(client, kind) for kind in ("TCP", "UDP")]
        nginx.stop()
        client.wait_log("lost the server: .*; trying again in")
        nginx.start()
        client.wait_log("open at", count=4)
        site.server.kill()
        client.wait_log("/gnar answers 502 Bad Gateway: .*; trying again in")
        site.server, _ = site.tunnels.server("--heartbeat", "1", port=site.port)
        client.wait_log("open at", count=6)
        assert [port_of(client, kind) for kind in ("TCP", "UDP")] == ports
        assert ask(ports[0]) == b"ping"
        assert ask_udp(ports[1]) == b"ping"


@pytest.mark.waits
def test_heartbeats_keep_a_connection_that_is_cut_when_it_is_idle(site: Site) -> None:
    url, service = site.fronts["nginx"].url("/hasty"), str(site.service.port)
    with site.run(url, service, "--heartbeat", "1") as lively:
        port = port_of(lively)
        with site.run(url, service, "--heartbeat", "60") as idle:
            idle.wait_log("lost the server")
        assert ask(port) == b"ping"
        assert "WARN" not in lively.log


def test_what_answers_in_place_of_a_server_is_told_in_one_line(site: Site) -> None:
    nginx, caddy, haproxy = (site.fronts[each] for each in ("nginx", "caddy", "haproxy"))
    told = {
        nginx.url("/401"): "answers 401 Unauthorized: something in between wants a login",
        nginx.url("/403"): "answers 403 Forbidden: something in between does not allow that",
        nginx.url("/426"): f"answers 426 Upgrade Required: {LOST}",
        nginx.url("/http10"): f"answers 426 Upgrade Required: {LOST}",
        nginx.url("/503"): f"answers 503 Service Unavailable: {AWAY}",
        nginx.url("/504"): f"answers 504 Gateway Timeout: {AWAY}",
        nginx.url("/away"): f"answers 502 Bad Gateway: {AWAY}",
        nginx.url("/moved"): "answers 302 Found, and points to https://portal.example/",
        nginx.url("/page"): "answers 200 OK, with a page for browsers: no gnar server is at this path",
        nginx.url("/nowhere"): f"answers 404 Not Found: {NOWHERE}",
        caddy.url("/nowhere"): "answers 200 OK, and begins no WebSocket",
        haproxy.url("/nowhere"): f"answers 503 Service Unavailable: {AWAY}",
        site.url("wss") + "/nowhere": f"answers 404 Not Found: {NOWHERE}",
        unencrypted(nginx): "answers 400 Bad Request: is this a port of TLS (wss://)?",
        unencrypted(
            haproxy
        ): "has hung up without an answer: is it up yet, and is this a port of TLS (wss://)?",
    }
    assert {url: refusal(url) for url in told} == {url: f"{url} {words}" for url, words in told.items()}


def test_what_speaks_no_tls_is_told_in_one_line(site: Site) -> None:
    with (
        Service(answer_http) as web,
        Service(lambda conn: conn.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as ssh,
        Service(lambda _: None) as mute,
    ):
        advice = "is it up yet, and is its port that of wss://{}/gnar?"
        told = {
            f"{LOOPBACK}:{web.port}": "no gnar server at {}: this is HTTP; ws:// goes without TLS",
            f"{LOOPBACK}:{ssh.port}": "no gnar server at {}: this is SSH",
            f"{LOOPBACK}:{mute.port}": f"the server ended the connection where TLS begins: {advice}",
            f"{LOOPBACK}:{site.service.port}": f"{FAILED}; {advice}",
        }
        assert {where: refusal(f"wss://{where}") for where in told} == {
            where: words.replace("{}", where) for where, words in told.items()
        }


def unencrypted(front: Front) -> str:
    """Return the URL of a program in front, as of a port without TLS."""
    return front.url().replace("wss", "ws")


def refusal(url: str) -> str:
    """Return what a client says that comes to a URL in vain."""
    with pytest.raises(GnarError) as caught:
        Way(ClientConfig(server_address(url), (), token=Secret(TOKEN))).dial()
    return str(caught.value)


def answer_http(conn: socket.socket) -> None:
    """Answer as a web server does to what is no request."""
    conn.recv(1000)
    conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
