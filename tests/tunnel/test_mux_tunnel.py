"""The multiplexed tunnel end to end: what `-m` adds, and what peers may do within a session.

What holds with `-m` and without is tested in the other modules, in both modes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.procs import Host
from gnar_lib.proto import Login, ProxyReq, to_frame
from gnar_lib.proto.numbers import FEATURE_WAIT
from gnar_lib.yamux import frame
from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Forwarder,
    Gnar,
    Service,
    Tunnel,
    Tunnels,
    answer_at_end,
    ask,
    connections_to,
    dial,
    echo,
    free_port,
    is_open,
    read_all,
    send_reset,
    wait_until,
)
from tests.helpers.hosts import ECHO, SERVICE, Program, long_path
from tests.peers.plain import own_client, own_server, recv_message

multiplexed = pytest.mark.parametrize("tunnels", [("-m",)], ids=["multiplexed"], indirect=True)
multiplexed_shared = pytest.mark.parametrize("shared_tunnel", [("-m",)], ids=["multiplexed"], indirect=True)

ROOT = Path(__file__).resolve().parent.parent.parent
ROUND_TRIP_MS = 600  # far more than what a busy machine adds
FIRST_USERS = 3
CONTROL_PORT = 8910
FIRST_STREAM_S = 10.0  # what a peer has to say what a session, and a stream, are for
FRAMES = 20_000  # of one hostile session
SESSIONS = 3  # that attack at the same time


@pytest.fixture
def echo_tunnel(tunnels: Tunnels) -> Iterator[Tunnel]:
    tunnel = Tunnel(tunnels, echo)
    yield tunnel
    tunnel.service.stop()


# ---- servers that do not multiplex -------------------------------------------------------------------------


def told_with(tunnels: Tunnels, serve: Callable[[socket.socket], None], *args: str) -> Gnar:
    """Return a client whose server is `serve`, once it has said why it cannot be served."""
    with Service(serve) as server:
        client, _ = tunnels.client(server.port, "-l", "1", *args, wait=False)
        client.wait_log("\n")
        return client


@multiplexed
@pytest.mark.parametrize("end", [socket.socket.close, send_reset], ids=["closes", "resets"])
def test_go_server_without_m_is_told_in_one_line_with_what_to_do(
    tunnels: Tunnels, end: Callable[[socket.socket], None]
) -> None:
    found: list[int] = []

    def go_server(conn: socket.socket) -> None:
        assert isinstance(recv_message(conn), Login)
        found.extend(conn.recv(1))  # where the type of the next packet belongs
        end(conn)

    line = told_with(tunnels, go_server, "--auth", "md5").log.splitlines()[0]
    assert found[0] == 0
    hint = "is it up yet? Is the token wrong? A Go server without -m needs a client without -m"
    assert f"the server hung up at the login ({hint}); trying again in" in line


@multiplexed
def test_server_of_ours_without_the_feature_is_told_in_one_line_with_what_to_do(tunnels: Tunnels) -> None:
    client = told_with(tunnels, lambda conn: own_server(conn, features=(FEATURE_WAIT,)), "--tls", "off")
    assert client.wait_exit() == 1
    (line,) = client.log.splitlines()
    assert "the server does not multiplex: leave -m out" in line


# ---- one connection ----------------------------------------------------------------------------------------


@multiplexed_shared
def test_20_users_and_the_control_connection_share_one_tcp_connection(shared_tunnel: Tunnel) -> None:
    assert ask(shared_tunnel.port) == b"ping"  # the local service's address is known from here on
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(dial(shared_tunnel.port)) for _ in range(20)]
        for number, user in enumerate(users):
            user.sendall(b"%d" % number)
        assert [user.recv(100) for user in users] == [b"%d" % number for number in range(20)]
        assert connections_to(shared_tunnel.client.pid, shared_tunnel.server_port) == 1
        assert shared_tunnel.server.status()["users"] == 20
    shared_tunnel.assert_nothing_left()
    assert connections_to(shared_tunnel.client.pid, shared_tunnel.server_port) == 1


@multiplexed
def test_users_of_several_proxies_of_one_client_are_in_one_session(tunnels: Tunnels) -> None:
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(Service(serve)) for serve in (echo, answer_at_end, echo)]
        server, server_port = tunnels.server()
        ports = [free_port() for _ in services]
        mappings = [f"{service.port}:{port}" for service, port in zip(services, ports, strict=True)]
        client, _ = tunnels.client(server_port, *mappings, wait=False)
        client.wait_log("open at", count=3)
        with ThreadPoolExecutor(9) as pool:
            answers = [*pool.map(ask, ports * 3)]
        assert [answer[:4] for answer in answers] == [b"ping", b"4 75", b"ping"] * 3
        assert [service.served for service in services] == [3, 3, 3]
        with contextlib.ExitStack() as users:
            for port in ports:
                users.enter_context(dial(port)).sendall(b"x")
            wait_until(lambda: [service.served for service in services] == [4, 4, 4], "all are served")
            assert connections_to(client.pid, server_port) == 1
        server.wait_idle(clients=1, proxies=3)


@multiplexed
def test_session_that_dies_ends_its_users_and_the_client_comes_back(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server, server_port = tunnels.server()
        path = Forwarder(server_port)
        client, port = tunnels.client(path.port, "-l", str(service.port), "-r", str(free_port()))
        with contextlib.ExitStack() as stack:
            users = [stack.enter_context(dial(port)) for _ in range(5)]
            for user in users:
                user.sendall(b"x")
                assert user.recv(1) == b"x"
            path.cut()
            for user in users:
                with contextlib.suppress(ConnectionResetError):
                    assert user.recv(1) == b""
        client.wait_log("lost the server")
        client.wait_log("open at", count=2)
        assert ask(port) == b"ping"
        for process in (server, client):
            process.wait_idle()
        assert server.status()["clients"] == 1


@pytest.mark.waits
def test_first_byte_over_a_long_path_takes_one_round_trip(gnar_pyz: Path, tmp_path: Path) -> None:
    modes = {9000: ("--no-multiplex",), 9001: ()}
    with contextlib.ExitStack() as stack:
        near, far = stack.enter_context(long_path(ROUND_TRIP_MS / 2, "THE FIRST BYTE OVER A LONG PATH"))

        def start(host: Host, name: str, *argv: object) -> Program:
            program = Program(host, tmp_path, name, *argv)
            stack.callback(program.kill)
            return program

        start(far, "server", gnar_pyz, "server", CONTROL_PORT).wait_log("listening on")
        start(near, "service", sys.executable, "-c", ECHO)
        address = f"{far.ip}:{CONTROL_PORT}"
        clients = {
            port: start(near, f"client{port}", gnar_pyz, "client", address, f"{SERVICE}:{port}", *mode)
            for port, mode in modes.items()
        }

        def round_trips(port: int) -> float:
            """Return how many round trips a user waits for the first byte; a dial would add two."""
            clients[port].wait_log("open at")
            user = [sys.executable, ROOT / "bench" / "user.py", "first", LOOPBACK, port, FIRST_USERS, 1]
            times_ms: list[float] = json.loads(far.run(user).stdout)["ms"]
            return statistics.median(times_ms) / ROUND_TRIP_MS

        with ThreadPoolExecutor(len(modes)) as pool:
            counts = dict(zip(modes, pool.map(round_trips, modes), strict=True))
    assert all(1 <= count < 2 for count in counts.values()), counts


# ---- hostile peers, after a good login ---------------------------------------------------------------------


def hung_up(conn: socket.socket) -> bytes:
    """Return what comes up to the end of the stream, or nothing if it ends with a reset."""
    with contextlib.suppress(ConnectionResetError):
        return read_all(conn)
    return b""


def garbage(conn: socket.socket) -> None:
    conn.sendall(b"\0" + random.Random(1).randbytes(100_000))  # noqa: S311  (the same every time)
    hung_up(conn)


def words_then_garbage(conn: socket.socket) -> None:
    """Begin a session as it should be, then send garbage."""
    conn.sendall(frame.pack(frame.PING, frame.SYN, 0, 7))
    assert conn.recv(frame.HEADER_BYTES) == frame.pack(frame.PING, frame.ACK, 0, 7)
    garbage(conn)


def huge_frame(conn: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        conn.sendall(frame.pack(frame.DATA, frame.SYN, 1, 0xFFFFFFFF) + b"x" * 1_000_000)
    hung_up(conn)


def huge_window(conn: socket.socket) -> None:
    conn.sendall(frame.pack(frame.WINDOW_UPDATE, frame.SYN, 1, 0xFFFFFFFF))
    conn.sendall(frame.pack(frame.WINDOW_UPDATE, 0, 1, 0xFFFFFFFF))
    hung_up(conn)


def syns(conn: socket.socket) -> None:
    """Open stream after stream, and say nothing on any of them."""
    send_and_read(
        conn, *(frame.pack(frame.WINDOW_UPDATE, frame.SYN, each, 0) for each in range(1, 2 * FRAMES, 2))
    )


def half_words(conn: socket.socket) -> None:
    """Open stream after stream, and begin a message on each of them."""
    frames = (frame.pack(frame.DATA, frame.SYN, each, 2) + b"\x06\0" for each in range(1, FRAMES, 2))
    send_and_read(conn, *frames)


def resets(conn: socket.socket) -> None:
    """Open streams with the beginning of a message, and reset each at once."""
    for_each = (
        (
            frame.pack(frame.DATA, frame.SYN, each, 1) + b"\x06",
            frame.pack(frame.WINDOW_UPDATE, frame.RST, each, 0),
        )
        for each in range(1, FRAMES, 2)
    )
    send_and_read(conn, *itertools.chain.from_iterable(for_each))


def small_frames(conn: socket.socket) -> None:
    """Send as many frames in as few bytes as possible: grants for a stream, and pings."""
    open_one = frame.pack(frame.WINDOW_UPDATE, frame.SYN, 1, 0)
    pair = frame.pack(frame.WINDOW_UPDATE, 0, 1, 1) + frame.pack(frame.PING, frame.SYN, 0, 1)
    send_and_read(conn, open_one, pair * FRAMES)


def send_and_read(conn: socket.socket, *frames: bytes) -> None:
    """Send frames in one go, and read what comes until the end of the session."""
    reader = threading.Thread(target=hung_up, args=(conn,))
    reader.start()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        conn.sendall(b"".join(frames))
        conn.shutdown(socket.SHUT_WR)
    reader.join(WAIT_S)
    assert not reader.is_alive()


@multiplexed_shared
@pytest.mark.parametrize(
    "attack",
    [garbage, words_then_garbage, huge_frame, huge_window, syns, half_words, resets, small_frames],
)
def test_hostile_session_is_ended_and_harms_nobody(
    shared_tunnel: Tunnel, attack: Callable[[socket.socket], None]
) -> None:
    bounds = Bounds(worst_s=0.1, p99_s=0.02, grown_mib=8)
    with (
        uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client, bounds=bounds),
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(SESSIONS) as pool,
    ):
        attackers = [stack.enter_context(own_client(shared_tunnel.server_port)) for _ in range(SESSIONS)]
        for done in [pool.submit(attack, attacker) for attacker in attackers]:
            done.result()
    assert ask(shared_tunnel.port) == b"ping"
    shared_tunnel.assert_nothing_left()
    assert shared_tunnel.server.status()["clients"] == 1


def ends_after(conn: socket.socket, is_over: Callable[[bytes], bool]) -> float:
    """Read until `is_over(data)` holds or the stream ends, and return the seconds that took."""
    conn.settimeout(3 * FIRST_STREAM_S)
    began, heard = time.monotonic(), b""
    while not is_over(heard):
        part = conn.recv(65536)
        heard += part
        if not part:
            break
    return time.monotonic() - began


@pytest.mark.waits
@multiplexed_shared
def test_session_without_a_stream_and_stream_without_a_word_are_closed_after_10_s(
    shared_tunnel: Tunnel,
) -> None:
    server_port, port = shared_tunnel.server_port, free_port()
    request = to_frame(ProxyReq(port, "other", "", "tcp"))
    rst = frame.pack(frame.WINDOW_UPDATE, frame.RST | frame.ACK, 3, 0)
    with own_client(server_port) as idle, own_client(server_port) as silent, own_client(server_port) as other:
        idle.sendall(frame.pack(frame.PING, frame.SYN, 0, 1))
        silent.sendall(frame.pack(frame.WINDOW_UPDATE, frame.SYN, 1, 0))
        other.sendall(frame.pack(frame.DATA, frame.SYN, 1, len(request)) + request)
        wait_until(lambda: is_open(port), "the other client's proxy is open")
        other.sendall(frame.pack(frame.WINDOW_UPDATE, frame.SYN, 3, 0))
        beats = threading.Event()
        keep = threading.Thread(target=keep_heard, args=(other, beats))
        keep.start()
        with ThreadPoolExecutor(3) as pool:
            waits = [
                pool.submit(ends_after, idle, lambda _: False),
                pool.submit(ends_after, silent, lambda _: False),
                pool.submit(ends_after, other, lambda heard: rst in heard),
            ]
            assert ask(shared_tunnel.port) == b"ping"
            took_s = [wait.result() for wait in waits]
        assert all(FIRST_STREAM_S / 2 < seconds < FIRST_STREAM_S * 2 for seconds in took_s), took_s
        assert is_open(port)  # the stream alone is gone
        beats.set()
        keep.join(WAIT_S)
    assert ask(shared_tunnel.port) == b"ping"


def keep_heard(conn: socket.socket, ended: threading.Event) -> None:
    """Send a heartbeat each second, as a client of ours does."""
    beat = b"\x02\x00\x02{}"
    while not ended.wait(1):
        conn.sendall(frame.pack(frame.DATA, 0, 1, len(beat)) + beat)
