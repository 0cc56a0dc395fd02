"""The rota: one timer for many members, who come and go."""

from __future__ import annotations

import gevent
import pytest

from gnar_lib.net import rota as rota_module
from gnar_lib.net.rota import Rota
from tests.helpers.loop import turn, wait_until


class Counting:
    """A member that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def tick(self, _now_s: float) -> None:
        self.calls += 1


class Failing(Counting):
    """A member with a defect."""

    def tick(self, now_s: float) -> None:
        super().tick(now_s)
        raise ZeroDivisionError


def test_every_member_is_called_again_and_again() -> None:
    rota = Rota(lambda: 0.01)
    members = [Counting() for _ in range(3 * rota_module.MAX_IN_TURN)]
    for member in members:
        rota.add(member)
    wait_until(lambda: all(member.calls >= 3 for member in members), "all were called")
    calls = [member.calls for member in members]
    assert max(calls) - min(calls) <= 1
    for member in members:
        rota.discard(member)


def test_few_are_called_in_one_turn_of_the_loop() -> None:
    rota = Rota(lambda: 3600.0)
    members = [Counting() for _ in range(rota_module.MAX_IN_TURN + 1)]
    for member in members:
        rota.add(member)
        rota._due_s[member] = 0.0
    rota._turn()
    assert sum(member.calls for member in members) == rota_module.MAX_IN_TURN
    wait_until(lambda: members[-1].calls, "the last was called")
    for member in members:
        rota.discard(member)


def test_member_that_has_left_is_called_no_longer_and_the_last_stops_the_timer() -> None:
    rota, member, other = Rota(lambda: 0.01), Counting(), Counting()
    rota.add(member)
    rota.add(other)
    wait_until(lambda: member.calls, "a call")
    calls = member.calls
    rota.discard(member)
    rota.discard(member)
    before = other.calls
    wait_until(lambda: other.calls > before + 2, "the other is called")
    assert member.calls == calls
    rota.discard(other)
    wait_until(lambda: rota._timer is None, "the timer is gone")


def test_member_may_leave_while_it_is_called() -> None:
    rota = Rota(lambda: 0.01)

    class Leaving(Counting):
        def tick(self, now_s: float) -> None:
            super().tick(now_s)
            rota.discard(self)

    member = Leaving()
    rota.add(member)
    wait_until(lambda: rota._timer is None, "the timer is gone")
    assert member.calls == 1


def test_defect_of_one_member_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    rota, failing, member = Rota(lambda: 0.01), Failing(), Counting()
    rota.add(failing)
    rota.add(member)
    wait_until(lambda: failing.calls > 1 and member.calls > 1, "both are called")
    rota.discard(failing)
    rota.discard(member)


@pytest.mark.parametrize("is_empty", [False, True])
def test_nobody_waits_longer_than_a_changed_setting_says(*, is_empty: bool) -> None:
    every_s = 3600.0
    rota, older, younger = Rota(lambda: every_s), Counting(), Counting()
    rota.add(older)
    if is_empty:
        rota.discard(older)
    turn()
    every_s = 0.01
    rota.add(younger)
    wait_until(lambda: younger.calls and (older.calls or is_empty), "both are called")
    rota.discard(older)
    rota.discard(younger)


def test_pause_of_this_process_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rota_module, "SLACK_S", 0.0)
    rota, member = Rota(lambda: 0.01), Counting()
    rota.add(member)
    rota._turn_s -= 0.1
    wait_until(lambda: member.calls, "a call")
    assert rota.resumed_s > 0
    rota.discard(member)
