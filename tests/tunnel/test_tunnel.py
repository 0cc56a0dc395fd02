"""The tunnel end to end: real processes of gnar.pyz, real services, real users, and nothing left over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.serve import show
from gnar_lib.config import Address, ProxyConfig
from gnar_lib.eventlog import REFUSALS_PER_MINUTE
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import (
    Exchange,
    Login,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    Welcome,
    to_frame,
)
from gnar_lib.server.in_progress import MAX_IN_PROGRESS
from tests.helpers.harness import (
    LOOPBACK,
    SOON_S,
    TOKEN,
    WAIT_S,
    Forwarder,
    Gnar,
    Service,
    Tunnel,
    Tunnels,
    answer_at_end,
    ask,
    dial,
    echo,
    exchange_both_ways,
    free_port,
    free_ports,
    greet,
    is_open,
    listening_ports,
    read_all,
    send_reset,
    wait_until,
)
from tests.peers.plain import go_client, go_login, own_client, recv_message

MIB = 1 << 20
OPENED = to_frame(ProxyResp(domain="", status="success"))


@pytest.fixture
def echo_tunnel(tunnels: Tunnels) -> Iterator[Tunnel]:
    tunnel = Tunnel(tunnels, echo)
    yield tunnel
    tunnel.service.stop()


# ---- users -------------------------------------------------------------------------------------------------


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


def test_service_that_answers_after_the_end_of_input_is_heard(tunnels: Tunnels) -> None:
    tunnel = Tunnel(tunnels, answer_at_end)
    answer = subprocess.run(
        ["nc", "-N", LOOPBACK, str(tunnel.port)],
        input=b"request",
        capture_output=True,
        check=True,
        timeout=WAIT_S,
    ).stdout
    assert answer == b"7 %s\n" % hashlib.sha256(b"request").hexdigest().encode()
    tunnel.assert_nothing_left()


def test_service_that_speaks_first_is_heard(tunnels: Tunnels) -> None:
    tunnel = Tunnel(tunnels, greet)
    with dial(tunnel.port) as user:
        assert user.recv(100) == b"hello\n"


def test_user_keeps_sending_after_the_service_ended_its_direction(tunnels: Tunnels) -> None:
    received: list[bytes] = []
    done = threading.Event()

    def shut_first(conn: socket.socket) -> None:
        conn.shutdown(socket.SHUT_WR)
        received.append(read_all(conn))
        done.set()

    tunnel = Tunnel(tunnels, shut_first)
    with dial(tunnel.port) as user:
        assert user.recv(1) == b""
        user.sendall(b"x" * MIB)
    assert done.wait(WAIT_S)
    assert received == [b"x" * MIB]
    tunnel.assert_nothing_left()


def test_user_that_resets_tears_the_service_side_down(tunnels: Tunnels) -> None:
    ended: list[type[Exception] | None] = []
    done = threading.Event()

    def note_end(conn: socket.socket) -> None:
        try:
            read_all(conn)
            ended.append(None)
        except OSError as exc:
            ended.append(type(exc))
        done.set()

    tunnel = Tunnel(tunnels, note_end)
    user = dial(tunnel.port)
    user.sendall(b"x")
    wait_until(lambda: tunnel.service.served == 1, "the service has the user")
    send_reset(user)
    assert done.wait(WAIT_S)
    assert ended == [ConnectionResetError]
    tunnel.assert_nothing_left()


# ---- failures ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("tunnels", [()], ids=["plain"], indirect=True)
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


def test_local_service_down_costs_the_user_a_closed_connection_and_one_line(
    echo_tunnel: Tunnel,
) -> None:
    echo_tunnel.service.stop()
    for _ in range(20):
        assert ask(echo_tunnel.port) == b""
    assert echo_tunnel.client.log.count("local service does not answer") == 1
    echo_tunnel.service.start()
    assert ask(echo_tunnel.port) == b"ping"
    echo_tunnel.assert_nothing_left()


def test_wrong_token_is_told_in_one_line_and_exits_1(tunnels: Tunnels) -> None:
    server, port = tunnels.server()
    client, _ = tunnels.client(port, "-l", "1", token="wrong", wait=False)
    assert client.wait_exit() == 1
    assert "wrong token" in client.log
    assert len(client.log.splitlines()) == 1
    refusal = server.wait_log(r"refused .*wrong token")[0]
    assert LOOPBACK in refusal
    assert TOKEN not in server.log
    assert "wrong\n" not in server.log.replace("wrong token", "")


def test_wrong_token_by_md5_exits_1(tunnels: Tunnels) -> None:
    _, port = tunnels.server()
    client, _ = tunnels.client(port, "-l", "1", "--auth", "md5", token="wrong", wait=False)
    assert client.wait_exit() == 1


def test_md5_login_is_taken_unless_the_server_wants_hmac(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        _, any_port = tunnels.server()
        _, port = tunnels.client(any_port, "-l", str(service.port), "--auth", "md5")
        assert ask(port) == b"ping"
        _, strict_port = tunnels.server("--auth", "hmac")
        client, _ = tunnels.client(strict_port, "-l", str(service.port), "--auth", "md5", wait=False)
        assert client.wait_exit() == 1


def test_client_with_token_does_not_trust_a_server_without(tunnels: Tunnels) -> None:
    _, port = tunnels.server(token="")
    client, _ = tunnels.client(port, "-l", "1", wait=False)
    assert client.wait_exit() == 1
    assert "no token" in client.log


def test_neither_end_has_a_token(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server, server_port = tunnels.server(token="")
        _, port = tunnels.client(server_port, "-l", str(service.port), token="")
        assert ask(port) == b"ping"
        assert "no token" not in server.log  # on loopback alone that is nobody's danger


def test_port_taken_is_asked_for_again_until_it_is_free(tunnels: Tunnels) -> None:
    with Service(echo) as service, socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        _, server_port = tunnels.server()
        client, _ = tunnels.client(server_port, "-l", str(service.port), "-r", str(port), wait=False)
        client.wait_log("is taken; trying again in")
        holder.close()
        client.wait_log("open at")
        assert ask(port) == b"ping"


def test_port_not_allowed_gives_that_proxy_up_and_keeps_the_others(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        allowed, refused = free_port(), free_port()
        _, server_port = tunnels.server("--allow-ports", str(allowed))
        mappings = [f"{service.port}:{refused}", f"{service.port}:{allowed}"]
        client, port = tunnels.client(server_port, *mappings)
        client.wait_log("not allowed")
        assert port == allowed
        assert ask(port) == b"ping"
        alone, _ = tunnels.client(server_port, "-l", str(service.port), "-r", str(refused), wait=False)
        assert alone.wait_exit() == 1
        assert "no proxy is left" in alone.log


def test_port_0_is_chosen_from_the_allowed_ones(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        wanted = free_port()
        _, server_port = tunnels.server("--allow-ports", f"{wanted}")
        client, port = tunnels.client(server_port, str(service.port))
        assert port == wanted
        assert str(wanted) in client.out
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
def test_silent_client_is_noticed_within_15_s(echo_tunnel: Tunnel) -> None:
    echo_tunnel.client.signal(signal.SIGSTOP)
    try:
        assert wait_until(lambda: not is_open(echo_tunnel.port), "the port is closed", 20) < 15
    finally:
        echo_tunnel.client.signal(signal.SIGCONT)


def test_server_that_is_not_there_is_tried_again(tunnels: Tunnels) -> None:
    server_port = free_port()
    with Service(echo) as service:
        client, _ = tunnels.client(server_port, "-l", str(service.port), wait=False)
        client.wait_log(r"client cannot connect .* trying again in")  # nothing was lost yet
        tunnels.server(port=server_port)
        port = int(client.wait_log(r"open at \S+:(\d+)")[1])
        assert ask(port) == b"ping"


# ---- stopping and reloading --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["server", "client"])
def test_first_signal_lets_users_finish(echo_tunnel: Tunnel, end: str) -> None:
    process: Gnar = getattr(echo_tunnel, end)
    with dial(echo_tunnel.port) as user:
        user.sendall(b"before")
        assert user.recv(100) == b"before"
        process.signal(signal.SIGTERM)
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


def test_grace_ends_by_itself(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        _, server_port = tunnels.server()
        client, port = tunnels.client(server_port, "-l", str(service.port), "--grace", "0.3")
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            assert client.stop() == 0


def test_stop_without_users_is_quick(echo_tunnel: Tunnel) -> None:
    echo_tunnel.client.signal(signal.SIGTERM)
    assert echo_tunnel.client.wait_exit(SOON_S) == 0
    assert "waiting up to" not in echo_tunnel.client.log
    wait_until(lambda: not is_open(echo_tunnel.port), "the proxy is cancelled")
    echo_tunnel.server.signal(signal.SIGTERM)
    assert echo_tunnel.server.wait_exit(SOON_S) == 0


def test_hangup_starts_new_proxies_cancels_removed_ones_and_leaves_the_rest(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    def write(*names: str) -> None:
        tables = [
            f'[[proxys]]\nproxy-name = "{name}"\nlocal-port = {service.port}\nremote-port = {ports[name]}\n'
            for name in names
        ]
        config.write_text("\n".join(tables))

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


def proxy_table(name: str, local_port: int, remote_port: int) -> str:
    return f'[[proxys]]\nproxy-name = "{name}"\nlocal-port = {local_port}\nremote-port = {remote_port}\n'


@pytest.mark.parametrize("port", [9001, 0])
def test_proxy_that_is_removed_before_the_server_answers_is_cancelled(
    tunnels: Tunnels, tmp_path: Path, port: int
) -> None:
    config = tmp_path / "client.toml"
    config.write_text(proxy_table("goes", 1, port))
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(WAIT_S)
        address = f"{LOOPBACK}:{server.getsockname()[1]}"
        client = tunnels.run("client", address, "-c", str(config), env={"GNAR_TOKEN": ""})
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


def test_refusal_for_good_ends_the_wait_to_ask_again(tunnels: Tunnels, tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    config.write_text(proxy_table("first", 1, 9001) + proxy_table("second", 2, 9002))
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(WAIT_S)
        address = f"{LOOPBACK}:{server.getsockname()[1]}"
        client = tunnels.run("client", address, "-c", str(config), env={"GNAR_TOKEN": ""})
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


def write_proxies(config: Path, service: Service, ports: dict[str, int]) -> None:
    """Write a client's file with these proxies of one service."""
    config.write_text(
        "\n".join(
            f'[[proxys]]\nproxy-name = "{name}"\nlocal-port = {service.port}\nremote-port = {port}\n'
            for name, port in ports.items()
        )
    )


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
    tunnels: Tunnels, tmp_path: Path
) -> None:
    config, ports = tmp_path / "client.toml", {"old": free_port()}
    with Service(echo) as service:
        server, server_port = tunnels.server()
        write_proxies(config, service, ports)
        client, _ = tunnels.client(server_port, "-c", str(config))
        server.kill()
        client.wait_log("lost the server")
        ports["new"] = free_port()
        write_proxies(config, service, ports)
        client.signal(signal.SIGHUP)
        client.wait_log("configuration reloaded")
        server, _ = tunnels.server(port=server_port)
        client.wait_log(r"\[new\] open at")
        client.wait_log(r"\[old\] open at", count=2)
        assert client.status()["links"] == 1
        assert [ask(port) for port in ports.values()] == [b"ping", b"ping"]


# ---- what a peer may do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01",
        b"\x01\xff\xff",
        b"\x01\x00\x02[]",
        b"\x02\x00\x02{}",
        b"\xff" * 9000,
    ],
)
def test_nonsense_on_the_control_port_is_closed_and_harms_nobody(shared_tunnel: Tunnel, sent: bytes) -> None:
    with dial(shared_tunnel.server_port) as attacker:
        attacker.sendall(sent)
        with contextlib.suppress(OSError):  # the server may have reset it already
            attacker.shutdown(socket.SHUT_WR)
            assert attacker.recv(100) == b""
    assert ask(shared_tunnel.port) == b"ping"


@pytest.mark.waits
def test_login_slower_than_10_s_is_closed(shared_tunnel: Tunnel) -> None:
    with dial(shared_tunnel.server_port) as attacker:
        attacker.sendall(b"\x01\x00")
        with contextlib.suppress(ConnectionResetError):
            assert attacker.recv(1) == b""
    assert shared_tunnel.server.wait_idle()["logins"] == 0


def test_server_without_token_warns_unless_on_loopback(tunnels: Tunnels) -> None:
    server = tunnels.run("server", str(free_port()))
    server.wait_log("no token")


def test_tokens_are_in_no_log_and_no_process_title(shared_tunnel: Tunnel) -> None:
    for process in (shared_tunnel.server, shared_tunnel.client):
        assert TOKEN not in process.log + process.out
        assert TOKEN.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


def test_ipv6_users_reach_a_server_that_listens_everywhere(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server_port = free_port()
        server = tunnels.run("server", str(server_port), env={"GNAR_TOKEN": TOKEN})
        server.wait_log("listening on")
        _, port = tunnels.client(server_port, "-l", str(service.port))
        for host in ("::1", LOOPBACK):
            with dial(port, host) as user:
                user.sendall(b"x")
                assert user.recv(1) == b"x"


# ---- Go clients, by hand -----------------------------------------------------------------------------------


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


# ---- what one server and one client can hold ---------------------------------------------------------------


def test_several_clients_each_serve_their_own_users(tunnels: Tunnels) -> None:
    with contextlib.ExitStack() as stack:
        server, server_port = tunnels.server()
        services = [stack.enter_context(Service(answer_with(b"%d" % number))) for number in range(3)]
        clients = [tunnels.client(server_port, "-l", str(service.port)) for service in services]
        assert [ask(port) for _, port in clients] == [b"0", b"1", b"2"]
        clients[1][0].kill()
        wait_until(lambda: not is_open(clients[1][1]), "the killed client's port is closed")
        assert [ask(port) for _, port in clients[::2]] == [b"0", b"2"]
        assert server.wait_idle(clients=2, proxies=2)


def answer_with(text: bytes) -> Callable[[socket.socket], None]:
    def serve(conn: socket.socket) -> None:
        read_all(conn)
        conn.sendall(text)

    return serve


def test_range_forwards_each_port_to_its_own(tunnels: Tunnels) -> None:
    first, remote = free_ports(3), free_ports(3)
    services = [Service(answer_with(b"%d" % n), first + n) for n in range(3)]
    _, server_port = tunnels.server()
    client, _ = tunnels.client(server_port, f"{first}-{first + 2}:{remote}-{remote + 2}", wait=False)
    client.wait_log("open at", count=3)
    assert [ask(remote + n) for n in range(3)] == [b"0", b"1", b"2"]
    for n in range(3):
        assert f"{LOOPBACK}:{remote + n}  ->  {LOOPBACK}:{first + n}\n" in client.out
    for service in services:
        service.stop()


def test_file_with_several_proxies_shows_them_in_one_block(tunnels: Tunnels, tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    with Service(answer_with(b"web")) as web, Service(answer_with(b"db")) as database:
        _, server_port = tunnels.server()
        path.write_text(
            f'server-addr = "{LOOPBACK}:{server_port}"\n'
            f'[[proxys]]\nproxy-name = "web"\nlocal-port = {web.port}\n'
            f'[[proxys]]\nproxy-name = "database"\nlocal-port = {database.port}\n'
        )
        client = tunnels.run("client", "-c", str(path), env={"GNAR_TOKEN": TOKEN})
        client.wait_log("open at", count=2)
        wait_until(lambda: "database" in client.out, "the block is shown")
        shown = dict(
            re.findall(rf"^  (\w+) +{LOOPBACK}:(\d+)  ->  {LOOPBACK}:\d+$", client.out, re.MULTILINE)
        )
        assert ask(int(shown["web"])) == b"web"
        assert ask(int(shown["database"])) == b"db"
        assert client.out.count("->") == 2


def test_port_that_one_client_holds_is_taken_for_another_until_it_goes(
    echo_tunnel: Tunnel, tunnels: Tunnels
) -> None:
    address = ("-l", str(echo_tunnel.service.port), "-r", str(echo_tunnel.port))
    other, _ = tunnels.client(echo_tunnel.server_port, *address, wait=False)
    other.wait_log(f"port {echo_tunnel.port} is taken; trying again in")
    assert ask(echo_tunnel.port) == b"ping"
    assert echo_tunnel.client.stop() == 0
    other.wait_log("open at")
    assert ask(echo_tunnel.port) == b"ping"


def test_logins_in_progress_are_limited_and_the_oldest_makes_room(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(dial(server_port))
        others = [stack.enter_context(dial(server_port)) for _ in range(MAX_IN_PROGRESS)]
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        assert server.status()["logins"] == MAX_IN_PROGRESS
        with go_client(server_port, free_port()):  # an honest one comes in all the same
            pass
        assert len(others) == MAX_IN_PROGRESS
    server.wait_idle(clients=0)


def test_peers_that_are_refused_cannot_fill_the_log(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    for _ in range(3 * REFUSALS_PER_MINUTE):
        with dial(server_port) as attacker, contextlib.suppress(ConnectionResetError):
            attacker.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert attacker.recv(1) == b""
    server.wait_log("refused", count=REFUSALS_PER_MINUTE)
    server.wait_idle()
    assert server.log.count("refused") == REFUSALS_PER_MINUTE


def test_login_of_more_than_4_kib_is_closed(tunnels: Tunnels) -> None:
    server, server_port = tunnels.server()
    with dial(server_port) as attacker:
        attacker.sendall(b"\x01" + (5000).to_bytes(2, "big") + b" " * 3000)
        with contextlib.suppress(ConnectionResetError):
            assert attacker.recv(1) == b""
    server.wait_log("a frame of 5003 bytes where at most 4096 are allowed")
    server.wait_idle()


def test_hangup_of_the_server_changes_settings_and_touches_no_client(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    allowed, refused = free_port(), free_port()
    path = tmp_path / "server.toml"
    path.write_text(f'allow-ports = "{allowed}"\n')
    with Service(echo) as service:
        server, server_port = tunnels.server("-c", str(path))
        _, port = tunnels.client(server_port, f"{service.port}:{allowed}")
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            path.write_text("nonsense")
            server.signal(signal.SIGHUP)
            server.wait_log(r"nothing is changed: \S+server.toml")
            path.write_text(f'allow-ports = "{allowed},{refused}"\n')
            server.signal(signal.SIGHUP)
            server.wait_log("configuration reloaded")
            _, second = tunnels.client(server_port, f"{service.port}:{refused}")
            assert ask(second) == b"ping"
            user.sendall(b"y")
            assert user.recv(1) == b"y"


# ---- the demo, and what a person sees ----------------------------------------------------------------------


def test_demo_shows_the_tunnel_working_and_leaves_nothing(tunnels: Tunnels) -> None:
    env = {"http_proxy": f"http://{LOOPBACK}:1", "GNAR_TOKEN": "of another server"}
    demo = tunnels.run("demo", env=env)
    wait_until(lambda: "^C ends the demo" in demo.out or demo.process.poll() is not None, "the demo works")
    found = re.search(
        r"fetched http://127\.0\.0\.1:(\d+)/ through the tunnel: (\d+) bytes in \d+ ms", demo.out
    )
    assert found, demo.out + demo.log
    port, size = int(found[1]), int(found[2])
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/", timeout=WAIT_S) as answer:
        page = answer.read()
    assert len(page) == size
    assert b"It works." in page
    assert not {b"no token", b"WARN", b"ERROR"} & {*demo.log.encode().split()}
    listening = listening_ports(demo.pid)
    assert port in listening
    assert demo.stop() == 0
    assert not [port for port in listening if is_open(port)]


def test_demo_takes_the_port_it_is_given_and_says_when_that_is_taken(tunnels: Tunnels) -> None:
    port = free_port()
    demo = tunnels.run("demo", str(port))
    wait_until(lambda: f"Open http://{LOOPBACK}:{port}/ in a browser" in demo.out, "the demo works")
    other = tunnels.run("demo", str(port))
    assert other.wait_exit() == 1
    assert other.log == f"gnar: {LOOPBACK}:{port} is already in use\n"
    demo.signal(signal.SIGINT)
    assert demo.wait_exit(SOON_S) == 0


def test_links_can_be_clicked_on_a_terminal_and_nowhere_else(tunnels: Tunnels, gnar_pyz: Path) -> None:
    with Service(echo) as service:
        _, server_port = tunnels.server()
        plain, port = tunnels.client(server_port, str(service.port))
        wait_until(lambda: "->" in plain.out, "the block is shown")
        assert "\033" not in plain.out
        ours, theirs = pty.openpty()
        words = ["client", f"{LOOPBACK}:{server_port}", str(service.port)]
        terminal = subprocess.Popen(
            [gnar_pyz, *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"GNAR_TOKEN": TOKEN},
        )
        os.close(theirs)
        with terminal, os.fdopen(ours, "rb", buffering=0) as screen:
            shown = b""
            while b"->" not in shown:
                shown += screen.read(4096)
            terminal.terminate()
            assert terminal.wait(WAIT_S) == 0
        found = re.search(rb"\033\]8;;http://(127\.0\.0\.1:\d+)\033\\\1\033\]8;;\033\\  ->  ", shown)
        assert found, shown
        assert int(found[1].split(b":")[1]) != port


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "| true"])
def test_client_serves_whatever_became_of_its_standard_streams(
    tunnels: Tunnels, gnar_pyz: Path, streams: str
) -> None:
    with Service(echo) as service:
        _, server_port = tunnels.server()
        port = free_port()
        words = f"client {LOOPBACK}:{server_port} {service.port}:{port} --grace 0 {' '.join(tunnels.mode)}"
        client = subprocess.Popen(
            ["sh", "-c", f'"$0" {words} {streams}', gnar_pyz],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"GNAR_TOKEN": TOKEN},
            start_new_session=True,
        )
        with client:
            try:
                wait_until(lambda: is_open(port), "the proxy is open")
                assert ask(port) == b"ping"
                assert ask(port) == b"ping"
            finally:
                os.killpg(client.pid, signal.SIGTERM)


def test_domain_that_a_server_tells_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    proxy = ClientProxy(ProxyConfig(proxy_name="x", local_port=1), Meter())
    proxy.domain = "a.example\033[2J\033]0;title\007"
    show(Address(LOOPBACK, 1), [proxy])
    assert "https://a.example" in (shown := capsys.readouterr().out)
    assert shown.replace("\n", "").isprintable()
