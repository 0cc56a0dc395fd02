"""Whose turn it is to open a data connection: at once while that works, at growing intervals while it fails.

A firewall that limits new connections counts every attempt, refused ones as well, and a machine without free
ports needs time to get some back. So tries that go on at full pace never succeed again. After a success the
pace rises step by step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent

from gnar_lib.client.backoff import FIRST_S, JITTER, LAST_S
from gnar_lib.errors import ConnError, DialError, ExhaustedError, OtherServerError
from gnar_lib.events import DataConnsFail, DataConnsWork, emit

USER_PATIENCE_S = 8.0  # of a user on demand, whom the server gives up after 10 s
_TOLD_FROM_S = 2 * FIRST_S  # the pause after the second failure in a row: a single one means nothing


class Turns:
    """The tries of one client to open data connections, whatever control connections they belong to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause_s = 0.0  # from one try to the next
        self._next_s = 0.0  # when the next try may begin
        self._failed_s = 0.0  # when the pause grew
        self._works = False  # a try has succeeded since the pause was changed
        self._is_told = False  # an event has told of failures

    def take(self, patience_s: float = 0.0) -> float | None:
        """Take the next turn and return in how many seconds that is; None if it is too late."""
        now_s = self._clock()
        if self._works and self._pause_s:
            self._shorten_pause(now_s)
        wait_s = max(self._next_s - now_s, 0.0)
        if wait_s > patience_s:
            return None
        self._next_s = now_s + wait_s + self._jittered()
        return wait_s

    def _shorten_pause(self, now_s: float) -> None:
        """The last try has succeeded."""
        self._works = False
        self._pause_s = self._pause_s / 2 if self._pause_s > FIRST_S else 0.0
        self._next_s = min(self._next_s, now_s + self._pause_s)
        if self._is_told and not self._pause_s:
            self._is_told = False
            emit(DataConnsWork)

    def wait(self) -> None:
        """Wait for a turn on behalf of a user; raises `DialError` if it comes too late for the user."""
        wait_s = self.take(USER_PATIENCE_S)
        if wait_s is None:
            left_s = self._next_s - self._clock()
            raise DialError(f"data connections fail, the next try is in {left_s:.1f} s")
        if wait_s:
            gevent.sleep(wait_s)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Note whether the block, which opens a data connection, raises `DialError`."""
        began_s = self._clock()
        try:
            yield
        except DialError as exc:
            self.note_failure(began_s, exc)
            raise
        self.note_success()

    def note_success(self) -> None:
        """Note that a data connection is of use, of which a dial alone does not tell."""
        self._works = True

    def note_failure(self, began_s: float, error: ConnError) -> None:
        """A data connection that was tried then has failed; those that were tried together fail as one."""
        if began_s < self._failed_s:
            return
        self._failed_s = self._clock()
        self._works = False
        self._pause_s = min(max(2 * self._pause_s, FIRST_S), LAST_S)
        pause_s = self._jittered()
        self._next_s = self._failed_s + pause_s
        if self._pause_s >= _TOLD_FROM_S:
            self._is_told = True
            emit(DataConnsFail, f"{error}{_what_to_do(error)}", pause_s)

    def _jittered(self) -> float:
        return self._pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  (no secret)


def _what_to_do(error: ConnError) -> str:
    """Return what a person may do, since the control connection beside the failed one works."""
    if isinstance(error, OtherServerError):
        return ""  # the error says it all
    if isinstance(error, ExhaustedError):
        return "; no local port or descriptor is left: raise the limit (ulimit -n), or use -m"
    return "; does a firewall limit new connections? With -m one connection carries everything"
