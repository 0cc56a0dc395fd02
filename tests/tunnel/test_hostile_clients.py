"""What a client with the token, and the users of such a client, may do to the server and to other users."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from gnar_lib.proto import Heartbeat, ProxyCancel, ProxyReq, ProxyResp, to_frame
from gnar_lib.yamux import frame
from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.harness import WAIT_S, Tunnel, ask, dial, free_port, is_open, wait_until
from tests.peers.plain import MuxPeer, go_client, own_client, recv_message

ROOT = Path(__file__).resolve().parent.parent.parent
REQUESTS = 600
HEARTBEATS = 20_000
ATTACKERS = 50
USERS_NOT_ACCEPTED = 100
PROMPT = Bounds(worst_s=0.1, p99_s=0.02, grown_fds=REQUESTS + 64)  # a tenth of that is usual


def test_client_that_asks_for_many_ports_at_once_holds_nobody_up(shared_tunnel: Tunnel) -> None:
    requests = b"".join(to_frame(ProxyReq(0, f"p{number}", "", "tcp")) for number in range(REQUESTS))
    with (
        uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client, bounds=PROMPT),
        own_client(shared_tunnel.server_port) as attacker,
    ):
        attacker.sendall(requests)
        for _ in range(REQUESTS):
            answer = recv_message(attacker)
            assert isinstance(answer, ProxyResp)
            assert answer.status == "success"
    shared_tunnel.server.wait_idle(clients=1, proxies=1)


def test_client_that_opens_and_cancels_without_end_holds_nobody_up(shared_tunnel: Tunnel) -> None:
    port = free_port()
    pair = to_frame(ProxyReq(port, "again", "", "tcp")) + to_frame(ProxyCancel("again", port))
    with (
        uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client, bounds=PROMPT),
        own_client(shared_tunnel.server_port) as attacker,
    ):
        attacker.sendall(pair * REQUESTS)
        for _ in range(REQUESTS):
            answer = recv_message(attacker)
            assert isinstance(answer, ProxyResp)
            assert answer.status == "success"
    shared_tunnel.server.wait_idle(clients=1, proxies=1)
    assert not is_open(port)


def test_flood_of_heartbeats_holds_nobody_up(shared_tunnel: Tunnel) -> None:
    with uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client, bounds=PROMPT):
        with go_client(shared_tunnel.server_port, free_port()) as attacker, drained(attacker):
            attacker.sendall(to_frame(Heartbeat()) * HEARTBEATS)
        wait_until(
            lambda: shared_tunnel.server.status()["clients"] == 1, "all heartbeats have had their turn"
        )
    shared_tunnel.server.wait_idle(clients=1, proxies=1)


def test_floods_on_many_connections_at_once_hold_nobody_up(shared_tunnel: Tunnel) -> None:
    numbers = (shared_tunnel.server_port, ATTACKERS, HEARTBEATS // ATTACKERS)
    command = [sys.executable, "-m", "tests.peers.flood", *map(str, numbers)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as flood:
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "ready\n"
            with uninvolved_user(
                shared_tunnel.port, shared_tunnel.server, shared_tunnel.client, bounds=PROMPT
            ):
                flood.communicate("\n", WAIT_S)
            assert flood.returncode == 0
        finally:
            flood.kill()
    shared_tunnel.server.wait_idle(clients=1, proxies=1)


@contextlib.contextmanager
def drained(conn: socket.socket) -> Iterator[None]:
    """Read what comes on a connection in a thread; shuts the connection down behind the block."""

    def read() -> None:
        with contextlib.suppress(OSError):
            while conn.recv(1 << 16):
                pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            conn.shutdown(socket.SHUT_RDWR)
        reader.join(WAIT_S)
    assert not reader.is_alive()


def test_users_of_a_client_that_accepts_no_stream_cost_other_users_nothing(shared_tunnel: Tunnel) -> None:
    port = free_port()
    request = to_frame(ProxyReq(port, "deaf", "", "tcp"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(uninvolved_user(shared_tunnel.port, shared_tunnel.server, shared_tunnel.client))
        attacker = stack.enter_context(own_client(shared_tunnel.server_port))
        peer = MuxPeer(attacker)
        peer.send(1, request, frame.SYN)
        peer.recv_packet(1)
        for _ in range(USERS_NOT_ACCEPTED):
            stack.enter_context(dial(port)).sendall(b"anybody?")
        wait_until(
            lambda: shared_tunnel.server.status()["users"] == USERS_NOT_ACCEPTED + 1,
            "the server has them all",
        )
        assert ask(shared_tunnel.port) == b"ping"
    shared_tunnel.server.wait_idle(clients=1, proxies=1)
