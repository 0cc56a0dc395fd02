"""Places with several addresses, some of which lead nowhere (Happy Eyeballs, RFC 8305)."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib.errors import RefusedError, UnreachableError
from gnar_lib.net import Listener, Sockaddr, busy_greenlets, dial, listen
from gnar_lib.net.conn import socket_class
from gnar_lib.net.dialling import MOST_AT_ONCE, DialSettings, Race
from gnar_lib.net.target import Target
from tests.helpers.conns import LOOPBACK, V4, blackhole, listening_on_v6_alone
from tests.helpers.descriptors import descriptors_of_this_process
from tests.helpers.loop import wait_until

SECOND_ADDRESS_S = 3.0  # no user waits longer for it


@pytest.fixture
def alive() -> Iterator[Listener]:
    listener = listen(LOOPBACK, 0)
    yield listener
    listener.close()


@pytest.fixture
def hole() -> Iterator[Sockaddr]:
    with blackhole() as address:
        yield address


@pytest.fixture
def dead() -> Sockaddr:
    """Return an address that refuses."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return tuple(sock.getsockname())


def known_as(monkeypatch: pytest.MonkeyPatch, *found: Sockaddr) -> Target:
    """Return a target whose name has these addresses."""
    monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: [(V4, address) for address in found])
    return Target("name.example", 1)


def test_user_does_not_wait_for_an_address_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, hole: Sockaddr, alive: Listener
) -> None:
    target = known_as(monkeypatch, hole, alive.sock.getsockname())
    began = time.monotonic()
    conn = target.dial()
    assert time.monotonic() - began < SECOND_ADDRESS_S
    assert conn.getpeername() == alive.sock.getsockname()
    conn.close()


def test_address_that_worked_is_tried_first_also_after_another_look_up(
    monkeypatch: pytest.MonkeyPatch, hole: Sockaddr, alive: Listener
) -> None:
    target = known_as(monkeypatch, hole, alive.sock.getsockname())
    target.dial().close()
    monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 1000.0)
    target.dial().close()
    target.look_up()
    target.dial().close()


def test_address_that_refuses_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, dead: Sockaddr, alive: Listener
) -> None:
    monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 1000.0)
    known_as(monkeypatch, dead, alive.sock.getsockname()).dial().close()


@pytest.mark.parametrize("others", [0, 1])
def test_nobody_who_listens_is_not_taken_for_the_dialling_socket_itself(
    monkeypatch: pytest.MonkeyPatch, dead: Sockaddr, others: int
) -> None:
    """Now and then the kernel dials a port of this host from this very port, and connects."""

    def from_the_same_port(family: int, kind: int) -> socket.socket:
        sock = socket_class(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(dead)
        return sock

    with monkeypatch.context() as patch:
        patch.setattr("gnar_lib.net.dialling.socket_class", from_the_same_port)
        with pytest.raises(RefusedError, match="Connection refused"):
            known_as(patch, dead, *[dead] * others).dial()
        with pytest.raises(RefusedError, match="Connection refused"):
            dial(V4, dead)
    listen(LOOPBACK, int(dead[1])).close()  # nothing holds the port


def test_attempts_can_be_added_to_those_under_way(hole: Sockaddr, alive: Listener) -> None:
    with Race() as race:
        assert race.run([(V4, hole)], 0.0) is None
        conn = race.run([(V4, alive.sock.getsockname())], 10.0)
        assert conn is not None
        conn.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
def test_race_leaves_neither_greenlet_nor_descriptor(
    monkeypatch: pytest.MonkeyPatch, hole: Sockaddr, alive: Listener
) -> None:
    monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 0.01)
    target = known_as(monkeypatch, hole, hole, alive.sock.getsockname())
    target.look_up()
    files, greenlets = descriptors_of_this_process(), busy_greenlets()
    conn = target.dial()
    assert busy_greenlets() <= greenlets
    conn.close()
    assert descriptors_of_this_process() <= files


def test_user_who_is_ended_leaves_no_attempt_behind(monkeypatch: pytest.MonkeyPatch, hole: Sockaddr) -> None:
    monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 0.01)
    races: list[Race] = []

    def enter(self: Race) -> Race:
        races.append(self)
        return self

    monkeypatch.setattr(Race, "__enter__", enter)
    dialling = gevent.spawn(known_as(monkeypatch, hole, hole).dial)
    wait_until(lambda: races and len(races[0]._under_way) == 2, "both attempts are under way")
    dialling.kill()
    assert all(conn.closed for conn in races[0]._under_way)


def test_attempts_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch, hole: Sockaddr) -> None:
    monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 0.0)
    with Race(DialSettings(timeout_s=0.1)) as race:
        assert race.run([(V4, hole)] * (MOST_AT_ONCE + 5), 0.0) is None
        assert len(race._under_way) == MOST_AT_ONCE


def test_name_whose_address_is_silent_is_looked_up_at_once(
    monkeypatch: pytest.MonkeyPatch, hole: Sockaddr, alive: Listener
) -> None:
    monkeypatch.setattr("gnar_lib.net.place.LOOK_UP_PAUSE_S", 0.0)
    monkeypatch.setattr("gnar_lib.net.target.SILENCE_S", 0.01)
    target = known_as(monkeypatch, hole)
    target.look_up()
    moved = alive.sock.getsockname()
    monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: [(V4, moved)])
    began = time.monotonic()
    conn = target.dial()
    assert time.monotonic() - began < SECOND_ADDRESS_S
    assert conn.getpeername() == moved
    conn.close()


def test_error_names_every_address_and_the_most_telling_reason(
    monkeypatch: pytest.MonkeyPatch, hole: Sockaddr, dead: Sockaddr
) -> None:
    monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 0.0)
    with Race(DialSettings(timeout_s=0.05)) as race:
        race.run([(V4, hole), (V4, dead)], 10.0)
        error = race.error()
    assert type(error) is RefusedError
    assert str(error) == (
        f"cannot connect to {LOOPBACK}:{dead[1]}: Connection refused; "
        f"{LOOPBACK}:{hole[1]}: connecting took longer than 0.05 s"
    )


def test_what_this_machine_lacks_is_not_told_if_a_peer_has_refused(dead: Sockaddr) -> None:
    with Race() as race:
        race.run([(V4, dead), (V4, ("no address", 1)), (V4, dead)], 10.0)
        where = re.escape(f"{LOOPBACK}:{dead[1]}")
        with pytest.raises(
            RefusedError, match=f"^cannot connect to {where} and {where}: Connection refused$"
        ):
            raise race.error()


def test_silence_is_the_networks_error(hole: Sockaddr) -> None:
    with Race(DialSettings(timeout_s=0.01)) as race:
        assert race.run([(V4, hole)], 10.0) is None
        assert type(race.error()) is UnreachableError


def test_service_on_v6_alone_is_found_on_this_machine() -> None:
    with listening_on_v6_alone() as listener:
        target = Target("", listener.port)
        conn = target.dial()
        assert conn.getpeername()[0] == "::1"
        conn.close()
    with pytest.raises(RefusedError, match=r"\[::1\]:\d+ and 127\.0\.0\.1:\d+: Connection refused"):
        target.dial()
