"""A live view in a process that serves: takes the terminal, draws once a second, and heeds keys and signals.

Runs in gevent's loop beside everything else, and never waits for the terminal. What is logged while the view
is shown is a part of the view, and is written to the terminal when the view is left.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
import gevent.event
from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.logger import Entry
from gnar_lib.net import Crew
from gnar_lib.terminal import keys, modes
from gnar_lib.terminal.keys import Keys
from gnar_lib.terminal.screen import Screen
from gnar_lib.terminal.view import View, draw, rows_room

PERIOD_S = 1.0  # between two pictures
LEAST_PERIOD_S = 0.1  # the same, when keys are pressed all the time
MOST_OF_TIME = 0.1  # the part of the process's time that drawing may take then, with thousands of proxies
START_S = 0.5  # what is over by then, such as a token that is refused, needs no view
MAX_EVENTS = 200  # log lines that a view can show

_READABLE = 1  # of libev


class LiveView:
    """Shows what `view` returns, from `start` until `close`.

    `view` is asked for the rows from a number on, and for how many; it must not wait.
    """

    def __init__(self, view: Callable[[int, int], View]) -> None:
        self._view = view
        self._screen = Screen()
        self._colour = not os.environ.get("NO_COLOR")
        self._events: deque[Entry] = deque(maxlen=MAX_EVENTS)
        self._keys = Keys()
        self._first = 0  # the number of the first row that is shown
        self._page = 1  # for how many rows there was room
        self._count = 0  # of all rows
        self._crew = Crew("live view")
        self._wake: gevent.event.Event = (
            gevent.event.Event()
        )  # something is to be done before a second is over
        self._signals: dict[str, Any] = {}  # gevent's watchers
        self._keyboard: Any = None  # gevent's watcher, while keys are read
        self._is_suspending = False  # SIGTSTP has come
        self._is_disturbed = False  # SIGCONT has come: others may have had the terminal
        self._is_closed = False

    def start(self, ready: gevent.event.Event) -> None:
        """Show the view once `ready` is set, or soon."""
        logger.follow(self._events.append)
        self._crew.spawn(self._run, ready)

    def close(self) -> None:
        """Give the terminal back, and write what was logged meanwhile; more than once does no harm."""
        self._is_closed = True
        self._leave()
        for watcher in self._signals.values():
            watcher.stop()
        self._signals.clear()
        self._crew.kill()
        logger.follow(None)

    def _run(self, ready: gevent.event.Event) -> None:
        ready.wait(START_S)
        for name, handle in (
            ("SIGWINCH", self._on_resize),
            ("SIGTSTP", self._on_suspend),
            ("SIGCONT", self._on_continue),
            ("SIGQUIT", self._on_quit),
        ):
            self._signals[name] = get_hub().loop.signal(getattr(signal, name))
            self._signals[name].start(handle)
        try:
            while not self._is_closed:
                began_s = time.monotonic()
                self._show()
                pause_s = max(LEAST_PERIOD_S, (time.monotonic() - began_s) / MOST_OF_TIME)
                gevent.sleep(pause_s)
                self._wake.wait(max(0.0, PERIOD_S - pause_s))
                self._wake.clear()
                if self._is_suspending and not self._is_closed:
                    self._suspend()
        finally:
            self.close()

    # ---- the terminal --------------------------------------------------------------------------------------

    def _show(self) -> None:
        """Draw, if the terminal is this process's; a job in the background writes lines instead."""
        if not self._screen.is_in_foreground:
            self._leave()
            return
        if not self._screen.is_entered or self._is_disturbed:
            self._enter()
        columns, lines = self._screen.size()
        view = replace(self._view(self._first, lines), events=tuple(self._events))
        self._page, self._count = rows_room(view, columns, lines), view.count
        self._screen.paint(draw(view, columns, lines, colour=self._colour))

    def _enter(self) -> None:
        logger.hold()
        self._is_disturbed = False
        self._screen.enter()
        if self._keyboard is None:
            self._keyboard = get_hub().loop.io(self._screen.keyboard, _READABLE)
            self._keyboard.start(self._on_keyboard)

    def _leave(self) -> None:
        if self._keyboard is not None:
            self._keyboard.stop()
            self._keyboard.close()
            self._keyboard = None
        self._screen.leave()
        logger.release()

    def _suspend(self) -> None:
        """Do what ^Z asks for: give the terminal back, and stop until somebody continues the process."""
        self._is_suspending = False
        self._leave()
        watcher = self._signals["SIGTSTP"]
        watcher.stop()  # so that the signal has its default effect
        modes.stop_this_process()
        watcher.start(self._on_suspend)

    # ---- called in the hub: must not wait ------------------------------------------------------------------

    def _on_resize(self) -> None:
        self._screen.forget()
        self._wake.set()

    def _on_suspend(self) -> None:
        self._is_suspending = True
        self._wake.set()

    def _on_continue(self) -> None:
        self._is_disturbed = True
        self._wake.set()

    def _on_quit(self) -> None:
        """Give the terminal back before the signal ends the process, as it does by default."""
        self.close()
        signal.raise_signal(getattr(signal, "SIGQUIT"))  # noqa: B009  (Windows lacks it)

    def _on_keyboard(self) -> None:
        """Scroll. A terminal that has gone, or is another job's, is not read from until it is taken again."""
        data = self._screen.read() if self._screen.is_in_foreground else None
        if data is None:
            self._keyboard.stop()
            return
        for key in self._keys.take(data):
            self._first = self._scrolled(key)
        self._wake.set()

    def _scrolled(self, key: str) -> int:
        """Return the number of the row that is first after a key was pressed."""
        last = max(0, self._count - self._page)
        steps = {
            keys.UP: -1,
            keys.DOWN: 1,
            keys.PAGE_UP: -self._page,
            keys.PAGE_DOWN: self._page,
            keys.HOME: -self._count,
            keys.END: self._count,
        }
        return min(max(0, self._first + steps.get(key, 0)), last)
