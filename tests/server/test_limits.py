"""What users may have of a server: never all of its descriptors, and not more places than its limits say."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import ConnError
from gnar_lib.events import UserRefused, subscribe, unsubscribe
from gnar_lib.net import SocketConn, descriptors, dial
from gnar_lib.net.datagram import pack_address
from gnar_lib.proto import ProxyReq
from gnar_lib.server import control as control_module
from gnar_lib.server import udp_users
from gnar_lib.server.places import UserLimits
from gnar_lib.server.udp_proxy import UdpProxy
from gnar_lib.server.upstream import ondemand
from tests.helpers.budget import room_for
from tests.helpers.logins import TOKEN
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, serving


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


# ---- places ------------------------------------------------------------------------------------------------


@pytest.fixture
def refusals() -> Iterator[list[UserRefused]]:
    seen: list[UserRefused] = []
    subscribe(UserRefused, seen.append)
    yield seen
    unsubscribe(UserRefused, seen.append)


def open_proxy(running: Running, name: str, kind: str = "tcp", **limits: Any) -> tuple[ControlConn, int]:
    """Log in and open a proxy with these limits; return the control connection and the port."""
    control = ControlConn.dial(
        ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False), name
    )
    control.log_in(ProxyReq(0, name, "", kind, **limits))
    assert control.limits_users
    return control, answer_of(control.conn).remote_port


def is_refused(user: SocketConn) -> bool:
    with pytest.raises(ConnError, match="reset"):
        user.recv(1)
    user.close()
    return True


@pytest.mark.parametrize(
    ("settings", "limits", "reason"),
    [
        ({"max_users": 3}, {}, "this server has 3 users already (max-users)"),
        ({}, {"max_users": 3}, "proxy 'blog' has 3 users already (max-users)"),
        ({"max_users_per_address": 3}, {}, "3 users of that address already (max-users-per-address)"),
        ({}, {"max_users_per_address": 3}, "3 users of that address already (max-users-per-address)"),
    ],
    ids=["server", "proxy", "address at the server", "address at the proxy"],
)
def test_a_user_too_many_is_reset_until_another_has_left(
    settings: dict[str, Any],
    limits: dict[str, Any],
    reason: str,
    refusals: list[UserRefused],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_module, "TICK_S", 0.02)
    monkeypatch.setattr(ondemand, "HALF_CLOSED_WAIT_S", 0.0)
    with serving(**settings) as running:
        control, port = open_proxy(running, "blog", **limits)
        users = [user_of(port) for _ in range(3)]
        wait_until(lambda: conn_map(running) == 3, "three users wait for data connections")
        assert is_refused(user_of(port))
        assert [refusal.reason.endswith(reason) for refusal in refusals] == [True]
        assert (refusals[0].proxy, refusals[0].kind) == ("blog", "tcp")
        users.pop().abort()
        wait_until(lambda: conn_map(running) == 2, "one has left")
        turn()
        users.append(user_of(port))
        wait_until(lambda: conn_map(running) == 3, "another is taken")
        for conn in users:
            conn.close()
        control.close()
    turn()
    assert running.server.shared.places.taken == 0


def test_users_of_udp_take_places_while_they_send(
    monkeypatch: pytest.MonkeyPatch, refusals: list[UserRefused]
) -> None:
    monkeypatch.setattr(udp_users, "RECENT_S", 0.05)
    with serving(max_users=2) as running:
        control, port = open_proxy(running, "dns", "udp")
        assert port
        places = running.server.shared.places
        (running_control,) = running.server.control_ingress.clients
        (ingress,) = running_control.ingresses
        assert isinstance(ingress.proxy, UdpProxy)
        users = ingress.proxy._users
        packed = [pack_address((f"192.0.2.{each}", 4000)) for each in range(1, 4)]
        for _ in range(2):  # they send again after an answer
            assert len(users.admit([(each, b"x") for each in packed[:2]])) == 2
            users.note_answers([(each, b"y") for each in packed])
        assert users.admit([(packed[2], b"x")]) == []
        assert places.taken == 2
        assert {refusal.user[0] for refusal in refusals} == {"192.0.2.3"}
        wait_until(lambda: places.taken == 0, "users who have sent nothing for a while have left")
        assert len(users.admit([(packed[2], b"x")])) == 1
        control.close()
    assert places.taken == 0


def test_datagrams_with_made_up_addresses_keep_no_place_and_are_few() -> None:
    with serving(max_users=50, max_users_per_address=3) as running:
        control, _ = open_proxy(running, "dns", "udp")
        (running_control,) = running.server.control_ingress.clients
        (ingress,) = running_control.ingresses
        assert isinstance(ingress.proxy, UdpProxy)
        strangers = [pack_address((f"10.{each >> 8}.{each & 255}.1", 4000)) for each in range(5000)]
        ingress.proxy._users.admit([(each, b"x") for each in strangers])
        places = running.server.shared.places
        assert places.taken == 50
        assert [places.enter(f"192.0.2.{each}") for each in range(50)] == [""] * 50
        assert places.enter("192.0.2.50") == "this server has 50 users already (max-users)"
        for each in range(50):
            places.leave(f"192.0.2.{each}")
        places.limits = UserLimits(per_address=3)
        ingress.proxy._users.admit([(each, b"x") for each in strangers])
        assert places.taken == udp_users.MAX_USERS
        control.close()
    assert places.taken == 0


def test_a_reload_changes_the_limit_for_users_to_come() -> None:
    with serving() as running:
        control, port = open_proxy(running, "blog")
        users = [user_of(port) for _ in range(3)]
        wait_until(lambda: conn_map(running) == 3, "three users wait")
        running.server.reload(replace(running.server.shared.config, max_users=3))
        assert is_refused(user_of(port))
        assert conn_map(running) == 3
        for conn in users:
            conn.close()
        control.close()
