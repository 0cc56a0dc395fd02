"""One hook: listens to its events, queues them, and delivers one after the other."""

from __future__ import annotations

import random
import time
import uuid
from typing import Any

import gevent.event
from gevent.hub import get_hub
from greenlet import GreenletExit, getcurrent, greenlet

from gnar_lib import events, logger
from gnar_lib.config import HookConfig
from gnar_lib.events import Event
from gnar_lib.hooks.absence import ABOUT_RETURNS, Absences
from gnar_lib.hooks.message import Message
from gnar_lib.hooks.outcome import Deliverer, Outcome
from gnar_lib.hooks.queue import Pace, Queue

COMMANDS_AT_ONCE, COMMAND_EVERY_S = 20, 1.0  # of one hook: strangers can make events without end
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 300.0  # between two tries; it doubles
JITTER = 0.2  # of a pause, either way, so that the hooks of many processes do not come together


class Hook:
    """Delivers the events that a hook names; `run` does so until `finish` was called."""

    def __init__(self, config: HookConfig, deliverer: Deliverer, side: str, host: str) -> None:
        self.config = config
        self._deliverer = deliverer
        self._side, self._host = side, host
        self._log = logger.get(f"hook [{config.label}]")
        self._queue = Queue()
        self._pace = Pace(COMMANDS_AT_ONCE, COMMAND_EVERY_S) if config.command else None
        self._absences = Absences(config.delay_s) if config.delay_s else None
        self._woken: gevent.event.Event = gevent.event.Event()  # there may be something to do
        self._finished: gevent.event.Event = gevent.event.Event()  # `finish` was called
        self._worker: greenlet | None = None  # the greenlet in `run`
        self._is_delivering = False
        self._timer: Any = None  # from `finish` on
        self._failures = logger.Burst()
        self._drops = logger.Burst()
        self._named = {events.BY_NAME[name] for name in config.events}
        self._heard = self._named | set(ABOUT_RETURNS if self._absences else ())

    def start(self) -> None:
        """Listen to events from now on."""
        for event_type in self._heard:
            events.subscribe(event_type, self._on_event)

    def finish(self, last_s: float) -> None:
        """Listen no more; `run` tries once more to deliver each event that waits, and ends after `last_s`."""
        for event_type in self._heard:
            events.unsubscribe(event_type, self._on_event)
        self._finished.set()
        self._woken.set()
        self._timer = get_hub().loop.timer(last_s)
        self._timer.start(self._end)

    def _end(self) -> None:
        """End `run` where it waits; called in the hub."""
        if self._worker is not None:
            self._worker.throw(GreenletExit)

    def _on_event(self, event: Event) -> None:
        """Queue an event; it happens right now, so that this must not wait."""
        at, now_s = time.time(), time.monotonic()
        if self._absences is not None and self._absences.end(event):
            return
        if type(event) not in self._named or not self._is_about_its_proxies(event):
            return
        if self._absences is None or not self._absences.hold(event, at, now_s):
            self._put(event, at)
        self._woken.set()

    def _is_about_its_proxies(self, event: Event) -> bool:
        """Tell whether an event is about one of the proxies that the hook names, or about no proxy."""
        wanted = self.config.proxies
        if not wanted:
            return True
        if isinstance(event, events.ClientGone):
            return any(name in wanted for name in event.proxies)
        about = getattr(event, "proxy", None) or getattr(event, "name", None)
        return about is None or about in wanted

    def _put(self, event: Event, at: float) -> None:
        if waiting := self._queue.put(event, at):
            self._drops.warning(self._log, "an event is dropped: %d wait already", waiting)

    # ---- in the hook's own greenlet ------------------------------------------------------------------------

    def run(self) -> None:
        """Deliver events, one after the other."""
        self._worker = getcurrent()
        try:
            while (found := self._next()) is not None:
                event, at = found
                self._is_delivering = True
                self._deliver(Message.of(event, at, str(uuid.uuid4()), self._side, self._host))
                self._is_delivering = False
        finally:
            self._worker = None
            if self._timer is not None:
                self._timer.stop()
            if count := len(self._queue) + self._is_delivering:
                self._log.warning("%d events were not delivered before the end", count)

    def _next(self) -> tuple[Event, float] | None:
        """Return the next event, and when it happened, waiting for it; None when `run` is to end."""
        while True:
            self._woken.clear()
            timeout_s = self._put_due()
            if self._queue:
                pause_s = self._pace.wait_s() if self._pace is not None else 0.0
                if not pause_s:
                    break
                timeout_s = pause_s if timeout_s is None else min(pause_s, timeout_s)
            elif self._finished.is_set():
                return None
            self._woken.wait(timeout_s)
        if self._pace is not None:
            self._pace.use()
        return self._queue.take()

    def _put_due(self) -> float | None:
        """Queue what was held back and is still away; return how long to wait for more of that."""
        if self._absences is None:
            return None
        now_s = time.monotonic()
        for event, at in self._absences.due(now_s):
            self._put(event, at)
        next_s = self._absences.next_s
        return None if next_s is None else next_s - now_s

    def _deliver(self, message: Message) -> None:
        """Deliver a message, trying again where that may help, until its time is over."""
        until_s = time.monotonic() + self.config.retry_for_s
        pause_s = FIRST_PAUSE_S
        while not (outcome := self._deliverer.deliver(message)):
            wait_s = max(outcome.wait_s, pause_s * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311
            may_retry = outcome.may_retry and time.monotonic() + wait_s <= until_s
            if not may_retry or self._finished.is_set():
                self._tell_failure(message, outcome, "given up")
                return
            self._tell_failure(message, outcome, f"trying again in {wait_s:.1f} s")
            self._finished.wait(wait_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
        self._log.debug("%s is delivered", message.event)
        self._failures.end(self._log)

    def _tell_failure(self, message: Message, outcome: Outcome, what_next: str) -> None:
        self._failures.warning(
            self._log, "%s is not delivered: %s; %s", message.event, outcome.reason, what_next
        )
