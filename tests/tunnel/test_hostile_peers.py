"""What unknown peers may send to the control port, and what a server may ask of a client."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from gnar_lib.errors import AuthError
from gnar_lib.logger import LINES_PER_PERIOD
from gnar_lib.net.descriptors import descriptors
from gnar_lib.proto import (
    Exchange,
    ProxyResp,
    Welcome,
    to_frame,
)
from gnar_lib.server.in_progress import MAX_IN_PROGRESS
from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Service,
    Tunnel,
    Tunnels,
    ask,
    dial,
    echo,
    free_port,
    read_all,
)
from tests.peers.plain import go_client, own_client


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\r\nHost: a",
        b"\x01",
        b"\x01\xff\xff",
        b"\x01\x00\x02[]",
        b"\x02\x00\x02{}",
        b"\xff" * 9000,
    ],
)
def test_nonsense_on_the_control_port_is_closed_and_harms_nobody(shared_tunnel: Tunnel, sent: bytes) -> None:
    with uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client):
        for _ in range(50):
            with dial(shared_tunnel.server_port) as attacker:
                attacker.sendall(sent)
                with contextlib.suppress(OSError):  # the server may have reset it already
                    attacker.shutdown(socket.SHUT_WR)
                    assert attacker.recv(100) == b""
    assert ask(shared_tunnel.port) == b"ping"


@pytest.mark.waits
def test_login_slower_than_10_s_is_closed(shared_tunnel: Tunnel) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client))
        attackers = [stack.enter_context(dial(shared_tunnel.server_port)) for _ in range(100)]
        for attacker in attackers:
            attacker.sendall(b"\x01\x00")
        for attacker in attackers:
            with contextlib.suppress(ConnectionResetError):
                assert attacker.recv(1) == b""
    assert shared_tunnel.server.wait_idle()["logins"] == 0


def test_logins_in_progress_are_limited_and_the_oldest_makes_room(echo_tunnel: Tunnel) -> None:
    server, server_port = echo_tunnel.server, echo_tunnel.server_port
    limit = min(
        MAX_IN_PROGRESS, descriptors.reserve // 2
    )  # of the server, which has the limit of this process
    bounds = Bounds(grown_fds=limit + 128)
    with (
        uninvolved_user(echo_tunnel.port, server, echo_tunnel.client, bounds=bounds),
        contextlib.ExitStack() as stack,
    ):
        first = stack.enter_context(dial(server_port))
        others = [stack.enter_context(dial(server_port)) for _ in range(limit)]
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        assert server.status()["logins"] == limit
        with go_client(server_port, free_port()):  # an honest one comes in all the same
            pass
        assert len(others) == limit
    server.wait_idle(clients=1)


def test_peers_that_are_refused_cannot_fill_the_log(echo_tunnel: Tunnel) -> None:
    server, server_port = echo_tunnel.server, echo_tunnel.server_port
    with uninvolved_user(echo_tunnel.port, server, echo_tunnel.client):
        for _ in range(3 * LINES_PER_PERIOD):
            with dial(server_port) as attacker, contextlib.suppress(ConnectionResetError):
                attacker.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                assert attacker.recv(1) == b""
    server.wait_log("refused", count=LINES_PER_PERIOD)
    server.wait_idle()
    assert server.log.count("refused") == LINES_PER_PERIOD


def test_peers_that_guess_tokens_by_the_hundred_harm_nobody(echo_tunnel: Tunnel) -> None:
    def guess(number: int) -> None:
        # Some are hung up on without a word: one host may not try so many in a second.
        with pytest.raises((AuthError, AssertionError), match=r"wrong token|hung up"):
            own_client(echo_tunnel.server_port, token=f"guess {number}").close()

    with (
        uninvolved_user(echo_tunnel.port, echo_tunnel.server, echo_tunnel.client),
        ThreadPoolExecutor(16) as pool,
    ):
        for guessed in [pool.submit(guess, number) for number in range(500)]:
            guessed.result()
    echo_tunnel.server.wait_idle(clients=1)
    assert ask(echo_tunnel.port) == b"ping"


def test_login_of_more_than_4_kib_is_closed(plain_tunnels: Tunnels) -> None:
    server, server_port = plain_tunnels.server()
    with dial(server_port) as attacker:
        attacker.sendall(b"\x01" + (5000).to_bytes(2, "big") + b" " * 3000)
        with contextlib.suppress(ConnectionResetError):
            assert attacker.recv(1) == b""
    server.wait_log("a frame of 5003 bytes where at most 4096 are allowed")
    server.wait_idle()


def test_server_cannot_reach_the_tcp_port_of_a_udp_proxy(tunnels: Tunnels) -> None:
    with Service(echo) as service, socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(WAIT_S)
        address, local = f"{LOOPBACK}:{server.getsockname()[1]}", str(service.port)
        tunnels.run("client", address, "-l", local, "-y", "udp", "-n", "u", env={"GNAR_TOKEN": ""})
        control, _ = server.accept()
        opened = ProxyResp(domain="", status="success", remote_port=9001, proxy_name="u")
        user = Exchange(conn_id="x", proxy_type="tcp", proxy_name="u")
        with control:
            control.sendall(b"".join(map(to_frame, [Welcome(session="x"), opened, user])))
            data, _ = server.accept()
            with data, contextlib.suppress(ConnectionResetError):
                data.settimeout(WAIT_S)
                read_all(data)
        assert service.served == 0
