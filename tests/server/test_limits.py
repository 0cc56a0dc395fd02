"""What users may have of a server: never all of its descriptors, and not more places than its limits say."""

from __future__ import annotations

import socket
import time

import pytest

from gnar_lib.net import SocketConn, descriptors, dial
from gnar_lib.server import control as control_module
from tests.helpers.budget import room_for
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import LOOPBACK, Running, serving


def user_of(port: int) -> SocketConn:
    return dial(socket.AF_INET, (LOOPBACK, port))


def conn_map(running: Running) -> int:
    return len(running.server.shared.conn_map)


def test_clients_log_in_while_users_have_used_up_their_descriptors_and_who_left_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.02)
    with serving() as running:
        silent, port = running.log_in("silent")  # brings nobody a data connection
        room_for(monkeypatch, 20 + 2 * 40)  # this process has both ends of each of the 40 users
        users = [user_of(port) for _ in range(40)]
        wait_until(lambda: descriptors.is_short, "users wait")
        waiting = conn_map(running)
        assert 10 <= waiting < 40
        began_s = time.monotonic()
        other, other_port = running.log_in("other")
        for user in users:
            user.close()
        wait_until(
            lambda: conn_map(running) == 0 and not descriptors.is_short, "who has left is not waited for"
        )
        assert time.monotonic() - began_s < 5
        user = user_of(other_port)
        wait_until(lambda: conn_map(running) == 1, "the next user is accepted")
        for conn in (user, silent, other):
            conn.close()
    turn()
    assert descriptors.promised == 0
