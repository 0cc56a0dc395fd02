"""UDP while a server or a client is killed and comes back, or is stopped."""

from __future__ import annotations

import signal

from tests.helpers.harness import (
    SOON_S,
    Tunnels,
    free_port,
    wait_until,
)
from tests.helpers.udp import UdpService, UdpTunnel, answered, is_bound, user_of


def test_server_killed_and_restarted_carries_on(tunnels: Tunnels, echo_service: UdpService) -> None:
    server, server_port = tunnels.server()
    client, port = tunnels.client(server_port, "-y", "udp", f"{echo_service.port}:{free_port()}")
    with user_of(port, timeout_s=0.2) as user:
        assert answered(user)
        server.kill()
        client.wait_log("trying again in")
        tunnels.server(port=server_port)
        client.wait_log("open at", count=2)
        assert answered(user)
    assert client.status()["udp_sessions"] == 1  # the service sees the same user as before


def test_client_killed_and_restarted_carries_on(tunnels: Tunnels, echo_service: UdpService) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port)
    with user_of(tunnel.port, timeout_s=0.2) as user:
        assert answered(user)
        tunnel.client.kill()
        wait_until(lambda: not is_bound(tunnel.port), "the port is free")
        assert tunnel.server.wait_idle(clients=0, proxies=0)
        tunnels.client(tunnel.server_port, "-y", "udp", f"{echo_service.port}:{tunnel.port}")
        assert answered(user)


def test_stopping_waits_for_no_datagram(tunnels: Tunnels, echo_service: UdpService) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port)
    tunnel.client.signal(signal.SIGINT)  # for good: SIGTERM would have the port wait for the next client
    assert tunnel.client.wait_exit(SOON_S) == 0
    wait_until(lambda: not is_bound(tunnel.port), "the proxy is cancelled")
    tunnel.server.signal(signal.SIGTERM)
    assert tunnel.server.wait_exit(SOON_S) == 0
