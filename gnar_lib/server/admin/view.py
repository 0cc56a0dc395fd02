"""What there is at a server, as values for JSON: the objects of the API, which docs/admin.md describes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from gnar_lib import __version__
from gnar_lib.errors import GnarError
from gnar_lib.http.share import share
from gnar_lib.net import format_address
from gnar_lib.net.descriptors import descriptors
from gnar_lib.pio.meter import NO_LIMIT, LiveConnection, Meter
from gnar_lib.pio.rates import STEP_S, STEPS_OF_POINT, Movement, Sampler
from gnar_lib.server.admin.registry import ClientEntry, ProxyEntry, Registry
from gnar_lib.server.ingress.control import ControlIngress
from gnar_lib.server.ingress.making import Ingress
from gnar_lib.server.shared import Shared

MAX_ROWS = 1000  # connections in one answer
SORTS = ("age", "user", "up", "down", "rate", "rate_up", "rate_down", "idle")
JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which live connections are to be shown, and in which order."""

    proxy: str = ""  # the id of their proxy; empty for all
    text: str = ""  # that the user's address contains
    sort: str = "age"  # one of `SORTS`
    is_descending: bool = False
    limit: int = 100
    offset: int = 0


class View:
    """Reads a server, and what `Registry` and `Sampler` know of it."""

    def __init__(self, shared: Shared, ingress: ControlIngress, lag_s: Callable[[], float]) -> None:
        self.registry = Registry(ingress)
        self.sampler = Sampler(shared.meter, self._meters)
        self._shared = shared
        self._ingress = ingress
        self._lag_s = lag_s
        self._started_at = time.time()
        self._began_s = time.monotonic()

    def _meters(self) -> list[Meter]:
        self.registry.look()
        return [entry.meter for entry in self.registry.proxies.values() if not entry.meter.is_over]

    # ---- the whole -----------------------------------------------------------------------------------------

    def server(self) -> JSON:
        """Return the figures of the whole server."""
        shared, totals, total = self._shared, self._shared.meter.totals(), self.sampler.total
        there = [entry for entry in self.registry.proxies.values() if entry.ingress is not None]
        return {
            "version": __version__,
            "port": self._port(),
            "started_at": round(self._started_at, 3),
            "now": round(time.time(), 3),
            "clients": sum(entry.control is not None for entry in self.registry.clients.values()),
            "proxies": len(there),
            "users": len(shared.users),
            "users_total": totals.users_total,
            "udp_users": totals.sessions,
            "bytes_up": totals.up,
            "bytes_down": totals.down,
            "rate_up": round(total.rate_up),
            "rate_down": round(total.rate_down),
            "udp_dropped": totals.dropped,
            "descriptors": descriptors.taken,
            "descriptors_limit": descriptors.limit,
            "loop_lag_s": round(self._lag_s(), 4),
        }

    def _port(self) -> int:
        try:
            return int(self._ingress.sock.getsockname()[1])
        except (GnarError, OSError):  # the server does not listen yet, or no longer
            return self._shared.config.port

    def drop_kept(self, ingress: Ingress) -> bool:
        """Close a port that is kept for a client which is away; returns whether it was."""
        return self._ingress.kept.drop(ingress)

    # ---- clients and proxies -------------------------------------------------------------------------------

    def clients(self) -> list[JSON]:
        """Return all clients, also those that are gone."""
        shown = []
        for entry in [*self.registry.clients.values()]:
            share.give_way()
            shown.append(client(entry))
        return shown

    def proxies(self, *, with_charts: bool = True) -> list[JSON]:
        """Return all proxies, also those that are gone."""
        shown = []
        for entry in [*self.registry.proxies.values()]:
            share.give_way()
            shown.append(self.proxy(entry, with_chart=with_charts))
        return shown

    def proxy(self, entry: ProxyEntry, *, with_chart: bool = True) -> JSON:
        """Return one proxy."""
        meter, course = entry.meter, self.sampler.course(entry.meter)
        totals, own = meter.totals(), NO_LIMIT if entry.ingress is None else entry.ingress.proxy.own_limit
        shown: JSON = {
            "id": entry.id,
            "name": entry.name,
            "kind": entry.kind,
            "port": entry.port,
            "link": entry.link,
            "client": "" if entry.client is None else entry.client.id,
            "state": "gone" if entry.ingress is None else "waiting" if entry.is_waiting else "open",
            "since": round(entry.since, 3),
            "gone_at": entry.gone_at and round(entry.gone_at, 3),
            "reason": entry.reason,
            "users": totals.users,
            "users_total": totals.users_total,
            "bytes_up": totals.up,
            "bytes_down": totals.down,
            "rate_up": round(course.rate_up),
            "rate_down": round(course.rate_down),
            "limit_up": _smaller(meter.limit.up, own.up),
            "limit_down": _smaller(meter.limit.down, own.down),
            "dropped": totals.dropped,
        }
        if with_chart:
            shown["chart"] = self.chart(entry)
        return shown

    def chart(self, entry: ProxyEntry) -> JSON | None:
        """Return the chart of a proxy; None if nothing has happened in its time."""
        points = self.sampler.course(entry.meter).points
        if not any(point.up or point.down or point.users for point in points):
            return None
        return {
            "step_s": STEP_S * STEPS_OF_POINT,
            "until": round(self.sampler.until, 3),
            "up": [point.up for point in points],
            "down": [point.down for point in points],
            "users": [point.users for point in points],
        }

    def point(self, entry: ProxyEntry) -> JSON | None:
        """Return the last point of a proxy's chart; None if the chart is empty there and before."""
        last = [*self.sampler.course(entry.meter).points][-2:]
        if not any(point.up or point.down or point.users for point in last):
            return None
        return {"up": last[-1].up, "down": last[-1].down, "users": last[-1].users}

    # ---- connections ---------------------------------------------------------------------------------------

    def _connections(self, proxy_id: str) -> Iterator[tuple[str, LiveConnection]]:
        entries = self.registry.proxies
        for entry in [entries[proxy_id]] if proxy_id in entries else [] if proxy_id else entries.values():
            for connection in entry.meter.connections:
                yield entry.id, connection

    def connections(self, wanted: Wanted) -> JSON:
        """Return some of the live connections. Only what is asked for is made into values: there are many."""
        found = [*self._connections(wanted.proxy)]
        order, matching = self._order_of(wanted.sort), []
        for each in found:
            share.give_way()
            if not wanted.text or wanted.text in format_address(each[1].user):
                matching.append((order(each), each))
        matching.sort(key=itemgetter(0), reverse=wanted.is_descending)
        shown = []
        for _, each in matching[wanted.offset : wanted.offset + wanted.limit]:
            share.give_way()
            shown.append(self._connection(*each))
        return {"connections": shown, "matched": len(matching), "total": len(found)}

    def _order_of(self, sort: str) -> Callable[[tuple[str, LiveConnection]], tuple[Any, int]]:
        """Return by what connections are sorted; the older ones first where that is equal.

        So no connection is on two pages, or on none.
        """
        movement = self.sampler.movement
        keys: dict[str, Callable[[LiveConnection], Any]] = {
            "age": lambda each: -each.began_s,
            "user": lambda each: format_address(each.user),
            "up": lambda each: each.up.bytes,
            "down": lambda each: each.down.bytes,
            "rate": lambda each: movement(each).rate_up + movement(each).rate_down,
            "rate_up": lambda each: movement(each).rate_up,
            "rate_down": lambda each: movement(each).rate_down,
            "idle": lambda each: self._idle_s(each, movement(each)),
        }
        key = keys[sort]
        return lambda each: (key(each[1]), each[1].number)

    def _connection(self, proxy_id: str, connection: LiveConnection) -> JSON:
        movement = self.sampler.movement(connection)
        return {
            "id": f"u{connection.number}",
            "proxy": proxy_id,
            "user": format_address(connection.user),
            "since": round(self._started_at + connection.began_s - self._began_s, 3),
            "bytes_up": connection.up.bytes,
            "bytes_down": connection.down.bytes,
            "rate_up": round(movement.rate_up),
            "rate_down": round(movement.rate_down),
            "idle_s": self._idle_s(connection, movement),
        }

    @staticmethod
    def _idle_s(connection: LiveConnection, movement: Movement) -> float:
        """Return for how long nothing has moved, as far as samples tell."""
        if connection.up.bytes != movement.up or connection.down.bytes != movement.down:
            return 0.0
        return round(time.monotonic() - movement.moved_s, 1)

    def find_connection(self, connection_id: str) -> LiveConnection | None:
        """Return the live connection of that id; None if there is none (any more)."""
        found = (each for _, each in self._connections("") if f"u{each.number}" == connection_id)
        return next(found, None)


def _smaller(one: int | None, other: int | None) -> int | None:
    """Return the limit that holds of two, each of which may be None."""
    return min((each for each in (one, other) if each is not None), default=None)


def client(entry: ClientEntry) -> JSON:
    """Return one client."""
    return {
        "id": entry.id,
        "address": entry.address,
        "version": entry.version,
        "multiplexed": entry.is_multiplexed,
        "state": "gone" if entry.control is None else "connected",
        "since": round(entry.since, 3),
        "gone_at": entry.gone_at and round(entry.gone_at, 3),
        "reason": entry.reason,
        "proxies": [proxy.id for proxy in entry.proxies or entry.had],
        "names": [proxy.name for proxy in entry.proxies or entry.had],
    }
