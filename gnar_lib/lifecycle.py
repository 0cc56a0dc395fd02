"""Stops and reloads a process when a signal says so; knows nothing of what is stopped or reloaded.

The rule is the same for server, client and relay. The first SIGINT or SIGTERM begins the drain: the process
takes no new users, and connected users may finish for a while. The second of them ends all users at once.
SIGHUP reloads the configuration. A process stops instead if it has no configuration, or was started on a
terminal without a file to reload from: the terminal has gone. While it stops, SIGHUP does nothing more: the
shell and the kernel each send one when a terminal goes. systemd is told of each step, if systemd started the
process.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import gevent
import gevent.event
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib import logger
from gnar_lib.errors import GnarError
from gnar_lib.net import Crew, busy_greenlets
from gnar_lib.notify import Notifier
from gnar_lib.patch import EarlySignals

KILL_TIMEOUT_S = 1.0  # how long killed greenlets may take to close their sockets
READY_WAIT_S = 10.0  # the longest wait until systemd is told that the process is ready

# Reference counts free the objects of a connection when the connection ends. The garbage collector is needed
# for reference cycles alone. Hardly anything but errors makes any, so that few collections suffice.
GC_THRESHOLDS = (20_000, 20, 50)

_log = logger.get("gnar", limited=False)  # its lines answer signals

_T = TypeVar("_T")


def _collect_garbage_less_often() -> None:
    """Have the garbage collector ignore all objects that exist now, and run less often."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _has_terminal() -> bool:
    """Tell whether this process has a controlling terminal, which can go."""
    is_there = False
    if sys.platform != "win32":
        with suppress(OSError):
            os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
            is_there = True
    return is_there


class _Interrupt(BaseException):
    """Takes a greenlet out of `call_until_stopped`."""


class Stopper:
    """Handles the signals of the process, from the constructor until `close`.

    A server, client or relay waits in `wait`, closes its listeners, and lets its users finish in `drain`:

        stopper = Stopper()
        stopper.on_reload(reload)
        stopper.wait()
        listener.close()
        stopper.drain(users, grace_s)
        stopper.close()
    """

    def __init__(self) -> None:
        self._stop_asked: gevent.event.Event = gevent.event.Event()  # set by the first signal and by `stop`
        self.is_terminated = False  # the first signal was SIGTERM, by which services are restarted, too
        self._drain_at_once = False  # set by the second signal
        self._interruptible: greenlet | None = None  # the greenlet in `call_until_stopped`
        self._draining: Crew | None = None  # the greenlets for which `drain` waits
        self._drain_until_s = 0.0  # when the time of `drain` is over
        self._reload: Callable[[], None] | None = None  # set by `on_reload`
        self._reload_asked = False  # by a SIGHUP that no reload has served yet
        self._reloads = Crew("reload")  # one greenlet while a reload runs
        self._describe: Callable[[], str] | None = None  # set by `on_status`
        self._watchers: list[Any] = []  # gevent's watchers, one for each signal
        self._notifier = Notifier(self._describe_status)
        self._hangup_stops = False  # whether SIGHUP stops a process that has nothing to reload
        self._is_on_terminal = False
        self._has_file = False  # set by `on_reload`
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # SIGBREAK is ^Break of Windows
            if hasattr(signal, name):
                self._watch(name, self._on_stop if name != "SIGTERM" else self._on_terminate)
        if hasattr(signal, "SIGHUP"):  # Windows has no SIGHUP
            # nohup(1) ignores SIGHUP, so that the process survives its terminal.
            self._hangup_stops = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
            self._is_on_terminal = _has_terminal()
            self._watch("SIGHUP", self._on_hangup)

    def on_status(self, describe: Callable[[], str]) -> None:
        """Log the line that `describe` returns, and the number of greenlets, at every SIGUSR1.

        `describe` must not wait. systemd shows the line, too.
        """
        self._describe = describe
        if hasattr(signal, "SIGUSR1"):
            self._watch("SIGUSR1", self._on_status)

    def on_reload(self, function: Callable[[], None], *, has_file: bool) -> None:
        """Call `function` at every SIGHUP, in a greenlet of its own and never twice at the same time.

        Without a file to reload from (`has_file`), SIGHUP stops a process that was started on a terminal. A
        `GnarError` of `function` is logged.
        """
        self._reload = function
        self._has_file = has_file

    @property
    def is_watched_over(self) -> bool:
        """Whether a service manager, such as systemd, has started the process and is told how it goes."""
        return self._notifier.is_on

    @property
    def stopping(self) -> bool:
        """Whether a signal has come or `stop` was called."""
        return bool(self._stop_asked.is_set())

    def stop(self) -> None:
        """End `wait` without a signal."""
        self._stop_asked.set()

    def call_until_stopped(self, function: Callable[[], _T]) -> _T | None:
        """Return what `function` returns, or None if the first signal comes while `function` waits.

        For a start that may wait long, such as for the look-up of a name. `function` is left by an exception,
        and closes what it has opened.
        """
        self._interruptible = getcurrent()
        try:
            return function()
        except _Interrupt:
            return None
        finally:
            self._interruptible = None

    def wait(self, usable: gevent.event.Event | None = None) -> None:
        """Wait for the first signal, or for `stop`; call this when the start of the process is complete.

        systemd is told that the process is ready: at once, or when `usable` is set, but after `READY_WAIT_S`
        at the latest, since other units may wait for this one.
        """
        _collect_garbage_less_often()
        if EarlySignals.hangup:
            EarlySignals.hangup = False
            get_hub().loop.run_callback(self._on_hangup)
        self._notifier.start_watchdog()
        if usable is not None and self._notifier.is_on:
            gevent.wait([self._stop_asked, usable], timeout=READY_WAIT_S, count=1)
        if not self.stopping:
            self._notifier.ready()
        self._stop_asked.wait()
        self._notifier.stopping()

    def drain(self, crew: Crew, grace_s: float | None) -> bool:
        """Let the greenlets of `crew` finish for up to `grace_s` seconds, then kill them; None is no limit.

        A second signal kills the greenlets at once. Returns whether all of them ended by themselves. The wait
        for killed greenlets ends after `KILL_TIMEOUT_S`.
        """
        self._draining = crew
        self._drain_until_s = math.inf if grace_s is None else time.monotonic() + grace_s
        try:
            if not self._drain_at_once:
                if len(crew):
                    limit = "" if grace_s is None else f"up to {grace_s:g} s "
                    _log.info("waiting %sfor %d to finish; ^C ends them now", limit, len(crew))
                if len(crew) and grace_s is not None:
                    self._notifier.extend_timeout(grace_s + 2 * KILL_TIMEOUT_S)
                crew.wait_empty(grace_s)
            if not len(crew):
                return not self._drain_at_once
            crew.kill()
            crew.wait_empty(KILL_TIMEOUT_S)
            return False
        finally:
            self._draining = None

    def drain_rest(self, crew: Crew) -> None:
        """Let what is left of users go on for as long as `drain` had time, and for a moment in any case.

        Without a word: the greenlets of `crew` mostly end at once. A second signal ends the wait.
        """
        self._draining = crew
        left_s = max(self._drain_until_s - time.monotonic(), KILL_TIMEOUT_S)
        if not self._drain_at_once:
            crew.wait_empty(None if left_s == math.inf else left_s)
        self._draining = None

    def close(self) -> None:
        """End a reload that is running, and give the signals the system's default effects again."""
        for watcher in self._watchers:
            watcher.stop()
        self._reloads.kill()
        self._notifier.close()

    # ---- called in the hub: must not wait ------------------------------------------------------------------

    def _watch(self, name: str, handle: Callable[[], None]) -> None:
        # gevent.signal_handler will not do. Its watchers do not keep the loop alive, so that a process which
        # waits for nothing but a signal would end with an error. It also starts a greenlet for each signal.
        watcher = get_hub().loop.signal(getattr(signal, name))
        watcher.start(handle)
        self._watchers.append(watcher)

    def _on_terminate(self) -> None:
        """Begin to stop, as `_on_stop` does, and note by which signal."""
        self.is_terminated = self.is_terminated or not self.stopping
        self._on_stop()

    def _on_stop(self) -> None:
        """Begin to stop; at the second signal, kill the greenlets that `drain` waits for."""
        if not self.stopping:
            self.stop()
            if self._interruptible is not None:
                self._interruptible.throw(_Interrupt)
            return
        self._drain_at_once = True
        if self._draining is not None:
            self._draining.kill()

    def _describe_status(self) -> str:
        return self._describe() if self._describe is not None else ""

    def _on_status(self) -> None:
        if self._describe is not None:
            _log.info("status: %s greenlets=%d", self._describe(), busy_greenlets())

    def _on_hangup(self) -> None:
        """Reload, or stop if there is nothing to reload; a signal during a reload causes another one."""
        if self.stopping:
            return
        has_nothing = self._reload is None or (self._is_on_terminal and not self._has_file)
        if has_nothing and self._hangup_stops:
            self._on_stop()
            return
        if self._reload is None:
            return
        self._reload_asked = True
        if not len(self._reloads):
            self._reloads.enter(self._reload_as_asked, self._reload)

    def _reload_as_asked(self, function: Callable[[], None]) -> None:
        while self._reload_asked:
            self._reload_asked = False
            self._notifier.reloading()
            try:
                function()
            except GnarError as exc:
                _log.error("nothing is changed: %s", exc)
            finally:
                self._notifier.ready()
