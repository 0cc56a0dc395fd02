"""Holds back events that something has gone, and drops those where it is back in time; knows no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from gnar_lib import events
from gnar_lib.events import Event
from gnar_lib.net import format_address

MAX_HELD = 1000  # of one hook; further ones are told at once

Key = tuple[object, ...]  # what has gone

ABOUT_RETURNS: tuple[type[Event], ...] = (
    events.ClientCame,
    events.ClientReturned,
    events.ProxyOpened,
    events.Connected,
    events.DataConnsWork,
    events.ServiceReached,
)
"""The types of events that say that something is back."""


class Absences:
    """What has gone and is not told yet, and, where that is said again and again, what has been told."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._held: OrderedDict[Key, tuple[Event, float, float]] = OrderedDict()  # since and until when
        self._told: set[Key] = set()  # of the client's own server and services: few
        self._client_of: dict[tuple[str, int], Key] = {}  # by name and port of what a held client had

    def hold(self, event: Event, at: float, now_s: float) -> bool:
        """Tell whether an event is not to be told now; `at` and `now_s` are its time, by both clocks."""
        key = _gone(event)
        if key is None or (len(self._held) >= MAX_HELD and key not in self._held):
            return False
        if isinstance(event, events.ServiceUnreachable) and not event.again:
            self._told.discard(key)  # a reload has given the name to another proxy
        if key not in self._held and key not in self._told:
            self._held[key] = (event, at, now_s + self._delay_s)
            if isinstance(event, events.ClientGone):
                self._client_of.update(dict.fromkeys(zip(event.proxies, event.ports, strict=False), key))
        return True

    def end(self, event: Event) -> bool:
        """Drop what an event says is back; tell whether the event is to be dropped, too."""
        if isinstance(event, events.ProxyOpened):  # a client that was started anew has only its proxies
            client = self._client_of.get((event.name, event.port))
            if client is not None:
                self._forget(client)
        key = _back(event)
        if key is None:
            return False
        self._told.discard(key)
        return self._forget(key)

    def _forget(self, key: Key) -> bool:
        found = self._held.pop(key, None)
        if found is not None and isinstance(found[0], events.ClientGone):
            for proxy in zip(found[0].proxies, found[0].ports, strict=False):
                self._client_of.pop(proxy, None)
        return found is not None

    @property
    def next_s(self) -> float | None:
        """When the next event is to be told; None if there is none."""
        return next((until_s for _, _, until_s in self._held.values()), None)

    def due(self, now_s: float) -> Iterator[tuple[Event, float]]:
        """Yield the events that are to be told now, with their times."""
        while (next_s := self.next_s) is not None and next_s <= now_s:
            key, (event, at, _) = next(iter(self._held.items()))
            self._forget(key)
            if not isinstance(event, events.ClientGone | events.ProxyClosed):
                self._told.add(key)
            yield event, at


def _gone(event: Event) -> Key | None:
    """Return what has gone by an event; None if nothing has."""
    match event:
        case events.ClientGone():
            return "client", event.id or format_address(event.client)
        case events.ProxyClosed():
            return "proxy", event.kind, event.name, event.port, event.where
        case events.ServiceUnreachable():
            return "service", event.kind, event.proxy
        case events.ConnectFailed():
            return ("server",)
        case events.DataConnsFail():
            return ("data",)
    return None


def _back(event: Event) -> Key | None:
    """Return what is back by an event; None if nothing is."""
    match event:
        case events.ClientCame() | events.ClientReturned():
            return "client", event.id
        case events.ProxyOpened():
            return "proxy", event.kind, event.name, event.port, event.where
        case events.ServiceReached():
            return "service", event.kind, event.proxy
        case events.Connected():
            return ("server",)
        case events.DataConnsWork():
            return ("data",)
    return None
