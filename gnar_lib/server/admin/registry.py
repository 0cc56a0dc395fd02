"""The clients and proxies of a server as somebody who watches knows them, also those that are gone.

Looks at the server when asked to, and hears of ends by events. Changes nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from gnar_lib import events
from gnar_lib.events import ClientGone, ProxyClosed, Side
from gnar_lib.net import format_address
from gnar_lib.pio.meter import Meter
from gnar_lib.server.control import Control
from gnar_lib.server.ingress.control import ControlIngress
from gnar_lib.server.ingress.making import Ingress

GONE_S = 86_400.0  # for which what is gone is listed
MAX_GONE = 1000  # clients, and proxies, that are gone; those that went first are forgotten first
JUST_S = 5.0  # before a client goes, in which it may leave its proxies, or lose them to an administrator
SHORT_S = 60.0  # what was there for a shorter time is forgotten first
MAX_NAME = 200  # characters of it that are kept of a proxy that is gone
MAX_HAD = 100  # proxies of a client that is gone, by name, and of those that it has lost just now


@dataclass(frozen=True, slots=True)
class Had:
    """A proxy that a client had which is gone; the proxy itself is listed elsewhere, or forgotten."""

    id: str
    name: str


@dataclass(slots=True, eq=False)
class ClientEntry:
    """A client. Times are in Unix seconds."""

    id: str
    client_id: str  # by which the client itself says that it is the same; empty for a Go client
    version: str
    is_multiplexed: bool
    since: float
    address: str
    control: Control | None  # None: the client is gone
    proxies: list[ProxyEntry] = field(default_factory=list)  # none once the client is gone
    had: list[Had] = field(default_factory=list)  # the proxies that it had when it went
    lost: deque[tuple[float, Had]] = field(default_factory=lambda: deque(maxlen=MAX_HAD))  # and when
    gone_at: float | None = None
    reason: str = ""  # why the client is gone


@dataclass(slots=True, eq=False)
class ProxyEntry:
    """A proxy. Times are in Unix seconds."""

    id: str
    name: str
    kind: str
    port: int
    meter: Meter
    since: float
    ingress: Ingress | None  # None: the proxy is gone
    client: ClientEntry | None = None  # whose it is, or was; None: nobody knows
    is_waiting: bool = False  # the client is away, or has come back and not asked for the proxy yet
    gone_at: float | None = None
    reason: str = ""  # why the proxy is gone
    link: str = ""  # the URL of a proxy that has a name


class Registry:
    """Everything that is there, and that was there within a day."""

    def __init__(self, ingress: ControlIngress, clock: Callable[[], float] = time.time) -> None:
        self.clients: dict[str, ClientEntry] = {}  # by id, those that are gone first
        self.proxies: dict[str, ProxyEntry] = {}
        self._ingress = ingress
        self._clock = clock
        self._by_address: dict[str, ClientEntry] = {}  # those whose `ClientGone` is still to come
        # What is gone, and will be forgotten when the same comes back.
        self._gone_clients: dict[str, ClientEntry] = {}
        self._gone_proxies: dict[_ProxyKey, ProxyEntry] = {}
        self._reasons: dict[_ProxyKey, str] = {}  # why proxies were closed, since the last look

    def start(self) -> None:
        """Hear of ends from now on."""
        events.subscribe(ClientGone, self._on_client_gone)
        events.subscribe(ProxyClosed, self._on_proxy_closed)

    def close(self) -> None:
        """End what `start` began."""
        events.unsubscribe(ClientGone, self._on_client_gone)
        events.unsubscribe(ProxyClosed, self._on_proxy_closed)

    def look(self) -> None:
        """Take in what has changed."""
        now = self._clock()
        seen: set[str] = set()
        clients = [control for control in self._ingress.clients if not control.is_check]
        controls = sorted(clients, key=lambda control: control.number)  # in the order they came
        for control in controls:
            if control.is_there:
                client = self._look_at_client(control, now)
                seen.add(client.id)
        for entry, is_waiting in self._look_at_proxies(controls, now):
            entry.is_waiting = is_waiting
            seen.add(entry.id)
        for each in [each for each in self.proxies.values() if each.ingress and each.id not in seen]:
            self._end_proxy(each, now)
        for client in [each for each in self.clients.values() if each.control and each.id not in seen]:
            self._end_client(client, now, "")
        self._reasons.clear()
        self._forget(now)

    def restore(self, clients: list[ClientEntry], proxies: list[ProxyEntry]) -> None:
        """Take in what was gone before this process, those that went first being first.

        What has come back meanwhile, or has gone again, is left out.
        """
        ids = {each.client_id for each in self.clients.values()} - {""}
        gone = {each.id: each for each in clients if each.client_id not in ids}
        self._gone_clients.update({each.client_id: each for each in gone.values() if each.client_id})
        self.clients = {**gone, **self.clients}
        keys = {_key_of(each) for each in self.proxies.values()}
        closed = {each.id: each for each in proxies if _key_of(each) not in keys}
        self._gone_proxies.update({_key_of(each): each for each in closed.values()})
        self.proxies = {**closed, **self.proxies}
        self._forget(self._clock())

    # ---- what is there -------------------------------------------------------------------------------------

    def _look_at_client(self, control: Control, now: float) -> ClientEntry:
        entry_id, address = f"c{control.number}", format_address(control.address)
        entry = self.clients.get(entry_id)
        if entry is None or entry.control is None:
            if gone := self._gone_clients.pop(control.client_id, None):  # it is there again
                self.clients.pop(gone.id, None)
            is_multiplexed = control.mux is not None
            version = control.peer.version
            entry = ClientEntry(entry_id, control.client_id, version, is_multiplexed, now, address, control)
            self.clients[entry_id] = entry
        elif entry.control is not control:  # the client has come back
            self._by_address.pop(entry.address, None)
            entry.control, entry.address = control, address
        self._by_address[address] = entry
        return entry

    def _look_at_proxies(self, controls: list[Control], now: float) -> Iterator[tuple[ProxyEntry, bool]]:
        """Yield each proxy, and whether it waits for its client."""
        for control in controls:
            client = self.clients.get(f"c{control.number}")
            if client is None or client.control is not control:
                continue
            asked_for = len(control.ingresses)
            client.proxies = self._proxies_of(client, control, now)
            for number, entry in enumerate(client.proxies):
                yield entry, number >= asked_for
        for kept in self._ingress.kept.all:
            entry = self._entry_of(kept.ingress, now)
            if entry.client is not None and not entry.is_waiting:
                entry.client.lost.append((now, _had(entry)))
            yield entry, True

    def _proxies_of(self, client: ClientEntry, control: Control, now: float) -> list[ProxyEntry]:
        found = [self._entry_of(ingress, now) for ingress in control.held]
        for entry in found:
            entry.client = client
        return found

    def _entry_of(self, ingress: Ingress, now: float) -> ProxyEntry:
        proxy = ingress.proxy
        entry_id = f"p{proxy.meter.number}"
        entry = self.proxies.get(entry_id)
        if entry is None:
            entry = ProxyEntry(entry_id, proxy.name, proxy.kind, ingress.port, proxy.meter, now, ingress)
            entry.link = ingress.where
            if gone := self._gone_proxies.pop(_key_of(entry), None):
                self.proxies.pop(gone.id, None)
            self.proxies[entry_id] = entry
        return entry

    # ---- what has gone -------------------------------------------------------------------------------------

    def _on_proxy_closed(self, event: ProxyClosed) -> None:
        if event.side is Side.SERVER:
            self._reasons[event.name, event.kind, event.port, event.where] = event.reason.value

    def _on_client_gone(self, event: ClientGone) -> None:
        now = self._clock()
        entry = self._by_address.get(format_address(event.client))
        if entry is None:  # it came within the last second
            control = next((each for each in self._ingress.clients if each.address == event.client), None)
            if control is None:
                return
            entry = self._look_at_client(control, now)
            entry.since = now - event.lasted_s
        del self._by_address[entry.address]
        if entry.control is None:  # a look has found so, which does not tell why
            entry.reason = event.reason
            return
        if entry.control.held:
            entry.proxies = self._proxies_of(entry, entry.control, now)
        self._end_client(entry, now, event.reason)

    def _end_client(self, entry: ClientEntry, now: float, reason: str) -> None:
        entry.control, entry.gone_at, entry.reason = None, now, reason
        had = [*map(_had, entry.proxies), *(proxy for at, proxy in entry.lost if now - at < JUST_S)]
        entry.had = had[:MAX_HAD]
        entry.proxies = []
        entry.lost.clear()
        self.clients[entry.id] = self.clients.pop(entry.id)  # behind those that went before
        if entry.client_id:
            self._gone_clients[entry.client_id] = entry

    def _end_proxy(self, entry: ProxyEntry, now: float) -> None:
        entry.ingress, entry.gone_at, entry.is_waiting = None, now, False
        if entry.client is not None and entry.client.control is not None:
            entry.client.lost.append((now, _had(entry)))
        entry.reason = self._reasons.get(_key_of(entry), "")
        self.proxies[entry.id] = self.proxies.pop(entry.id)
        self._gone_proxies[_key_of(entry)] = entry

    def _forget(self, now: float) -> None:
        """Forget what has been gone for too long, and the first of what is too much."""
        for client in _too_many([each for each in self.clients.values() if each.control is None], now):
            del self.clients[client.id]
            if self._gone_clients.get(client.client_id) is client:
                del self._gone_clients[client.client_id]
            if self._by_address.get(client.address) is client:
                del self._by_address[client.address]
        for proxy in _too_many([each for each in self.proxies.values() if each.ingress is None], now):
            del self.proxies[proxy.id]
            if self._gone_proxies.get(_key_of(proxy)) is proxy:
                del self._gone_proxies[_key_of(proxy)]


def _had(entry: ProxyEntry) -> Had:
    return Had(entry.id, entry.name[:MAX_NAME])


_ProxyKey = tuple[str, str, int, str]


def _key_of(entry: ProxyEntry) -> _ProxyKey:
    """Return what a proxy has in common with the one that comes back in its place."""
    return entry.name, entry.kind, entry.port, entry.link


Entry = TypeVar("Entry", ClientEntry, ProxyEntry)


def _too_many(gone: list[Entry], now: float) -> list[Entry]:
    """Return those that are to be forgotten, of what is gone; what went first is first.

    So many clients that come and go do not have those forgotten that were there for long.
    """
    late = [entry for entry in gone if now - (entry.gone_at or now) > GONE_S]
    left = [entry for entry in gone if now - (entry.gone_at or now) <= GONE_S]
    left.sort(key=lambda entry: (entry.gone_at or now) - entry.since >= SHORT_S)  # stable: the oldest first
    return late + left[: max(len(left) - MAX_GONE, 0)]
