"""The first signal lets users finish, the second ends at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from contextlib import suppress

import pytest

from gnar_lib.proto import (
    Exchange,
    ProxyReq,
    ProxyResp,
    to_frame,
)
from tests.helpers.harness import (
    SOON_S,
    WAIT_S,
    Gnar,
    Service,
    Tunnel,
    Tunnels,
    dial,
    echo,
    free_port,
    is_open,
    read_all,
    wait_until,
)
from tests.peers.plain import go_client, own_client, recv_message


@pytest.mark.parametrize("end", ["server", "client"])
def test_first_signal_lets_users_finish(echo_tunnel: Tunnel, end: str) -> None:
    process: Gnar = getattr(echo_tunnel, end)
    with dial(echo_tunnel.port) as user:
        user.sendall(b"before")
        assert user.recv(100) == b"before"
        process.signal(signal.SIGINT)  # after SIGTERM the port of a client would wait for its next start
        process.wait_log("waiting up to")
        wait_until(lambda: not is_open(echo_tunnel.port), "no more users")
        user.sendall(b"after")
        assert user.recv(100) == b"after"
    assert process.wait_exit(SOON_S) == 0


def test_server_that_stops_opens_no_more_proxies_and_says_to_come_back(echo_tunnel: Tunnel) -> None:
    late = free_port()
    with own_client(echo_tunnel.server_port) as other, dial(echo_tunnel.port) as user:
        other.sendall(to_frame(ProxyReq(free_port(), "early", "", "tcp")))
        answer = recv_message(other)
        assert isinstance(answer, ProxyResp)
        assert answer.status == "success"
        user.sendall(b"x")
        assert user.recv(1) == b"x"
        echo_tunnel.server.signal(signal.SIGTERM)
        echo_tunnel.server.wait_log("waiting up to")
        other.sendall(to_frame(ProxyReq(late, "late", "", "tcp")))
        answer = recv_message(other)
        assert isinstance(answer, ProxyResp)
        assert (answer.status, answer.error, answer.retry) == ("failed", "the server is stopping", True)
        assert not is_open(late)
    assert echo_tunnel.server.wait_exit(SOON_S) == 0


def test_answer_that_is_on_its_way_arrives_whole_although_the_client_stops_behind_it(
    tunnels: Tunnels,
) -> None:
    answer, may_answer, has_answered = os.urandom(240_000), threading.Event(), threading.Event()

    def serve(conn: socket.socket) -> None:
        assert read_all(conn) == b"x"
        may_answer.wait(WAIT_S)
        conn.sendall(answer)
        has_answered.set()

    with Service(serve) as service:
        server, server_port = tunnels.server()
        client, port = tunnels.client(server_port, "-l", str(service.port))
        with dial(port) as user:
            user.sendall(b"x")
            user.shutdown(socket.SHUT_WR)
            wait_until(lambda: service.served > 0, "the service has the user")
            server.signal(signal.SIGSTOP)  # so the answer stays with the client, and in the kernel
            may_answer.set()
            assert has_answered.wait(WAIT_S)
            client.signal(signal.SIGTERM)
            client.wait_log("stopping")
            with suppress(subprocess.TimeoutExpired):  # a client that waits for the server is right as well
                client.process.wait(4)
            server.signal(signal.SIGCONT)
            assert read_all(user) == answer
        assert client.wait_exit() == 0


@pytest.mark.parametrize("end", ["server", "client"])
def test_second_signal_ends_at_once(echo_tunnel: Tunnel, end: str) -> None:
    process: Gnar = getattr(echo_tunnel, end)
    with dial(echo_tunnel.port) as user:
        user.sendall(b"before")
        assert user.recv(100) == b"before"
        process.signal(signal.SIGINT)
        process.wait_log("waiting up to")
        process.signal(signal.SIGINT)
        assert process.wait_exit(SOON_S) == 0


def test_grace_ends_by_itself(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        _, server_port = plain_tunnels.server()
        client, port = plain_tunnels.client(server_port, "-l", str(service.port), "--grace", "0.3")
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            assert client.stop() == 0


@pytest.mark.parametrize("tunnels", [("--no-multiplex",)], ids=["plain"], indirect=True)
def test_server_that_stops_waits_for_no_user_without_a_data_connection(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    port = free_port()
    with go_client(server_port, port) as control, dial(port) as user:
        assert isinstance(recv_message(control), Exchange)
        assert server.stop() == 0
        assert user.recv(1) == b""
    assert "waiting up to" not in server.log


def test_stop_without_users_is_quick(echo_tunnel: Tunnel) -> None:
    echo_tunnel.client.signal(signal.SIGINT)
    assert echo_tunnel.client.wait_exit(SOON_S) == 0
    assert "waiting up to" not in echo_tunnel.client.log
    wait_until(lambda: not is_open(echo_tunnel.port), "the proxy is cancelled")
    echo_tunnel.server.signal(signal.SIGTERM)
    assert echo_tunnel.server.wait_exit(SOON_S) == 0
