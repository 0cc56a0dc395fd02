"""What is known of a server: takes what its API says, and makes views of it. Does no I/O.

Nothing that a server sends is trusted to be what it should be.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gnar_lib.logger import Entry
from gnar_lib.terminal.text import CUT, GREEN, PLAIN, YELLOW, lasted, rate, size
from gnar_lib.terminal.view import ConnectionRow, Fact, ProxyRow, View

MAX_EVENTS = 200
MAX_OBJECTS = 20_000  # clients, or proxies: further ones are not shown
MAX_CONNECTIONS = 1000  # of a proxy; fewer are asked for
MAX_TEXT = 1000  # characters of a text, and of the line of an event
_LAGGING_S = 0.1  # from here on the server's loop is slow enough to be marked

_UNTOLD = ("event", "at", "side", "id")  # fields of events
MAX_WORDS = 10  # of a field that is a list
_MOST = 1e18  # a number that is larger is no count
LATEST = 32_000_000_000.0  # the year 2984: Windows shows no time after 3000, nor one before 1970

Object = dict[str, Any]

# What is kept of what the server says, so that nothing else fills memory.
_COUNTS = ("users", "users_total", "bytes_up", "bytes_down", "rate_up", "rate_down")
_OF_SERVER = ("version", "now", "started_at", "clients", "proxies", "udp_dropped", "loop_lag_s", *_COUNTS)
_OF_CLIENT = ("address", "state")
_OF_PROXY = ("name", "kind", "port", "link", "client", "state", "gone_at", "dropped", *_COUNTS)
_OF_CONNECTION = ("user", "since", "idle_s", "bytes_up", "bytes_down", "rate_up", "rate_down")

# How proxies can be sorted: the largest first, but for names.
SORTS: dict[str, Callable[[ProxyRow], Any]] = {
    "name": lambda row: row.name,
    "users": lambda row: -row.users,
    "rate": lambda row: -(row.rate_up + row.rate_down),
    "bytes": lambda row: -(row.up + row.down),
    "total": lambda row: -row.users_total,
}
CONNECTION_SORTS = ("age", "down", "up", "rate", "idle", "user")  # as the API names them


@dataclass(frozen=True, slots=True)
class Looks:
    """What a person has chosen to look at."""

    sort: str = "name"
    proxy: str = ""  # the id of the proxy whose connections are looked at
    connection_sort: str = CONNECTION_SORTS[0]
    first: int = 0
    selected: int = 0


class State:
    """The server as the API has described it until now."""

    def __init__(self, url: str) -> None:
        self.error = ""  # why nothing is heard of the server
        self._url = url
        self._server: Object = {}
        self._clients: dict[str, Object] = {}
        self._proxies: dict[str, Object] = {}
        self._connections: Object | None = None
        self._events: deque[Entry] = deque(maxlen=MAX_EVENTS)
        self._heard_s = time.time()

    # ---- what the API says ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget everything but events: a new stream begins with everything there is."""
        self._server, self._connections = {}, None
        self._clients.clear()
        self._proxies.clear()

    def take(self, name: str, data: Object) -> None:
        """Take an event of the live stream."""
        if name == "state":
            self._heard_s = time.time()
            self._take_state(data)
        elif name == "happened":
            entry = Entry(moment(data, "at"), logging.INFO, _told(data))
            if entry not in self._events:  # each stream begins with those of the last time
                self._events.append(entry)

    def _take_state(self, data: Object) -> None:
        self._server.update(_kept(_object(data.get("server")), _OF_SERVER))
        _merge(self._clients, data.get("clients"), _OF_CLIENT)
        _merge(self._proxies, data.get("proxies"), _OF_PROXY)
        removed = data.get("removed")
        for key in removed if isinstance(removed, list) else ():
            if isinstance(key, str):
                self._clients.pop(key, None)
                self._proxies.pop(key, None)
        if "connections" in data:
            found = _object(data["connections"])
            rows = _list(found, "connections")[:MAX_CONNECTIONS]
            kept = {"connections": [_kept(each, _OF_CONNECTION) for each in rows]}
            self._connections = {**_kept(found, ("total",)), **kept} if found else None

    # ---- what is shown -------------------------------------------------------------------------------------

    def id_of(self, looks: Looks) -> str:
        """Return the id of the proxy that is selected; empty if there is none."""
        ids = [key for key, _ in self._sorted(looks.sort)]
        return ids[looks.selected] if looks.selected < len(ids) else ""

    def view(self, looks: Looks, count: int | None = None) -> View:
        """Return what is to be shown, with `count` rows from the first that is looked at; None: all of them.

        Also the selection, which is on a row that is there.
        """
        if looks.proxy:
            rows: list[Any] = self._connection_rows()
            kept, hint = rows, f"Esc back  s sort: {looks.connection_sort}  q quit"
        else:
            kept = [row for _, row in self._sorted(looks.sort)]
            hint = f"Enter connections  s sort: {looks.sort}  q quit"
        selected = min(looks.selected, max(0, len(kept) - 1))
        first = min(looks.first, selected)
        return View(
            title=f"gnar server {text(self._server, 'version')}".rstrip(),
            hint=hint,
            facts=tuple(self._facts(looks)),
            rows=tuple(kept[first:] if count is None else kept[first : first + count]),
            rows_title="USER" if looks.proxy else "",
            partner_title="CLIENT",
            first=first,
            count=len(kept),
            selected=selected if kept else None,
            events=tuple(self._events),
        )

    def _facts(self, looks: Looks) -> list[Fact]:
        server, facts = self._server, [Fact("Server", self._url)]
        if self.error:
            facts.append(
                Fact("", f"not connected since {lasted(time.time() - self._heard_s)}: {self.error}", YELLOW)
            )
        elif server:
            facts.append(
                Fact("Up since", lasted(moment(server, "now") - moment(server, "started_at")), GREEN)
            )
        if looks.proxy:
            return facts + self._facts_of_proxy(looks.proxy)
        users, users_total = integer(server, "users"), integer(server, "users_total")
        facts += [
            Fact("Clients", str(integer(server, "clients"))),
            Fact("Proxies", str(integer(server, "proxies"))),
            Fact("Users", f"{users} now, {users_total} in all"),
            Fact("Up", f"{rate(number(server, 'rate_up'))}/s, {size(number(server, 'bytes_up'))} in all"),
            Fact(
                "Down", f"{rate(number(server, 'rate_down'))}/s, {size(number(server, 'bytes_down'))} in all"
            ),
        ]
        if dropped := integer(server, "udp_dropped"):
            facts.append(Fact("Dropped", str(dropped), YELLOW))
        lag_s = number(server, "loop_lag_s")
        facts.append(Fact("Lag", f"{lag_s * 1000:.0f} ms", YELLOW if lag_s > _LAGGING_S else PLAIN))
        return facts

    def _facts_of_proxy(self, key: str) -> list[Fact]:
        row = self._row(self._proxies.get(key, {}))
        found = self._connections or {}
        shown, total = len(_list(found, "connections")), integer(found, "total")
        facts = [
            Fact("Proxy", row.name),
            Fact("", row.where, PLAIN if row.is_open else YELLOW),
            Fact("Client", row.partner),
            Fact("Up", f"{rate(row.rate_up)}/s, {size(row.up)} in all"),
            Fact("Down", f"{rate(row.rate_down)}/s, {size(row.down)} in all"),
        ]
        if shown < total:
            facts.append(Fact("", f"the first {shown} of {total} connections", YELLOW))
        return facts

    def _sorted(self, sort: str) -> list[tuple[str, ProxyRow]]:
        """Return the proxies with their ids; those that have gone are at the end."""
        rows = [(key, self._row(proxy)) for key, proxy in self._proxies.items()]
        gone = {key for key, proxy in self._proxies.items() if text(proxy, "state") == "gone"}
        return sorted(rows, key=lambda each: (each[0] in gone, SORTS[sort](each[1]), each[1].name))

    def _row(self, proxy: Object) -> ProxyRow:
        state, link, port = text(proxy, "state"), text(proxy, "link"), integer(proxy, "port")
        client = self._clients.get(text(proxy, "client"), {})
        is_tcp = text(proxy, "kind") != "udp"
        row = ProxyRow(
            name=text(proxy, "name"),
            kind="tcp" if is_tcp else "udp",
            where=link or (f"port {port}" if port else ""),
            url=link if "://" in link else f"http://{link}" if link and is_tcp else "",
            is_open=state == "open",
            partner=text(client, "address"),
            partner_answers=True if text(client, "state") == "connected" else None,
            users=integer(proxy, "users"),
            users_total=integer(proxy, "users_total"),
            up=integer(proxy, "bytes_up"),
            down=integer(proxy, "bytes_down"),
            rate_up=number(proxy, "rate_up"),
            rate_down=number(proxy, "rate_down"),
            dropped=integer(proxy, "dropped"),
        )
        if state == "gone":
            ago = lasted(time.time() - moment(proxy, "gone_at"))
            return replace(row, where=f"gone for {ago}", url="")
        return row if row.is_open else replace(row, where=f"{row.where} {state}".strip(), url="")

    def _connection_rows(self) -> list[ConnectionRow]:
        now = moment(self._server, "now") or time.time()
        return [
            ConnectionRow(
                user=text(each, "user"),
                age_s=now - moment(each, "since"),
                idle_s=number(each, "idle_s"),
                up=integer(each, "bytes_up"),
                down=integer(each, "bytes_down"),
                rate_up=number(each, "rate_up"),
                rate_down=number(each, "rate_down"),
            )
            for each in _list(self._connections or {}, "connections")
        ]


# ---- values that may be anything ---------------------------------------------------------------------------


def text(value: Object, key: str) -> str:
    """Return the text of a key; empty if there is none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def number(value: Object, key: str) -> float:
    """Return the number of a key; 0 if there is none that can be shown."""
    found = value.get(key)
    if not isinstance(found, int | float) or not abs(found) < _MOST:
        return 0.0
    return float(found)


def integer(value: Object, key: str) -> int:
    """Return the whole number of a key; 0 if there is none."""
    return int(number(value, key))


def moment(value: Object, key: str) -> float:
    """Return the time of a key, in Unix seconds; 0 if there is none that every system can show."""
    found = number(value, key)
    return found if 0 <= found <= LATEST else 0.0


def _object(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _list(value: Object, key: str) -> list[Object]:
    found = value.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _kept(value: Object, names: tuple[str, ...]) -> Object:
    """Return the fields of these names that are texts, shortened, or numbers."""
    found = {name: value[name] for name in names if name in value}
    return {
        name: each[:MAX_TEXT] if isinstance(each, str) else each
        for name, each in found.items()
        if each is None or isinstance(each, str | int | float)
    }


def _merge(known: dict[str, Object], changed: object, names: tuple[str, ...]) -> None:
    """Take objects that have changed, each with its id."""
    for each in changed if isinstance(changed, list) else ():
        key = each.get("id") if isinstance(each, dict) else None
        if not isinstance(key, str) or len(key) > MAX_TEXT:
            continue
        if key in known or len(known) < MAX_OBJECTS:
            known.setdefault(key, {}).update(_kept(each, names))


def _told(data: Object) -> str:
    """Return an event as a line: its name, and those of its fields that say something to a person."""
    fields = [f"{key}={_word(value)}" for key, value in data.items() if value and key not in _UNTOLD]
    line = " ".join([text(data, "event"), *fields])
    return line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + CUT


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_word(each) if not isinstance(each, list) else CUT for each in value[:MAX_WORDS])
    if isinstance(value, dict):  # no event has one, nor a list in a list, which may be too deep to be shown
        return CUT
    return f"{value:.3g}" if isinstance(value, float) else str(value)
