"""SIGHUP makes a client or a server read its file again, and users notice nothing."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from gnar_lib.proto import (
    Login,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    Welcome,
    to_frame,
)
from tests.helpers.client_file import proxy_table, write_proxies
from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Service,
    Tunnels,
    ask,
    dial,
    echo,
    free_port,
    is_open,
    wait_until,
)
from tests.peers.plain import recv_message


def test_hangup_starts_new_proxies_cancels_removed_ones_and_leaves_the_rest(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    def write(*names: str) -> None:
        write_proxies(config, service, {name: ports[name] for name in names})

    config = tmp_path / "client.toml"
    ports = {name: free_port() for name in ("stays", "goes", "comes")}
    with Service(echo) as service:
        _, server_port = tunnels.server()
        write("stays", "goes")
        client, _ = tunnels.client(server_port, "-c", str(config))
        client.wait_log("open at", count=2)
        with dial(ports["stays"]) as staying, dial(ports["goes"]) as going:
            for user in (staying, going):
                user.sendall(b"x")
                assert user.recv(1) == b"x"
            write("stays", "comes")
            client.signal(signal.SIGHUP)
            client.wait_log(r"\[comes\] open at")
            assert ask(ports["comes"]) == b"ping"
            wait_until(lambda: not is_open(ports["goes"]), "the removed proxy is closed")
            for user in (staying, going):
                user.sendall(b"y")
                assert user.recv(1) == b"y"
        config.write_text("nonsense")
        client.signal(signal.SIGHUP)
        client.wait_log("client.toml")
        assert ask(ports["stays"]) == b"ping"


@pytest.mark.parametrize("port", [9001, 0])
def test_proxy_that_is_removed_before_the_server_answers_is_cancelled(
    plain_tunnels: Tunnels, tmp_path: Path, port: int
) -> None:
    config = tmp_path / "client.toml"
    config.write_text(proxy_table("goes", 1, port))
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(WAIT_S)
        address = f"{LOOPBACK}:{server.getsockname()[1]}"
        client = plain_tunnels.run(
            "client", address, "--tls", "off", "-c", str(config), env={"GNAR_TOKEN": ""}
        )
        control, _ = server.accept()
        with control:
            control.settimeout(WAIT_S)
            assert isinstance(recv_message(control), Login)
            assert isinstance(recv_message(control), ProxyReq)
            config.write_text(proxy_table("comes", 2, 9002))
            client.signal(signal.SIGHUP)
            client.wait_log("configuration reloaded")
            opened = ProxyResp(domain="", status="success", remote_port=9001, proxy_name="goes")
            control.sendall(to_frame(Welcome(session="x")) + to_frame(opened))
            asked = [recv_message(control), recv_message(control)]
        assert ProxyCancel("goes", 9001) in asked
        assert ProxyReq(9002, "comes", "", "tcp") in asked


def test_refusal_for_good_ends_the_wait_to_ask_again(plain_tunnels: Tunnels, tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    config.write_text(proxy_table("first", 1, 9001) + proxy_table("second", 2, 9002))
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(WAIT_S)
        address = f"{LOOPBACK}:{server.getsockname()[1]}"
        client = plain_tunnels.run(
            "client", address, "--tls", "off", "-c", str(config), env={"GNAR_TOKEN": ""}
        )
        control, _ = server.accept()
        with control:
            control.settimeout(WAIT_S)
            refusals = [ProxyResp("", "failed", "x", retry, 0, "first") for retry in (True, False)]
            control.sendall(b"".join(map(to_frame, [Welcome(session="x"), *refusals])))
            client.wait_log("the server refused")
            client.wait_log("trying again in")
            heard = b""
            while heard.count(b"\x02\x00\x02{}") < 3:  # it lives past the time at which it would have asked
                heard += control.recv(4096)
            assert heard.count(b'"first"') == 1


def test_hangup_that_replaces_the_only_proxy_opens_the_new_one_and_leaves_users(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    config, port = tmp_path / "client.toml", free_port()
    with Service(echo) as service:
        _, server_port = tunnels.server()
        write_proxies(config, service, {"old": port})
        client, _ = tunnels.client(server_port, "-c", str(config))
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            write_proxies(config, service, {"new": port})
            client.signal(signal.SIGHUP)
            client.wait_log(r"\[new\] open at")
            assert ask(port) == b"ping"
            user.sendall(b"y")
            assert user.recv(1) == b"y"


def test_hangup_while_the_server_is_away_keeps_one_control_connection(
    plain_tunnels: Tunnels, tmp_path: Path
) -> None:
    config, ports = tmp_path / "client.toml", {"old": free_port()}
    with Service(echo) as service:
        server, server_port = plain_tunnels.server()
        write_proxies(config, service, ports)
        client, _ = plain_tunnels.client(server_port, "-c", str(config))
        server.kill()
        client.wait_log("lost the server")
        ports["new"] = free_port()
        write_proxies(config, service, ports)
        client.signal(signal.SIGHUP)
        client.wait_log("configuration reloaded")
        server, _ = plain_tunnels.server(port=server_port)
        client.wait_log(r"\[new\] open at")
        client.wait_log(r"\[old\] open at", count=2)
        assert client.status()["links"] == 1
        assert [ask(port) for port in ports.values()] == [b"ping", b"ping"]


def test_hangup_of_the_server_changes_settings_and_touches_no_client(
    plain_tunnels: Tunnels, tmp_path: Path
) -> None:
    allowed, refused = free_port(), free_port()
    path = tmp_path / "server.toml"
    path.write_text(f'allow-ports = "{allowed}"\n')
    with Service(echo) as service:
        server, server_port = plain_tunnels.server("-c", str(path))
        _, port = plain_tunnels.client(server_port, f"{service.port}:{allowed}")
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            path.write_text("nonsense")
            server.signal(signal.SIGHUP)
            server.wait_log(r"nothing is changed: \S+server.toml")
            path.write_text(f'allow-ports = "{allowed},{refused}"\n')
            server.signal(signal.SIGHUP)
            server.wait_log("configuration reloaded")
            _, second = plain_tunnels.client(server_port, f"{service.port}:{refused}")
            assert ask(second) == b"ping"
            user.sendall(b"y")
            assert user.recv(1) == b"y"


def test_hangup_changes_how_long_users_of_a_server_may_finish(plain_tunnels: Tunnels, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text("grace = 0\n")
    with Service(echo) as service:
        server, server_port = plain_tunnels.server("-c", str(config))
        _, port = plain_tunnels.client(server_port, "-l", str(service.port))
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            config.write_text("grace = 4321\n")
            server.signal(signal.SIGHUP)
            server.wait_log("configuration reloaded")
            server.signal(signal.SIGTERM)
            server.wait_log("waiting up to 4321 s")
            user.sendall(b"y")
            assert user.recv(1) == b"y"
        assert server.wait_exit() == 0
