"""Users who stop reading and users who leave at once: what they cost, and what is left afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gnar_lib.proto.numbers import MAX_WAITING
from gnar_lib.server.upstream.waiting import MIN_WAITING
from gnar_lib.yamux.window import MAX_WINDOW_BYTES
from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.client_file import write_proxies
from tests.helpers.harness import (
    Forwarder,
    Gnar,
    Service,
    Tunnel,
    Tunnels,
    ask,
    connections_to,
    dial,
    echo,
    free_port,
    is_open,
    send_reset,
    wait_until,
)

MIB = 1 << 20
STOP_S = 10.0
# What a user who stops reading costs, in server and client together. Multiplexed, the server holds besides
# what the stream's window allows, and that has grown if the path seemed to want it.
COST_KIB = {"plain": 4096, "multiplexed": 4096 + MAX_WINDOW_BYTES // 1024}
PIECES = 64  # of 1 MiB
BEFORE_STOP = 8 * MIB
HASTY_USERS = 500
READING_NOTHING = 20
MODES: dict[str, tuple[str, ...]] = {"plain": ("--no-multiplex",), "multiplexed": ("-m",)}


def pss_kib(*processes: Gnar) -> int:
    """Return the proportional set size of some processes together, in KiB: shared pages count in parts."""
    rollups = [Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in processes]
    lines = [line for text in rollups for line in text.splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Download:
    """A service that sends 64 MiB, no two of them alike, to a user who says "d"; it echoes all else."""

    def __init__(self) -> None:
        self._piece = os.urandom(MIB)
        digest = hashlib.sha256()
        for number in range(PIECES):
            digest.update(self._numbered(number))
        self.hash = digest.hexdigest()

    def _numbered(self, number: int) -> bytes:
        return b"%08d" % number + self._piece[8:]

    def serve(self, conn: socket.socket) -> None:
        first = conn.recv(1)
        if first != b"d":
            conn.sendall(first)
            echo(conn)
            return
        for number in range(PIECES):
            conn.sendall(self._numbered(number))


def hash_of_rest(user: socket.socket, digest: hashlib._Hash) -> str:
    buffer = bytearray(MIB)
    while count := user.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def cost_of_a_stop(tunnel: Tunnel, download: Download) -> int:
    """Download with a stop in the middle; return the KiB by which server and client grew together."""
    with dial(tunnel.port) as user:  # what any first user costs is not the cost of this one
        user.sendall(b"d")
        assert hash_of_rest(user, hashlib.sha256()) == download.hash
    tunnel.assert_nothing_left()
    before_kib = pss_kib(tunnel.server, tunnel.client)
    most_kib = before_kib
    with uninvolved_user(tunnel.port, tunnel.server, tunnel.client), dial(tunnel.port) as user:
        user.sendall(b"d")
        digest, count = hashlib.sha256(), 0
        while count < BEFORE_STOP:
            part = user.recv(65536)
            digest.update(part)
            count += len(part)
        go_on = threading.Event()
        end = time.monotonic() + STOP_S
        while time.monotonic() < end:
            most_kib = max(most_kib, pss_kib(tunnel.server, tunnel.client))
            go_on.wait(0.5)
        assert hash_of_rest(user, digest) == download.hash
    tunnel.assert_nothing_left()
    return most_kib - before_kib


@pytest.mark.slow
@pytest.mark.waits
def test_reader_that_stops_for_ten_seconds_costs_little_and_gets_the_rest(
    gnar_pyz: Path, tmp_path: Path
) -> None:
    download = Download()
    started = {mode: Tunnels(gnar_pyz, tmp_path / mode, flags) for mode, flags in MODES.items()}
    with contextlib.ExitStack() as stack:
        for tunnels in started.values():
            stack.callback(lambda each: each.close(failed=False), tunnels)
        pairs = [Tunnel(tunnels, download.serve) for tunnels in started.values()]
        for tunnel in pairs:
            stack.callback(tunnel.service.stop)
        with ThreadPoolExecutor(len(pairs)) as pool:
            costs = [*pool.map(lambda tunnel: cost_of_a_stop(tunnel, download), pairs)]
    found = dict(zip(MODES, costs, strict=True))
    assert all(cost < COST_KIB[mode] for mode, cost in found.items()), found


def test_users_who_read_nothing_cost_other_users_nothing(tunnels: Tunnels) -> None:
    download = Download()
    tunnel = Tunnel(tunnels, download.serve)
    with (
        uninvolved_user(tunnel.port, tunnel.server, tunnel.client) as bystander,
        contextlib.ExitStack() as stack,
    ):
        users = [stack.enter_context(dial(tunnel.port)) for _ in range(READING_NOTHING)]
        for user in users:
            user.sendall(b"d")
        for user in users:
            assert user.recv(1, socket.MSG_PEEK) == b"0"  # the download has begun
        echoes = bystander.echoes
        wait_until(lambda: bystander.echoes > echoes + 50, "the bystander is served")
    tunnel.assert_nothing_left()
    tunnel.service.stop()


# ---- users who come and leave while connections wait -------------------------------------------------------


def both_have(server: Gnar, client: Gnar, waiting: int) -> None:
    """Wait until both ends have this many data connections that wait."""
    for process in (server, client):
        process.wait_idle(waiting=waiting)


@pytest.fixture
def echo_tunnel(tunnels: Tunnels) -> Iterator[Tunnel]:
    tunnel = Tunnel(tunnels, echo)
    yield tunnel
    tunnel.service.stop()


def test_500_users_who_leave_at_once_leave_nothing_and_as_many_wait_as_before(
    echo_tunnel: Tunnel, tunnels: Tunnels
) -> None:
    bounds = Bounds(grown_fds=2 * HASTY_USERS)
    with uninvolved_user(echo_tunnel.port, echo_tunnel.server, echo_tunnel.client, bounds=bounds):
        for number in range(HASTY_USERS):
            user = dial(echo_tunnel.port)
            if number % 2:
                user.sendall(b"x")
            if number % 3:
                user.close()
            else:
                send_reset(user)
    echo_tunnel.assert_nothing_left()
    wanted = 0 if tunnels.multiplexes else MAX_WAITING  # a busy second is remembered for a minute
    both_have(echo_tunnel.server, echo_tunnel.client, wanted)
    assert ask(echo_tunnel.port) == b"ping"


# ---- the end of those that wait ----------------------------------------------------------------------------

plain = pytest.mark.parametrize("tunnels", [("--no-multiplex",)], ids=["plain"], indirect=True)


@plain
def test_waiting_connections_end_with_their_control_connection(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server, server_port = tunnels.server()
        path = Forwarder(server_port)
        client, port = tunnels.client(path.port, "-l", str(service.port), "-r", str(free_port()))
        both_have(server, client, MIN_WAITING)
        before = path.legs
        assert len(before) == 1 + MIN_WAITING
        path.cut(1)
        client.wait_log("open at", count=2)
        wait_until(lambda: all(far.fileno() < 0 for _, far in before), "the old ones have ended")
        both_have(server, client, MIN_WAITING)
        assert connections_to(client.pid, path.port) == 1 + MIN_WAITING
        assert ask(port) == b"ping"


@plain
def test_server_that_went_away_leaves_none_waiting_in_the_client(echo_tunnel: Tunnel) -> None:
    client = echo_tunnel.client
    assert client.status()["waiting"] == MIN_WAITING
    echo_tunnel.server.kill()
    client.wait_log("trying again in")
    client.wait_idle(waiting=0)
    assert connections_to(client.pid, echo_tunnel.server_port) == 0


@plain
def test_reload_that_removes_the_last_proxy_ends_those_that_wait_for_it(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    config, (old, new) = tmp_path / "client.toml", (free_port(), free_port())

    with Service(echo) as service:
        server, server_port = tunnels.server()
        path = Forwarder(server_port)
        write_proxies(config, service, {"old": old})
        client, _ = tunnels.client(path.port, "-c", str(config))
        both_have(server, client, MIN_WAITING)
        before = path.legs
        write_proxies(config, service, {"new": new})
        client.signal(signal.SIGHUP)
        client.wait_log(r"\[new\] open at")
        assert not is_open(old)
        wait_until(lambda: all(far.fileno() < 0 for _, far in before[1:]), "the old ones have ended")
        both_have(server, client, MIN_WAITING)
        assert connections_to(client.pid, path.port) == 1 + MIN_WAITING
        assert ask(new) == b"ping"
