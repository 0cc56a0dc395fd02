"""Calls many members once in a while by one timer, some of them in each turn of the loop; knows no member.

One timer for thousands of clients costs less than a timer or a greenlet for each. The rota also tells when
this process itself was stopped for a while, so that nobody takes that for the silence of a peer: a stopped
process (SIGSTOP, a frozen container, a machine that was suspended) has read nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from gevent.hub import get_hub

STEP_S = 0.05  # between two turns: those whose time comes meanwhile are called together
MAX_IN_TURN = 64  # members that are called in one turn of the loop, so that others have theirs
SLACK_S = 5.0  # by which a busy process may be late


class Member(Protocol):
    """Somebody who has to be called once in a while."""

    def tick(self, now_s: float) -> None:
        """Do what is due; `now_s` is `time.monotonic`. Runs in the hub, so it must not wait."""


class Rota:
    """Calls each member every `every_s()` seconds, the first time so many seconds after it was added."""

    def __init__(self, every_s: Callable[[], float]) -> None:
        self.resumed_s = 0.0  # when this process went on after it was stopped, as `time.monotonic` says
        self._ask_every_s = every_s
        self._every_s = 0.0  # what that has said last
        self._due_s: OrderedDict[Member, float] = OrderedDict()  # when each is called next; the first first
        self._timer: Any = None  # for the next turn; None while there is no member
        self._turn_s = 0.0  # when the next turn is to be

    def add(self, member: Member) -> None:
        """Call a member from now on."""
        now_s = monotonic()
        self._look_how_often(now_s)
        self._due_s[member] = now_s + self._every_s
        if self._timer is None:
            self._set_timer(now_s, self._every_s)

    def _look_how_often(self, now_s: float) -> None:
        """See whether a setting has changed; nobody waits longer than is said now."""
        before_s, self._every_s = self._every_s, self._ask_every_s()
        if self._every_s < before_s and self._timer is not None:
            for member, due_s in self._due_s.items():
                self._due_s[member] = min(due_s, now_s + self._every_s)
            self._set_timer(now_s, self._every_s)

    def discard(self, member: Member) -> None:
        """Call a member no longer; more than once does no harm."""
        self._due_s.pop(member, None)

    def _turn(self) -> None:
        """Call the members whose time has come; runs in the hub."""
        now_s, due = monotonic(), self._due_s
        self._look_how_often(now_s)
        if now_s - self._turn_s > SLACK_S:
            self.resumed_s = now_s
        step_s = min(STEP_S, self._every_s)
        left = min(len(due), MAX_IN_TURN)  # who may be called in this turn
        is_late = len(due) > left
        try:
            while left and due:
                left -= 1
                member, due_s = next(iter(due.items()))
                if due_s > now_s + step_s:
                    is_late = False
                    break
                due[member] = max(due_s, now_s - step_s) + self._every_s
                due.move_to_end(member)
                member.tick(now_s)
        finally:
            if due:
                wait_s = next(iter(due.values())) - now_s
                self._set_timer(now_s, 0.0 if is_late else max(wait_s, step_s))
            else:
                self._timer = None

    def _set_timer(self, now_s: float, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._turn_s = now_s + wait_s
        self._timer = get_hub().loop.timer(wait_s)
        self._timer.start(self._turn)
