"""A server or a client goes away and comes back, or falls silent."""

from __future__ import annotations

import signal

import pytest

from tests.helpers.harness import (
    SOON_S,
    Forwarder,
    Service,
    Tunnel,
    Tunnels,
    ask,
    echo,
    free_port,
    is_open,
    wait_until,
)


def test_server_killed_and_restarted_under_a_client(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server, server_port = tunnels.server()
        client, port = tunnels.client(server_port, "-l", str(service.port), "-r", str(free_port()))
        assert ask(port) == b"ping"
        server.kill()
        client.wait_log("trying again in")
        tunnels.server(port=server_port)
        client.wait_log("open at", count=2)
        assert ask(port) == b"ping"
        client.wait_idle()


def test_client_killed_under_a_server_frees_its_port(echo_tunnel: Tunnel, tunnels: Tunnels) -> None:
    echo_tunnel.client.kill()
    wait_until(lambda: not is_open(echo_tunnel.port), "the port is closed")
    assert echo_tunnel.server.wait_idle(clients=0, proxies=0, waiting=0)
    _, port = tunnels.client(
        echo_tunnel.server_port, "-l", str(echo_tunnel.service.port), "-r", str(echo_tunnel.port)
    )
    assert ask(port) == b"ping"


def test_client_that_comes_back_takes_over_its_proxies_at_once(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server, server_port = tunnels.server()
        path = Forwarder(server_port)
        client, port = tunnels.client(path.port, "-l", str(service.port), "-r", str(free_port()))
        held = list(path.drop_clients())  # the server does not notice: its legs stay open
        client.wait_log("open at", count=2, timeout_s=SOON_S)
        assert ask(port) == b"ping"
        server.wait_log("is back as")
        for leg in held:
            leg.close()


@pytest.mark.waits
def test_silent_client_keeps_its_port_until_the_server_takes_it_for_dead(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        _, server_port = plain_tunnels.server("--dead-after", "7")
        client, port = plain_tunnels.client(server_port, "-l", str(service.port), "--heartbeat", "1")
        client.signal(signal.SIGSTOP)
        try:
            assert 5 < wait_until(lambda: not is_open(port), "the port is closed", 20) < 15
        finally:
            client.signal(signal.SIGCONT)


def test_server_that_is_not_there_is_tried_again(plain_tunnels: Tunnels) -> None:
    server_port = free_port()
    with Service(echo) as service:
        client, _ = plain_tunnels.client(server_port, "-l", str(service.port), wait=False)
        client.wait_log(r"client cannot connect .* trying again in")  # nothing was lost yet
        plain_tunnels.server(port=server_port)
        port = int(client.wait_log(r"open at \S+:(\d+)")[1])
        assert ask(port) == b"ping"
