"""The stream on which the panel lives: the state of the server once a second, and events as they happen.

The first state holds everything; each later one what has changed since.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.lock import Semaphore

from gnar_lib.admin.feed import Feed
from gnar_lib.http import Send
from gnar_lib.http.share import share
from gnar_lib.pio.rates import STEP_S
from gnar_lib.server.admin.view import JSON, View, Wanted

LOOK_S = STEP_S
MAX_OF_STATE = 200  # proxies in one event: more of them go into further ones, so that each is made quickly


class Live:
    """What readers of all streams have in common: the state is made once for all of them."""

    def __init__(self, view: View, feed: Feed) -> None:
        self.readers = 0
        self.watchers = 0  # of the readers, those who may change nothing
        self.view = view
        self.feed = feed
        self._sample = -1  # of which the state is
        self._making = Semaphore()  # one reader makes the state, and others wait for it
        self._clients: dict[str, JSON] = {}
        self._proxies: dict[str, JSON] = {}

    def look(self) -> tuple[dict[str, JSON], dict[str, JSON]]:
        """Return clients and proxies by id, as of the last sample; not to be changed."""
        with self._making:
            if self._sample != (sample := self.view.sampler.samples):
                clients = {client["id"]: client for client in self.view.clients()}
                proxies = {proxy["id"]: proxy for proxy in self.view.proxies(with_charts=False)}
                self._sample, self._clients, self._proxies = sample, clients, proxies
            return self._clients, self._proxies

    def send_all(self, send: Send, role: JSON, wanted: Wanted | None) -> None:
        """Send everything until the reader has gone; with `wanted` connections in each state."""
        with self._reading(role):
            _Reader(self, send, role, wanted).run()

    def send_connections(self, send: Send, role: JSON, wanted: Wanted) -> None:
        """Send some connections, and the figures of the server, until the reader has gone."""
        with self._reading(role):
            while True:
                share.give_way()
                connections = self.view.connections(wanted)
                send("state", _json({"server": {**self.view.server(), **role}, "connections": connections}))
                gevent.sleep(LOOK_S)

    @contextmanager
    def _reading(self, role: JSON) -> Iterator[None]:
        is_watcher = not role["may_change"]
        self.readers += 1
        self.watchers += is_watcher
        try:
            yield
        finally:
            self.readers -= 1
            self.watchers -= is_watcher


class _Reader:
    """One reader of everything, and what it has been sent."""

    def __init__(self, live: Live, send: Send, role: JSON, wanted: Wanted | None) -> None:
        self._live = live
        self._send = send
        self._role = role
        self._wanted = wanted
        self._clients: dict[str, JSON] = {}
        self._proxies: dict[str, JSON] = {}
        self._points = live.view.sampler.points  # how many there were when the reader got the last one
        self._number = live.feed.number  # of the last event that was sent

    def run(self) -> None:
        self._send_state(is_first=True)
        fresh = self._live.feed.last()
        while True:
            for happened in fresh:
                self._send("happened", happened.text)
            self._number = fresh[-1].number if fresh else self._number
            gevent.sleep(LOOK_S)
            self._send_state(is_first=False)
            fresh = self._live.feed.since(self._number)

    def _send_state(self, *, is_first: bool) -> None:
        view = self._live.view
        share.give_way()
        clients, proxies = self._live.look()
        changed = []
        for key, proxy in proxies.items():
            share.give_way()
            if self._proxies.get(key) != proxy:
                changed.append(proxy)
        state: JSON = {
            "server": {**view.server(), **self._role},
            "clients": [client for key, client in clients.items() if self._clients.get(key) != client],
            "proxies": self._with_charts(changed, proxies),
            "connections": None if self._wanted is None else view.connections(self._wanted),
        }
        if not is_first:
            gone = [*(self._clients.keys() - clients.keys()), *(self._proxies.keys() - proxies.keys())]
            state["removed"] = gone
        self._clients, self._proxies = clients, proxies
        shown = state["proxies"]
        state["proxies"] = shown[:MAX_OF_STATE]
        self._send("state", _json(state))
        nothing: JSON = {"clients": [], "removed": []}
        for at in range(MAX_OF_STATE, len(shown), MAX_OF_STATE):
            self._send("state", _json({**state, **nothing, "proxies": shown[at : at + MAX_OF_STATE]}))

    def _with_charts(self, changed: list[JSON], proxies: dict[str, JSON]) -> list[JSON]:
        """Return proxies with what is new of their charts.

        That is the whole chart of a new proxy, and of all after a pause; else the point that has come since.
        """
        view = self._live.view
        entries = view.registry.proxies
        new_points, self._points = view.sampler.points - self._points, view.sampler.points
        shown = {proxy["id"]: proxy for proxy in changed}
        for key in [*shown, *(proxies if new_points else ())]:
            share.give_way()
            if key not in entries:
                continue
            if key not in self._proxies or new_points > 1:
                shown[key] = {**proxies[key], "chart": view.chart(entries[key])}
            elif new_points and (point := view.point(entries[key])) is not None:
                shown[key] = {**proxies[key], "point": point}
        return [*shown.values()]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
