"""UDP with other programs: a DNS server behind the tunnel, and a relay in place of socat."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Gnar,
    Tunnels,
    free_port,
    wait_until,
)
from tests.helpers.udp import UdpService, echoes_of_users, is_bound


@pytest.fixture
def dns_server(tmp_path: Path) -> Iterator[int]:
    """Run dnsmasq with one name and one long text, and yield its port."""
    port = free_port()
    text = ",".join("x" * 200 for _ in range(10))
    process = subprocess.Popen(
        [
            "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
            f"--port={port}", f"--listen-address={LOOPBACK}", "--bind-interfaces", "--user=",
            "--address=/gnar.test/192.0.2.7", f"--txt-record=long.test,{text}",
            f"--pid-file={tmp_path}/pid",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: is_bound(port), "dnsmasq receives")
        yield port
    finally:
        process.kill()
        process.wait(WAIT_S)


def dig(port: int, *args: str) -> str:
    return subprocess.run(
        ["dig", f"@{LOOPBACK}", "-p", str(port), "+tries=3", "+time=3", *args],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    ).stdout


def test_dns_server_is_queried_over_udp_and_tcp(tunnels: Tunnels, dns_server: int, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "client.toml"
    tables = [
        f'[[proxys]]\nproxy-type = "{kind}"\nlocal-port = {dns_server}\nremote-port = {port}\n'
        for kind in ("tcp", "udp")
    ]
    config.write_text("\n".join(tables))
    _, server_port = tunnels.server()
    client, _ = tunnels.client(server_port, "-c", str(config))
    client.wait_log("open at", count=2)
    for _ in range(10):
        assert dig(port, "+short", "gnar.test").strip() == "192.0.2.7"
    assert dig(port, "+short", "+tcp", "gnar.test").strip() == "192.0.2.7"
    assert dig(port, "+bufsize=4096", "long.test", "txt").count("x" * 200) == 10
    assert "Truncated, retrying in TCP mode" in dig(port, "+bufsize=512", "long.test", "txt")


def test_relay_in_place_of_socat(gnar_pyz: Path, tmp_path: Path, echo_service: UdpService) -> None:
    port = free_port()
    args = ("relay", f"UDP-LISTEN:{port},bind={LOOPBACK},fork", f"UDP:{LOOPBACK}:{echo_service.port}")
    with Gnar(gnar_pyz, tmp_path / "run", *args) as relay:
        relay.wait_log(f"relaying udp:127.0.0.1:{port} to udp:127.0.0.1:{echo_service.port}")
        assert echoes_of_users(port, 20) == 20
        assert len(set(echo_service.peers)) == 20
        assert relay.stop() == 0
