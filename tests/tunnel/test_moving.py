"""Bulk that has moved to a connection of its own, from outside: whoever is replaced or killed meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import socket

import pytest

from tests.helpers.harness import Service, Tunnels, connections_to, dial, wait_until

MIB = 1 << 20
TOTAL_BYTES = 48 * MIB  # more than all buffers on the way hold
DATA = os.urandom(MIB)


def download(conn: socket.socket) -> None:
    conn.recv(1)
    for _ in range(TOTAL_BYTES // MIB):
        conn.sendall(DATA)
    conn.shutdown(socket.SHUT_WR)
    conn.recv(1)


def read(sock: socket.socket, count: int, digest: hashlib._Hash) -> int:
    """Read so many bytes, or to the end, and return how many came."""
    left = count
    while left and (data := sock.recv(min(left, MIB))):
        digest.update(data)
        left -= len(data)
    return count - left


def whole() -> str:
    digest = hashlib.sha256()
    for _ in range(TOTAL_BYTES // MIB):
        digest.update(DATA)
    return digest.hexdigest()


def start_download(user: socket.socket, digest: hashlib._Hash, client_pid: int, server_port: int) -> None:
    """Ask for the download, and read until it has a connection of its own between client and server."""
    user.sendall(b"x")
    read(user, MIB, digest)
    wait_until(lambda: connections_to(client_pid, server_port) == 2, "it has a connection of its own")
    read(user, 8 * MIB, digest)


def test_download_goes_on_while_the_server_is_replaced_and_its_client_is_stopped(
    default_tunnels: Tunnels,
) -> None:
    with Service(download) as service:
        old, server_port = default_tunnels.server()
        client, port = default_tunnels.client(server_port, "-l", str(service.port), "-r", "0")
        digest = hashlib.sha256()
        with dial(port) as user:
            start_download(user, digest, client.pid, server_port)
            default_tunnels.server("--replace", port=server_port)
            client.wait_log("open at", count=2)
            read(user, 8 * MIB, digest)
            client.signal(signal.SIGTERM)
            client.wait_log("waiting up to")
            read(user, TOTAL_BYTES, digest)
            user.sendall(b"x")
        assert digest.hexdigest() == whole()
        assert client.wait_exit() == 0
        assert old.wait_exit() == 0


@pytest.mark.parametrize("who", ["client", "server"])
def test_half_a_file_does_not_pass_for_the_whole_when_an_end_is_killed(
    who: str, default_tunnels: Tunnels
) -> None:
    failed: list[OSError] = []

    def serve(conn: socket.socket) -> None:
        try:
            download(conn)
        except OSError as exc:
            failed.append(exc)

    with Service(serve) as service:
        server, server_port = default_tunnels.server()
        client, port = default_tunnels.client(server_port, "-l", str(service.port), "-r", "0")
        digest = hashlib.sha256()
        with dial(port) as user:
            start_download(user, digest, client.pid, server_port)
            if who == "client":
                client.kill()
                with pytest.raises(ConnectionResetError):
                    read(user, TOTAL_BYTES, digest)
            else:
                server.kill()
            wait_until(lambda: bool(failed), "the service has heard of it")
