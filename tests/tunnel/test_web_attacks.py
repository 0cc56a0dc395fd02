"""Users of the HTTP port who mean harm, with real processes: what others notice of them."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.harness import Service, Tunnels, dial, echo, free_port

ATTACKERS = 30
HEAD = b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
TINY = b"1\r\nx\r\n" * 60_000
PROMPT = Bounds(worst_s=0.3, p99_s=0.2, grown_fds=6 * ATTACKERS)  # a quarter of that is usual


def swallow(conn: socket.socket) -> None:
    """Read a chunked body, and answer."""
    tail = b""
    while not tail.endswith(LAST_CHUNK) and (data := conn.recv(1 << 16)):
        tail = (tail + data)[-len(LAST_CHUNK) :]
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_uploads_in_tiny_chunks_hold_nobody_up(multiplexed_tunnels: Tunnels) -> None:
    """Each chunk has to be looked at, so a body of them costs the server more than any other of its size."""
    web_port = free_port()
    with Service(swallow) as victim, Service(echo) as service:
        options = ("--domain", "localhost", "--http-port", str(web_port))
        server, server_port = multiplexed_tunnels.server(*options)
        mapping = f"a={victim.port}"
        web, _ = multiplexed_tunnels.client(server_port, mapping, wait=False)
        web.wait_log(rf"a\.localhost:{web_port}")
        client, port = multiplexed_tunnels.client(server_port, "-l", str(service.port), "-r", "0")

        answers: list[bytes] = []

        def upload() -> None:
            with contextlib.suppress(OSError), dial(web_port) as user:
                user.sendall(HEAD + TINY + LAST_CHUNK)
                answers.append(user.recv(12))

        with uninvolved_user(port, server, client, bounds=PROMPT):
            attackers = [threading.Thread(target=upload) for _ in range(ATTACKERS)]
            for attacker in attackers:
                attacker.start()
            for attacker in attackers:
                attacker.join()
    assert answers == [b"HTTP/1.1 200"] * ATTACKERS
