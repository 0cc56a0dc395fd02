"""Counts events of one side that nobody else counts; knows no format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Any

from gnar_lib import events
from gnar_lib.events import Side, subscribe, unsubscribe

# Seconds: from a service on the same host to one that makes people wait. The last bucket has no bound.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HUNG_UP = "hung-up"  # the reason of a login that was not refused, but given up


class Distribution:
    """How many values lay between bounds, and their sum."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value; one that equals a bound is below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """The counts of events since `start`, until `close`."""

    def __init__(self, side: Side) -> None:
        self.exchanges = Distribution()  # seconds from when a user came to the first byte from the service
        self.logins = 0
        self.logins_refused = Counter({cause.value: 0 for cause in events.Refusal} | {HUNG_UP: 0})
        self.users_refused = Counter({"tcp": 0, "udp": 0})  # by kind
        self.connects = 0  # of a client to its server
        self.connects_failed = 0
        self.service_failures = 0  # users whose local service did not answer
        self.descriptors_short = 0
        self._side = side
        self._listeners: dict[Any, Callable[[Any], None]] = {
            events.UserAnswered: self._on_answered,
            events.DescriptorsShort: self._on_descriptors_short,
        }
        if side is Side.SERVER:
            self._listeners |= {
                events.ClientCame: self._on_login,
                events.LoginRefused: self._on_login_refused,
                events.LoginGivenUp: self._on_login_given_up,
                events.UserRefused: self._on_user_refused,
            }
        if side is Side.CLIENT:
            self._listeners |= {
                events.Connected: self._on_connected,
                events.ConnectFailed: self._on_connect_failed,
                events.ServiceUnreachable: self._on_service_unreachable,
            }

    def start(self) -> None:
        """Count from now on; a second call has no effect."""
        self.close()
        for event_type, listener in self._listeners.items():
            subscribe(event_type, listener)

    def close(self) -> None:
        """Count no more."""
        for event_type, listener in self._listeners.items():
            unsubscribe(event_type, listener)

    def _on_answered(self, event: events.UserAnswered) -> None:
        if event.side is self._side:
            self.exchanges.add(event.after_s)

    def _on_login(self, _: events.ClientCame) -> None:
        self.logins += 1

    def _on_login_given_up(self, _: events.LoginGivenUp) -> None:
        self.logins_refused[HUNG_UP] += 1

    def _on_login_refused(self, event: events.LoginRefused) -> None:
        self.logins_refused[event.cause.value] += 1

    def _on_user_refused(self, event: events.UserRefused) -> None:
        self.users_refused["udp" if event.kind == "udp" else "tcp"] += 1

    def _on_connected(self, _: events.Connected) -> None:
        self.connects += 1

    def _on_connect_failed(self, _: events.ConnectFailed) -> None:
        self.connects_failed += 1

    def _on_service_unreachable(self, _: events.ServiceUnreachable) -> None:
        self.service_failures += 1

    def _on_descriptors_short(self, _: events.DescriptorsShort) -> None:
        self.descriptors_short += 1
