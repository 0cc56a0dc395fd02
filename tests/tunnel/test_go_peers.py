"""Go peers, played by hand."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from gnar_lib.proto import (
    Exchange,
    Login,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    to_frame,
)
from tests.helpers.harness import (
    LOOPBACK,
    Tunnel,
    Tunnels,
    ask,
    dial,
    free_port,
    is_open,
    wait_until,
)
from tests.peers.plain import go_client, go_login, recv_message

OPENED = to_frame(ProxyResp(domain="", status="success"))


@pytest.mark.parametrize("tunnels", [("--no-multiplex",)], ids=["plain"], indirect=True)
def test_go_server_that_closes_an_open_proxy_is_not_said_to_have_refused_it(tunnels: Tunnels) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        server_port, port = listener.getsockname()[1], free_port()
        client, _ = tunnels.client(server_port, "--auth", "md5", f"1:{port}", wait=False)
        for said, told in ((b"", "the server refused port"), (OPENED, "the server closed port")):
            with listener.accept()[0] as control:
                assert isinstance(recv_message(control), Login)
                control.sendall(said + to_frame(ProxyResp(domain="", status="failed")))
                client.wait_log(f"lost the server: {told} {port}")
        assert client.log.count("is it taken") == 1


def test_go_client_carries_a_user_and_cancels_on_a_connection_of_its_own(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    port = free_port()
    with go_client(server_port, port) as control:
        with dial(port) as user:
            exchange = recv_message(control)
            assert isinstance(exchange, Exchange)
            with dial(server_port) as data:
                data.sendall(go_login() + to_frame(exchange) + b"first")
                user.sendall(b"hello")
                assert data.recv(100) == b"hello"
                assert user.recv(100) == b"first"
            assert user.recv(100) == b""
        with dial(server_port) as cancel:
            cancel.sendall(go_login() + to_frame(ProxyCancel("go", port)))
            assert cancel.recv(1) == b""
        wait_until(lambda: not is_open(port), "the proxy is cancelled")
        server.wait_idle(clients=1, proxies=0)
    server.wait_idle(clients=0)


def test_go_client_is_told_on_its_control_connection_that_its_proxy_was_cancelled(tunnels: Tunnels) -> None:
    _, server_port = tunnels.server()
    port = free_port()
    with go_client(server_port, port) as control, dial(server_port) as cancel:
        cancel.sendall(go_login() + to_frame(ProxyCancel("go", port)))
        assert recv_message(control) == ProxyResp(domain="", status="failed")
        assert not is_open(port)
        control.sendall(to_frame(ProxyReq(port, "go", "", "tcp")))
        assert recv_message(control) == ProxyResp(domain="", status="success")


def test_cancel_of_a_port_that_another_client_holds_is_refused(echo_tunnel: Tunnel) -> None:
    name, port = f"tcp-{echo_tunnel.service.port}", echo_tunnel.port
    with go_client(echo_tunnel.server_port, free_port()) as control:
        control.sendall(to_frame(ProxyCancel(name, port)))
        with dial(echo_tunnel.server_port) as cancel:
            cancel.sendall(go_login() + to_frame(ProxyCancel(name, port)))
            assert cancel.recv(1) == b""
        echo_tunnel.server.wait_log(r"refused: \S+ cancels", count=2)
        assert ask(port) == b"ping"


def test_cancel_without_the_token_is_refused(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    port = free_port()
    with go_client(server_port, port):
        with dial(server_port) as cancel:
            cancel.sendall(go_login("wrong") + to_frame(ProxyCancel("go", port)))
            with contextlib.suppress(ConnectionResetError):
                assert cancel.recv(1) == b""
        server.wait_log("wrong token")
        assert is_open(port)


@pytest.mark.waits
def test_user_that_no_data_connection_claims_is_closed_after_10_s(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    port = free_port()
    with go_client(server_port, port) as control, dial(port) as user:
        exchange = recv_message(control)
        began = time.monotonic()
        assert server.status()["conn_map"] == 1
        assert user.recv(1) == b""
        assert 5 < time.monotonic() - began < 20  # a busy machine is late
        with dial(server_port) as late:
            late.sendall(go_login() + to_frame(exchange))
            assert late.recv(1) == b""
        server.wait_idle()
