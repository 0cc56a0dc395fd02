"""One direction of a connection ends before the other, the service speaks first, or the user resets."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading

from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Tunnel,
    Tunnels,
    answer_at_end,
    dial,
    greet,
    read_all,
    send_reset,
    wait_until,
)

MIB = 1 << 20


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
