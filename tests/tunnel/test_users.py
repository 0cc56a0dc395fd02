"""Users of the tunnel: each gets the answers to what it sent, from the right service, and leaves nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Service,
    Tunnel,
    Tunnels,
    ask,
    dial,
    echo,
    exchange_both_ways,
    free_port,
    is_open,
    wait_until,
)
from tests.helpers.services import answer_with

MIB = 1 << 20


def test_200_users_at_once_get_their_own_bytes_back(shared_tunnel: Tunnel) -> None:
    payloads = [os.urandom(MIB) for _ in range(8)]
    data = [payloads[number % 8] + bytes([number]) for number in range(200)]
    with ThreadPoolExecutor(200) as pool:
        hashes = list(pool.map(lambda each: exchange_both_ways(shared_tunnel.port, each), data))
    expected = [hashlib.sha256(each).hexdigest() for each in data]
    assert hashes == expected


def test_64_mib_both_ways_at_once_on_one_connection(shared_tunnel: Tunnel) -> None:
    data = os.urandom(MIB) * 64
    assert exchange_both_ways(shared_tunnel.port, data) == hashlib.sha256(data).hexdigest()


def test_1000_short_connections_one_after_the_other(shared_tunnel: Tunnel) -> None:
    for number in range(1000):
        request = b"%d" % number
        assert ask(shared_tunnel.port, request) == request


def test_local_service_down_costs_the_user_a_closed_connection_and_one_line(
    echo_tunnel: Tunnel,
) -> None:
    echo_tunnel.service.stop()
    for _ in range(20):
        assert ask(echo_tunnel.port) == b""
    echo_tunnel.service.start()
    assert ask(echo_tunnel.port) == b"ping"
    echo_tunnel.client.wait_log("works again")
    assert echo_tunnel.client.log.count("local service does not answer") == 1
    echo_tunnel.assert_nothing_left()


def test_ipv6_users_reach_a_server_that_listens_everywhere(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server_port = free_port()
        server = plain_tunnels.run("server", str(server_port), env={"GNAR_TOKEN": TOKEN})
        server.wait_log("listening on")
        _, port = plain_tunnels.client(server_port, "-l", str(service.port))
        for host in ("::1", LOOPBACK):
            with dial(port, host) as user:
                user.sendall(b"x")
                assert user.recv(1) == b"x"


def test_several_clients_each_serve_their_own_users(plain_tunnels: Tunnels) -> None:
    with contextlib.ExitStack() as stack:
        server, server_port = plain_tunnels.server()
        services = [stack.enter_context(Service(answer_with(b"%d" % number))) for number in range(3)]
        clients = [plain_tunnels.client(server_port, "-l", str(service.port)) for service in services]
        assert [ask(port) for _, port in clients] == [b"0", b"1", b"2"]
        clients[1][0].kill()
        wait_until(lambda: not is_open(clients[1][1]), "the killed client's port is closed")
        assert [ask(port) for _, port in clients[::2]] == [b"0", b"2"]
        assert server.wait_idle(clients=2, proxies=2)
