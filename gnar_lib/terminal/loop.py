"""A live view in a process that does nothing else: draws, and heeds keys and signals. Knows no gevent."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gnar_lib.terminal import modes
from gnar_lib.terminal.keys import Keys
from gnar_lib.terminal.screen import Screen

PERIOD_S = 1.0  # between two pictures: times go on, also when nothing comes
ESCAPE_S = 0.1  # within which the rest of a key's sequence comes
_READ_BYTES = 4096
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_OTHERS = ("SIGTSTP", "SIGCONT", "SIGWINCH")


class Loop:
    """Shows what `draw` returns for a number of columns and lines, from `run` until `end` or a signal.

    `press` is called with each key.
    """

    def __init__(self, draw: Callable[[int, int], list[str]], press: Callable[[str], None]) -> None:
        self._draw = draw
        self._press = press
        self._screen = Screen()
        self._keys = Keys()
        self._reader, self._writer = socket.socketpair()  # to end a wait: for threads and signals
        self._came: set[str] = set()  # names of signals
        self._is_over = False

    def wake(self) -> None:
        """Have the view drawn again soon; for any thread."""
        with suppress(OSError):  # full, so that the wait is over, or closed
            self._writer.send(b"\0")

    def end(self) -> None:
        """End `run`."""
        self._is_over = True
        self.wake()

    def run(self) -> None:
        """Show the view until the end, and give the terminal back."""
        with self._reader, self._writer, self._heeding_signals():
            try:
                while not self._is_over:
                    self._show()
                    self._wait()
                    self._heed()
            finally:
                self._screen.leave()

    def _show(self) -> None:
        """Draw, unless the terminal is another job's."""
        if not self._screen.is_in_foreground:
            self._screen.leave()
            return
        if not self._screen.is_entered:
            self._screen.enter()
        self._screen.paint(self._draw(*self._screen.size()))

    def _wait(self) -> None:
        """Wait for keys, signals and news, but for a second at most; pass on what was pressed."""
        watched: list[Any] = [self._reader]
        if self._screen.is_entered and self._screen.is_in_foreground:
            watched.append(self._screen.keyboard)
        ready, _, _ = select.select(watched, [], [], ESCAPE_S if self._keys.is_waiting else PERIOD_S)
        if self._reader in ready:
            with suppress(BlockingIOError):
                self._reader.recv(_READ_BYTES)
        pressed: list[str] = []
        if self._screen.keyboard in ready:
            data = self._screen.read()
            if data is None:  # the terminal has gone
                self._is_over = True
            else:
                pressed = self._keys.take(data)
        elif self._keys.is_waiting:
            pressed = self._keys.settle()
        for key in pressed:
            self._press(key)

    # ---- signals -------------------------------------------------------------------------------------------

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        for end in (self._reader, self._writer):
            end.setblocking(False)
        numbers = [getattr(signal, name) for name in (*_ENDING, *_OTHERS)]
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._came.add(signal.Signals(number).name)

    def _heed(self) -> None:
        came, self._came = self._came, set()
        if not came.isdisjoint(_ENDING):
            self._is_over = True
        elif "SIGTSTP" in came:
            self._suspend()
        elif "SIGCONT" in came and self._screen.is_entered and self._screen.is_in_foreground:
            self._screen.enter()
        if "SIGWINCH" in came:
            self._screen.forget()

    def _suspend(self) -> None:
        """Do what ^Z asks for: give the terminal back, and stop until somebody continues the process."""
        self._screen.leave()
        number = getattr(signal, "SIGTSTP")  # noqa: B009  (Windows lacks it)
        handler = signal.signal(number, signal.SIG_DFL)
        modes.stop_this_process()
        signal.signal(number, handler)
