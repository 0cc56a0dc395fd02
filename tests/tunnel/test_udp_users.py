"""UDP through the tunnel: users, the ports that they come to, and their sessions."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import signal
import socket
from pathlib import Path

import pytest

from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.client_file import proxy_table
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Service,
    Tunnels,
    ask,
    echo,
    free_port,
    wait_until,
)
from tests.helpers.udp import (
    UdpService,
    UdpTunnel,
    answered,
    ask_udp,
    echoes_of_users,
    is_bound,
    plain_is_slow,
    udp_socket,
    user_of,
)

USERS, ROUNDS = 64, 1000
DESCRIPTORS = 1024
BIGGEST = 65507  # what IPv4 lets a datagram have


@plain_is_slow
def test_64_users_with_one_datagram_in_flight_lose_none_and_get_their_own(
    tunnels: Tunnels, echo_service: UdpService
) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port)
    poll = select.epoll()
    users = {user.fileno(): user for user in (user_of(tunnel.port) for _ in range(USERS))}
    expected: dict[int, bytes] = {}
    rounds = dict.fromkeys(users, 0)

    def ask_next(fd: int) -> None:
        expected[fd] = hashlib.sha256(b"%d %d" % (fd, rounds[fd])).digest()
        users[fd].send(expected[fd])

    for fd in users:
        poll.register(fd, select.EPOLLIN)
        ask_next(fd)
    while min(rounds.values()) < ROUNDS:
        ready = poll.poll(WAIT_S)
        assert ready, f"lost: rounds {sorted(set(rounds.values()))}, {tunnel.server.status()}"
        for fd, _ in ready:
            assert users[fd].recv(65536) == expected[fd]
            rounds[fd] += 1
            if rounds[fd] < ROUNDS:
                ask_next(fd)
    poll.close()
    for user in users.values():
        user.close()
    for process in (tunnel.server, tunnel.client):
        assert process.status()["udp_dropped"] == 0
    assert tunnel.client.status()["udp_sessions"] in (USERS, USERS + 1)  # one had asked whether it is ready


def test_datagrams_of_every_size_arrive_whole_and_apart(tunnels: Tunnels, echo_service: UdpService) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port)
    with user_of(tunnel.port) as user:
        for size in (0, 1, 0, 1472, 1473, 9000, 40000, BIGGEST, 0, BIGGEST):
            data = os.urandom(size)
            user.send(data)
            assert user.recv(65536) == data


def test_ipv4_and_ipv6_users_reach_a_server_that_listens_everywhere(
    tunnels: Tunnels, echo_service: UdpService
) -> None:
    server_port = free_port()
    server = tunnels.run("server", str(server_port), env={"GNAR_TOKEN": TOKEN})
    server.wait_log("listening on")
    _, port = tunnels.client(server_port, "-y", "udp", str(echo_service.port))
    for host in (LOOPBACK, "::1", "127.0.0.2"):  # connected sockets take answers from that address alone
        assert ask_udp(port, host.encode(), host) == host.encode()
    assert server.status()["udp_users"] == 3


def test_service_sees_users_apart(tunnels: Tunnels, echo_service: UdpService) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port)
    asked_before = len(echo_service.peers)
    assert echoes_of_users(tunnel.port, 20) == 20
    assert len(set(echo_service.peers[asked_before:])) == 20


def test_tcp_and_udp_share_a_port_number(tunnels: Tunnels, echo_service: UdpService, tmp_path: Path) -> None:
    with Service(echo) as service:
        port = free_port()
        config = tmp_path / "client.toml"
        config.write_text(
            f'[[proxys]]\nproxy-name = "t"\nlocal-port = {service.port}\nremote-port = {port}\n'
            f'[[proxys]]\nproxy-name = "u"\nlocal-port = {echo_service.port}\nremote-port = {port}\n'
            'proxy-type = "udp"\n'
        )
        _, server_port = tunnels.server()
        client, _ = tunnels.client(server_port, "-c", str(config))
        client.wait_log("open at", count=2)
        assert ask(port) == b"ping"
        assert ask_udp(port) == b"ping"
        config.write_text(
            f'[[proxys]]\nproxy-name = "t"\nlocal-port = {service.port}\nremote-port = {port}\n'
        )
        client.signal(signal.SIGHUP)
        wait_until(lambda: not is_bound(port), "the UDP port is free")
        assert ask(port) == b"ping"
        assert client.status()["udp_sessions"] == 0


@plain_is_slow
def test_udp_bind_wins_over_bind_and_may_be_a_name(tunnels: Tunnels, echo_service: UdpService) -> None:
    _, server_port = tunnels.server("--udp-bind", "localhost")
    port = free_port()
    client, _ = tunnels.client(server_port, "-y", "udp", f"{echo_service.port}:{port}")
    client.wait_log("open at")
    host = socket.getaddrinfo("localhost", port, type=socket.SOCK_DGRAM)[0][4][0]
    assert ask_udp(port, b"x", str(host)) == b"x"
    _, elsewhere = tunnels.server("--udp-bind", "127.0.0.9")
    _, port = tunnels.client(elsewhere, "-y", "udp", str(echo_service.port))
    assert not is_bound(port)
    assert ask_udp(port, b"x", "127.0.0.9") == b"x"


@plain_is_slow
def test_udp_port_that_is_taken_or_not_allowed_is_said(tunnels: Tunnels, echo_service: UdpService) -> None:
    allowed = free_port()
    _, server_port = tunnels.server("--allow-ports", str(allowed))
    alone, _ = tunnels.client(server_port, "-y", "udp", f"{echo_service.port}:{allowed - 1}", wait=False)
    assert alone.wait_exit() == 1
    with udp_socket(allowed):
        client, _ = tunnels.client(server_port, "-y", "udp", str(echo_service.port), wait=False)
        client.wait_log("no allowed port is free; trying again in")
    client.wait_log("open at")
    assert ask_udp(allowed) == b"ping"


def test_sessions_end_by_themselves_and_leave_nothing(tunnels: Tunnels, echo_service: UdpService) -> None:
    tunnel = UdpTunnel(tunnels, echo_service.port, "--udp-timeout", "0.5")
    wait_until(lambda: tunnel.client.status()["udp_sessions"] == 0, "no session is left")
    before = tunnel.client.fds()
    assert echoes_of_users(tunnel.port, 50) == 50
    wait_until(lambda: tunnel.client.status()["udp_sessions"] == 0, "no session is left")
    assert tunnel.client.fds() == before
    assert tunnel.client.status()["users_total"] == 51
    assert ask_udp(tunnel.port) == b"ping"


@plain_is_slow
def test_byte_from_each_of_4200_addresses_cuts_nobody_off(
    tunnels: Tunnels, echo_service: UdpService, tmp_path: Path
) -> None:
    config = tmp_path / "client.toml"
    bounds = Bounds(worst_s=0.1, p99_s=0.02, grown_fds=DESCRIPTORS // 2 + 64)
    with Service(echo) as service:
        ports = {"tcp": free_port(), "udp": free_port()}
        locals_ = {"tcp": service.port, "udp": echo_service.port}
        config.write_text("\n".join(proxy_table(kind, locals_[kind], ports[kind], kind) for kind in ports))
        config.write_text(config.read_text() + "udp-timeout = 3\n")
        server, server_port = tunnels.server()
        client, _ = tunnels.client(server_port, "-c", str(config))
        client.wait_log("open at", count=2)
        resource.prlimit(client.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        with user_of(ports["udp"]) as known, uninvolved_user(ports["tcp"], server, client, bounds=bounds):
            assert answered(known)
            assert answered(known)
            first = len(echo_service.peers)
            for number in range(4200):
                with udp_socket(0, f"127.1.{number // 250}.{number % 250}") as stranger:
                    stranger.sendto(b"x", (LOOPBACK, ports["udp"]))
                if number % 300 == 0:  # the server has room for so many at once
                    assert answered(known)
            assert DESCRIPTORS // 4 < client.status()["udp_sessions"] <= DESCRIPTORS // 2
            session_of_known = echo_service.peers[first - 1]
            assert answered(known)
            assert echo_service.peers[-1] == session_of_known
            assert ask(ports["tcp"]) == b"ping"


def test_local_service_that_is_down_costs_nothing_but_answers(tunnels: Tunnels) -> None:
    with UdpService(port=free_port()) as service:
        tunnel = UdpTunnel(tunnels, service.port)
    with user_of(tunnel.port, timeout_s=0.05) as user:
        for _ in range(5):
            user.send(b"anybody?")
            with pytest.raises(TimeoutError):
                user.recv(100)
        with UdpService(port=service.port):
            user.settimeout(WAIT_S)
            user.send(b"there you are")
            assert user.recv(100) == b"there you are"
    assert tunnel.client.status()["udp_sessions"] in (1, 2)  # as above
