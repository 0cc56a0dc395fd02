"""Addresses have an age: names are looked up again, and whoever comes then gets the new addresses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import gevent
import pytest

from gnar_lib.errors import DialError
from gnar_lib.net import Sockaddr
from gnar_lib.net import place as place_module
from gnar_lib.net.place import Place
from tests.helpers.loop import turn, wait_until

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
OLD, NEW = ("192.0.2.1", 80), ("192.0.2.2", 80)


class Names:
    """Stands in for DNS."""

    def __init__(self) -> None:
        self.addresses: list[tuple[int, Sockaddr]] = [(V4, OLD)]
        self.asked = 0
        self.before_answer: Callable[[], None] = lambda: None

    def resolve(self, *_: object) -> list[tuple[int, Sockaddr]]:
        self.asked += 1
        self.before_answer()
        return [*self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(place_module, "resolve", made.resolve)
    return made


def known(host: str = "name.example") -> Place:
    """Return a place that has been looked up."""
    place = Place(host, 80, socket.SOCK_STREAM)
    place.look_up()
    return place


def test_address_in_use_is_looked_up_again_after_30_s_and_the_next_user_gets_the_new_one(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = known()
    names.addresses = [(V4, NEW)]
    for _ in range(3):
        assert place.addresses() == [(V4, OLD)]
    turn()
    assert names.asked == 1
    monkeypatch.setattr(place_module, "MAX_AGE_S", -1.0)
    assert place.addresses() == [(V4, OLD)]
    monkeypatch.undo()
    monkeypatch.setattr(place_module, "resolve", names.resolve)
    wait_until(lambda: place.addresses() == [(V4, NEW)], "the new address is known")
    assert names.asked == 2


def test_address_that_nobody_has_used_for_long_is_asked_for_first(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = known()
    names.addresses = [(V4, NEW)]
    monkeypatch.setattr(place_module, "MAX_AGE_S", -1.0)
    monkeypatch.setattr(place_module, "STALE_S", -1.0)
    assert place.addresses() == [(V4, NEW)]


def test_old_address_is_used_while_dns_is_away(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DialError("DNS is away")

    monkeypatch.setattr(place_module, "MAX_AGE_S", -1.0)
    monkeypatch.setattr(place_module, "STALE_S", -1.0)
    place = known()
    names.before_answer = fail
    assert place.addresses() == [(V4, OLD)]
    assert names.asked == 2


def test_dns_that_hangs_holds_a_user_up_for_a_moment_and_the_next_not_at_all(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_module, "LOOK_UP_WAIT_S", 0.01)
    place = known()
    names.before_answer = lambda: gevent.sleep(1000)
    monkeypatch.setattr(place, "_looked_up_s", time.monotonic() - 1000)
    assert place.addresses() == [(V4, OLD)]
    monkeypatch.setattr(place_module, "LOOK_UP_WAIT_S", 1000.0)
    assert place.addresses() == [(V4, OLD)]
    assert names.asked == 2
    place._crew.kill()
    turn()


def test_name_whose_addresses_fail_is_looked_up_once_a_second(names: Names) -> None:
    place = known()
    for _ in range(3):
        place.look_up_again()
    assert names.asked == 1


def test_ip_address_is_never_looked_up_again(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_AGE_S", "STALE_S", "LOOK_UP_PAUSE_S"):
        monkeypatch.setattr(place_module, name, -1.0)
    for host in (OLD[0], "2001:db8::1"):
        place = known(host)
        place.addresses()
        place.look_up_again()
    assert names.asked == 2


def test_families_take_turns(names: Names) -> None:
    v6: list[tuple[int, Sockaddr]] = [(V6, (f"2001:db8::{index}", 80, 0, 0)) for index in range(3)]
    names.addresses = [*v6, (V4, OLD), (V4, NEW)]
    assert known().known == [v6[0], (V4, OLD), v6[1], (V4, NEW), v6[2]]


def test_this_machine_is_its_v4_address_and_then_its_v6_address() -> None:
    assert known("").addresses() == [(V4, ("127.0.0.1", 80)), (V6, ("::1", 80))]


def test_address_that_is_put_last_comes_after_all_others(names: Names) -> None:
    third = ("192.0.2.3", 80)
    names.addresses = [(V4, OLD), (V4, NEW), (V4, third)]
    place = known()
    firsts = []
    for _ in range(4):
        firsts.append(place.known[0][1])
        place.put_last(place.known[0][1])
    assert firsts == [OLD, NEW, third, OLD]
