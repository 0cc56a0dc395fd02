"""A stopper that reloads once and then stops: what `run_server` and `run_client` do, without signals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent.event

from gnar_lib.net import Crew

T = TypeVar("T")


class FakeStopper:
    """Takes the place of `lifecycle.Stopper`, of which it has what is called."""

    def __init__(self) -> None:
        self.grace_s: list[float | None] = []  # what `drain` was given
        self.statuses: list[str] = []  # what a status line said before and after the reload
        self.is_closed = False
        self.is_terminated = False
        self.is_watched_over = True  # nothing is offered to other processes
        self._reload: Callable[[], None] = lambda: None
        self._describe: Callable[[], str] = lambda: ""
        self._stopped: gevent.event.Event = gevent.event.Event()

    def on_reload(self, function: Callable[[], None], *, has_file: bool) -> None:  # noqa: ARG002
        self._reload = function

    def on_status(self, describe: Callable[[], str]) -> None:
        self._describe = describe

    def call_until_stopped(self, function: Callable[[], T]) -> T | None:
        return function()

    def stop(self) -> None:
        self._stopped.set()

    def wait(self, usable: gevent.event.Event | None = None) -> None:
        """Wait until the process is usable or has failed, then reload."""
        if usable is not None:
            gevent.wait([usable, self._stopped], count=1)
        self.statuses.append(self._describe())
        self._reload()
        self.statuses.append(self._describe())

    def drain(self, crew: Crew, grace_s: float | None) -> bool:
        self.grace_s.append(grace_s)
        return not len(crew)

    def drain_rest(self, crew: Crew) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True
