"""More datagrams than can be carried: floods, a client that stands still, and a speed limit."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.client_file import proxy_table
from tests.helpers.flood import Flood
from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Service,
    Tunnels,
    echo,
    free_port,
    wait_until,
)
from tests.helpers.nginx import nginx
from tests.helpers.udp import UdpService, UdpTunnel, ask_udp, plain_is_slow, udp_socket, user_of

KEPT = 0.3  # of the requests of a TCP proxy, beside a flood of datagrams


@plain_is_slow
def test_slow_client_costs_datagrams_not_memory_nor_other_users(
    tunnels: Tunnels, echo_service: UdpService
) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port)
    with Service(echo) as service:
        beside, port = tunnels.client(tunnel.server_port, "-l", str(service.port))
        with uninvolved_user(port, tunnel.server, beside, bounds=Bounds(grown_mib=24)):
            tunnel.client.signal(signal.SIGSTOP)
            try:
                with Flood(tunnel.port, 1400):
                    wait_until(
                        lambda: tunnel.server.status()["udp_dropped"] > 20_000, "datagrams are dropped"
                    )
            finally:
                tunnel.client.signal(signal.SIGCONT)
    assert ask_udp(tunnel.port) == b"ping"


@plain_is_slow
def test_flood_of_datagrams_delays_no_byte_of_another_proxy_of_the_same_client(
    tunnels: Tunnels, echo_service: UdpService, tmp_path: Path
) -> None:
    config = tmp_path / "client.toml"
    with Service(echo) as service:
        ports = {"tcp": free_port(), "udp": free_port()}
        locals_ = {"tcp": service.port, "udp": echo_service.port}
        tables = [proxy_table(kind, locals_[kind], ports[kind], kind) for kind in ports]
        config.write_text("\n".join(tables))
        server, server_port = tunnels.server()
        client, _ = tunnels.client(server_port, "-c", str(config))
        client.wait_log("open at", count=2)
        assert ask_udp(ports["udp"]) == b"ping"
        with uninvolved_user(ports["tcp"], server, client) as user, Flood(ports["udp"]) as flood:
            wait_until(lambda: flood.sent > 50_000 and user.echoes > 100, "datagrams by the ten thousand")
        assert ask_udp(ports["udp"]) == b"ping"


def test_speed_limit_counts_datagrams_and_drops_the_excess(
    tunnels: Tunnels, echo_service: UdpService
) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port, "--speed-limit", "100kb")
    with user_of(tunnel.port, timeout_s=0.5) as user:
        for _ in range(400):
            user.send(b"x" * 1000)
        got = 0
        with contextlib.suppress(TimeoutError):
            while True:
                got += len(user.recv(65536))
    assert 50_000 < got < 250_000
    assert tunnel.client.status()["udp_dropped"] > 100


@pytest.fixture(scope="module")
def udpecho(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the load generator of the benchmarks, which takes little processor time; return its path."""
    program = tmp_path_factory.mktemp("bin") / "udpecho"
    source = Path(__file__).resolve().parent.parent.parent / "bench" / "udpecho.c"
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True, timeout=WAIT_S)
    return program


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[int]:
    """Run nginx with a tiny page, and yield its port."""
    port, folder = free_port(), tmp_path / "web"
    folder.mkdir()
    (folder / "index.html").write_text("ok")
    with nginx(folder, port):
        yield port


@plain_is_slow
def test_tcp_proxy_beside_a_flood_of_datagrams_keeps_a_good_part_of_its_requests(
    tunnels: Tunnels, udpecho: Path, web_server: int, tmp_path: Path
) -> None:
    def requests_beside_flood(target: int) -> float:
        """Return the requests per second of 32 connections while 50,000 datagrams a second go to a port."""
        flood = subprocess.Popen(
            [str(udpecho), "rate", LOOPBACK, str(target), "8", "50000", "2.5"], stdout=subprocess.DEVNULL
        )
        try:
            url = f"http://{LOOPBACK}:{ports['tcp']}/index.html"
            argv = ["wrk", "-t1", "-c32", "-d1s", url]
            out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout
        finally:
            flood.kill()
            flood.wait(WAIT_S)
        return float(out.partition("Requests/sec:")[2].split()[0])

    with UdpService(lambda data: data) as service, udp_socket() as nobody:
        ports = {"tcp": free_port(), "udp": free_port()}
        locals_ = {"tcp": web_server, "udp": service.port}
        tables = [proxy_table(kind, locals_[kind], ports[kind], kind) for kind in ports]
        config = tmp_path / "client.toml"
        config.write_text("\n".join(tables))
        server, server_port = tunnels.server()
        client, _ = tunnels.client(server_port, "-c", str(config))
        client.wait_log("open at", count=2)
        assert ask_udp(ports["udp"])
        # The generator takes its part of the machine wherever the flood goes: so compare with one that goes
        # past gnar. A proxy that a flood starves keeps 0.08 to 0.2 of its requests, this one 0.4 to 0.9. The
        # best of a few counts, since other programs may run at the same time.
        ratios = []
        for _ in range(5):
            past = requests_beside_flood(nobody.getsockname()[1])
            ratios.append(requests_beside_flood(ports["udp"]) / past)
            if ratios[-1] >= KEPT:
                break
        assert max(ratios) >= KEPT, f"{ratios}, {server.status()}, {client.status()}"
