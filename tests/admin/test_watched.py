"""A client and a relay are watched at their admin ports, from the built file."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.harness import LOOPBACK, Gnar, Service, Tunnels, ask, echo, free_port, wait_until


def fetch(port: int, path: str, token: str = "") -> str:
    """Return the body of an answer; raises `HTTPError` unless the answer is a good one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


def status_of(port: int, path: str) -> int:
    try:
        fetch(port, path)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code
    return 200


def test_client_tells_its_metrics_and_whether_it_is_connected(plain_tunnels: Tunnels) -> None:
    admin = free_port()
    server, server_port = plain_tunnels.server()
    with Service(echo) as service:
        client, port = plain_tunnels.client(server_port, str(service.port), "-a", str(admin))
        assert ask(port, b"x" * 1000) == b"x" * 1000
        wait_until(lambda: status_of(admin, "/readyz") == 200, "the client is ready")
        shown = fetch(admin, "/metrics")
        assert f'gnar_proxy_bytes_total{{direction="up",proxy="tcp-{service.port}"}} 1000.0' in shown
        assert "gnar_client_connected 1.0" in shown
        server.kill()
        client.wait_log("lost the server")
        assert status_of(admin, "/readyz") == 503
        assert status_of(admin, "/healthz") == 200
        assert "/metrics" in fetch(admin, "/")


def test_relay_tells_its_metrics(gnar_pyz: Path, tmp_path: Path) -> None:
    admin, port = free_port(), free_port()
    with Service(echo) as service:
        words = ("relay", "-a", str(admin), f"tcp:{LOOPBACK}:{port}", f"tcp:{LOOPBACK}:{service.port}")
        env = {"GNAR_ADMIN_READ_TOKEN": "a scraper"}
        with Gnar(gnar_pyz, tmp_path, *words, env=env) as relay:
            relay.wait_log("relaying")
            assert ask(port, b"x" * 1000) == b"x" * 1000
            assert status_of(admin, "/metrics") == 401
            shown = fetch(admin, "/metrics", "a scraper")
            assert 'gnar_bytes_total{direction="down"} 1000.0' in shown
            assert relay.stop() == 0


@pytest.mark.parametrize(
    "words", [("server", "0"), ("client", "3000"), ("relay", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")]
)
def test_admin_port_that_is_taken_is_one_line_and_no_start(
    gnar_pyz: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    with Service(echo) as service:
        words = tuple(str(free_port()) if word == "0" else word for word in words)
        with Gnar(gnar_pyz, tmp_path, *words, "-a", str(service.port)) as gnar:
            assert gnar.wait_exit() == 1
            assert f"gnar: 127.0.0.1:{service.port} is already in use\n" in gnar.log
            assert "Traceback" not in gnar.log
