"""How a process of gnar ends: signals become calls and waits; knows nothing of what is stopped.

The rule is the same for server, client and relay. The first SIGINT or SIGTERM begins the end: no new users,
and those there may finish for a while. The second ends everything at once. SIGHUP re-reads the configuration;
where there is none it means that the terminal has gone, and stops like the other two. A systemd that started
the process hears of each step.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.errors import GnarError
from gnar_lib.net import Crew, busy_greenlets
from gnar_lib.notify import Notifier

KILL_TIMEOUT_S = 1.0  # how long greenlets may take to close what they hold, once they were ended
READY_S = 10.0  # systemd waits that long at most for what `wait` is given; other units may wait with it

# A connection is some dozens of objects that are freed by their count when it ends. The collector looks for
# cycles only, which errors make: seldom is often enough.
GC_THRESHOLDS = (20_000, 20, 50)

_log = logger.get("gnar")


def _spare_the_collector() -> None:
    """Have it leave alone what stays for ever, and come seldom."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class Stopper:
    """Takes the process's signals from when it is made until `close`.

    A room makes one, waits in `wait`, closes its listeners, and lets its users finish in `wait_or_second`:

        stopper = Stopper()
        stopper.on_reload(reload)
        stopper.wait()
        listener.close()
        stopper.wait_or_second(users, grace_s)
    """

    def __init__(self) -> None:
        self._begun: gevent.event.Event = gevent.event.Event()
        self._at_once = False
        self._draining: Crew | None = None
        self._reload: Callable[[], None] | None = None
        self._describe: Callable[[], str] | None = None
        self._reload_asked = False
        self._reloads = Crew("reload")
        self._watchers: list[Any] = []
        self._notifier = Notifier(self._status)
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last is ^Break, which Windows alone has
            if hasattr(signal, name):
                self._watch(name, self._on_stop)
        self._hangup_stops = False
        if hasattr(signal, "SIGHUP"):  # Windows has none
            # Whoever was started by nohup does not want to hear of a terminal that has gone.
            self._hangup_stops = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
            self._watch("SIGHUP", self._on_hangup)

    def on_status(self, describe: Callable[[], str]) -> None:
        """Log what `describe` returns on SIGUSR1 from now on, with the process's own numbers."""
        self._describe = describe
        if hasattr(signal, "SIGUSR1"):
            self._watch("SIGUSR1", self._on_status)

    def on_reload(self, function: Callable[[], None]) -> None:
        """Call `function` on SIGHUP from now on, in a greenlet of its own and never twice at the same time.

        An error of ours that it raises is shown, and the process goes on as it was.
        """
        self._reload = function

    @property
    def stopping(self) -> bool:
        """Whether a signal came, or `stop` was called."""
        return bool(self._begun.is_set())

    def stop(self) -> None:
        """End `wait` without a signal: the work is done, or cannot be done."""
        self._begun.set()

    def wait(self, usable: gevent.event.Event | None = None) -> None:
        """Wait for the first signal, or for `stop`: all that the process is made of is there by now.

        systemd hears that the process is ready: at once, or when `usable` is set, `READY_S` later at most.
        """
        _spare_the_collector()
        self._notifier.start_watchdog()
        if usable is not None and self._notifier.is_on:
            gevent.wait([self._begun, usable], timeout=READY_S, count=1)
        if not self.stopping:
            self._notifier.ready()
        self._begun.wait()
        self._notifier.stopping()

    def wait_or_second(self, crew: Crew, grace_s: float) -> bool:
        """Let the greenlets of `crew` finish for up to `grace_s` seconds; one more signal ends them at once.

        Tells whether all ended by themselves. None is left afterwards but one that does not end when told to.
        """
        self._draining = crew
        try:
            if not self._at_once:
                if len(crew):
                    _log.info("waiting up to %g s for %d to finish; ^C ends them now", grace_s, len(crew))
                    self._notifier.extend_timeout(grace_s + KILL_TIMEOUT_S)
                crew.wait_empty(grace_s)
            if not len(crew):
                return not self._at_once
            crew.kill()
            crew.wait_empty(KILL_TIMEOUT_S)
            return False
        finally:
            self._draining = None

    def close(self) -> None:
        """Let go of the signals, which have the system's own effect again, and end a reload under way."""
        for watcher in self._watchers:
            watcher.stop()
        self._reloads.kill()
        self._notifier.close()

    # ---- in the hub, so nothing here may wait --------------------------------------------------------------

    def _watch(self, name: str, handle: Callable[[], None]) -> None:
        # Not gevent.signal_handler: its watchers do not keep the loop alive, so a process that waits for
        # nothing but a signal would end with an error, and it starts a greenlet for each signal.
        watcher = get_hub().loop.signal(getattr(signal, name))
        watcher.start(handle)
        self._watchers.append(watcher)

    def _on_stop(self) -> None:
        """Begin the end; when it has begun, end at once."""
        if not self.stopping:
            self.stop()
            return
        self._at_once = True
        if self._draining is not None:
            self._draining.kill()

    def _status(self) -> str:
        return self._describe() if self._describe is not None else ""

    def _on_status(self) -> None:
        if self._describe is not None:
            _log.info("status: %s greenlets=%d", self._describe(), busy_greenlets())

    def _on_hangup(self) -> None:
        """Reload, or stop where there is nothing to reload; a signal during a reload asks for one more."""
        if self._reload is None:
            if self._hangup_stops:
                self._on_stop()
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
