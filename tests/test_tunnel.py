"""The tunnel end to end: real processes of gnar.pyz, real services, real users, and nothing left over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import (
    LOOPBACK,
    WAIT_S,
    Forwarder,
    Gnar,
    Service,
    answer_at_end,
    ask,
    dial,
    echo,
    exchange_both_ways,
    free_port,
    greet,
    is_open,
    read_all,
    send_reset,
    wait_until,
)

MIB = 1 << 20
TOKEN = "a token of the tests"


class Tunnels:
    """Starts servers and clients of one test, and ends them with it."""

    def __init__(self, pyz: Path, folder: Path, mode: tuple[str, ...]) -> None:
        self._pyz = pyz
        self._folder = folder
        self._started: list[Gnar] = []
        self.mode = mode  # what clients are told besides: how they carry what they carry

    @property
    def multiplexes(self) -> bool:
        return "-m" in self.mode

    def run(self, *args: str, env: dict[str, str] | None = None) -> Gnar:
        process = Gnar(self._pyz, self._folder, *args, env=env)
        self._started.append(process)
        return process

    def server(self, *args: str, port: int = 0, token: str = TOKEN) -> tuple[Gnar, int]:
        port = port or free_port()
        server = self.run("server", str(port), "--bind", LOOPBACK, *args, env={"GNAR_TOKEN": token})
        server.wait_log(r"listening on")
        return server, port

    def client(self, server_port: int, *args: str, token: str = TOKEN, wait: bool = True) -> tuple[Gnar, int]:
        """Start a client and return it with the port at which its first proxy is open."""
        address = f"{LOOPBACK}:{server_port}"
        client = self.run("client", "-s", address, *args, *self.mode, env={"GNAR_TOKEN": token})
        if not wait:
            return client, 0
        return client, int(client.wait_log(r"open at \S+:(\d+)")[1])

    def close(self, *, failed: bool) -> None:
        for process in self._started:
            process.kill()
            if failed:
                print(f"---- {' '.join(process.args)} ----\n{process.log}{process.out}")
        for process in self._started:
            assert "Traceback" not in process.log, process.log
            assert "defect" not in process.log, process.log


@pytest.fixture(params=[(), ("-m",)], ids=["plain", "multiplexed"])
def tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    started = Tunnels(gnar_pyz, tmp_path / "run", request.param)
    failures = request.session.testsfailed
    yield started
    started.close(failed=request.session.testsfailed > failures)


class Tunnel:
    """A server, a client and the service behind it, with what they held before any user came."""

    def __init__(self, tunnels: Tunnels, serve: Callable[[socket.socket], None]) -> None:
        self.service = Service(serve)
        self.server, self.server_port = tunnels.server()
        self.client, self.port = tunnels.client(self.server_port, "-l", str(self.service.port), "-r", "0")
        if not tunnels.multiplexes:
            wait_until(lambda: self.server.status()["waiting"] >= 2, "two data connections wait")
        self.before = [self._held(process) for process in (self.server, self.client)]

    @staticmethod
    def _held(process: Gnar) -> tuple[int, int]:
        """Return greenlets and descriptors, less those of data connections that wait."""
        status = process.wait_idle()
        own_greenlets = status["waiting"] if process.args[0] == "client" else 0
        return status["greenlets"] - own_greenlets, process.fds() - status["waiting"]

    def assert_nothing_left(self) -> None:
        for process, before in zip((self.server, self.client), self.before, strict=True):
            self._assert_back_to(process, before)

    def _assert_back_to(self, process: Gnar, before: tuple[int, int]) -> None:
        found = before

        def back() -> bool:
            nonlocal found
            found = self._held(process)
            return found[0] <= before[0] and found[1] <= before[1] + SPARE_PIPE_FDS

        try:
            wait_until(back, "nothing left")
        except AssertionError:
            raise AssertionError(f"{process.args[0]}: {before} became {found}") from None


SPARE_PIPE_FDS = 32  # pipes of bulk transfers are kept for the next one, 16 at most


@pytest.fixture
def echo_tunnel(tunnels: Tunnels) -> Iterator[Tunnel]:
    tunnel = Tunnel(tunnels, echo)
    yield tunnel
    tunnel.service.stop()


# ---- users -------------------------------------------------------------------------------------------------


def test_200_users_at_once_get_their_own_bytes_back(echo_tunnel: Tunnel) -> None:
    payloads = [os.urandom(MIB) for _ in range(8)]
    with ThreadPoolExecutor(200) as pool:
        hashes = list(
            pool.map(lambda n: exchange_both_ways(echo_tunnel.port, payloads[n % 8] + bytes([n])), range(200))
        )
    expected = [hashlib.sha256(payloads[n % 8] + bytes([n])).hexdigest() for n in range(200)]
    assert hashes == expected
    echo_tunnel.assert_nothing_left()


def test_64_mib_both_ways_at_once_on_one_connection(echo_tunnel: Tunnel) -> None:
    data = os.urandom(MIB) * 64
    assert exchange_both_ways(echo_tunnel.port, data) == hashlib.sha256(data).hexdigest()
    echo_tunnel.assert_nothing_left()


def test_1000_short_connections_one_after_the_other(echo_tunnel: Tunnel) -> None:
    for number in range(1000):
        request = b"%d" % number
        assert ask(echo_tunnel.port, request) == request
    echo_tunnel.assert_nothing_left()


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
        client.wait_log("open at", count=2, timeout_s=5)
        assert ask(port) == b"ping"
        server.wait_log("is back as")
        for leg in held:
            leg.close()


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
        client.wait_log(r"cannot connect .* trying again in")
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
    assert process.wait_exit(5) == 0


@pytest.mark.parametrize("end", ["server", "client"])
def test_second_signal_ends_at_once(echo_tunnel: Tunnel, end: str) -> None:
    process: Gnar = getattr(echo_tunnel, end)
    with dial(echo_tunnel.port) as user:
        user.sendall(b"before")
        assert user.recv(100) == b"before"
        process.signal(signal.SIGINT)
        process.wait_log("waiting up to")
        process.signal(signal.SIGINT)
        assert process.wait_exit(3) == 0


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
    assert echo_tunnel.client.wait_exit(3) == 0
    assert "waiting up to" not in echo_tunnel.client.log
    wait_until(lambda: not is_open(echo_tunnel.port), "the proxy is cancelled")
    echo_tunnel.server.signal(signal.SIGTERM)
    assert echo_tunnel.server.wait_exit(3) == 0


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
def test_nonsense_on_the_control_port_is_closed_and_harms_nobody(echo_tunnel: Tunnel, sent: bytes) -> None:
    with dial(echo_tunnel.server_port) as attacker:
        attacker.sendall(sent)
        attacker.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert attacker.recv(100) == b""
    assert ask(echo_tunnel.port) == b"ping"
    echo_tunnel.assert_nothing_left()


def test_login_slower_than_10_s_is_closed(echo_tunnel: Tunnel) -> None:
    with dial(echo_tunnel.server_port) as attacker:
        attacker.sendall(b"\x01\x00")
        with contextlib.suppress(ConnectionResetError):
            assert attacker.recv(1) == b""
    assert echo_tunnel.server.wait_idle()["logins"] == 0


def test_server_without_token_warns_unless_on_loopback(tunnels: Tunnels) -> None:
    server = tunnels.run("server", str(free_port()))
    server.wait_log("no token")


def test_tokens_are_in_no_log_and_no_process_title(echo_tunnel: Tunnel) -> None:
    for process in (echo_tunnel.server, echo_tunnel.client):
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
