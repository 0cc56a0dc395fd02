"""`gnar top`: a server's live view on a terminal, or once as text."""

from __future__ import annotations

import os
from dataclasses import replace

from gnar_lib import logger
from gnar_lib.terminal import keys
from gnar_lib.terminal.loop import Loop
from gnar_lib.terminal.screen import is_usable
from gnar_lib.terminal.view import draw, rows_room, text_of
from gnar_lib.top.api import Api
from gnar_lib.top.feed import Feed
from gnar_lib.top.state import CONNECTION_SORTS, SORTS, Looks, State

MAX_CONNECTIONS = 200  # of a proxy, that are asked for


def run_top(api: Api, *, once: bool) -> int:
    """Show a server until a key or a signal ends it, or once; returns the exit status.

    Raises `ConnError`, `AuthError` or `ProtocolError` if there is no server to show.
    """
    if once or not is_usable(os.environ):
        return 0 if logger.show(_snapshot(api)) else 1
    _Top(api).run()
    return 0


def _snapshot(api: Api) -> str:
    """Return everything there is, as text."""
    state = State(api.url)
    state.take("state", {"server": api.get("/server"), **api.get("/clients"), **api.get("/proxies")})
    return text_of(replace(state.view(Looks()), selected=None))


class _Top:
    """What is looked at, and what keys do."""

    def __init__(self, api: Api) -> None:
        self._loop = Loop(self._draw, self._press)
        self._feed = Feed(api, self._on_news)
        self._colour = not os.environ.get("NO_COLOR")
        self._looks = Looks()
        self._overview = self._looks  # what was looked at before the connections of a proxy
        self._page = 1  # for how many rows there was room

    def run(self) -> None:
        """Show the server until the end; raises the error after which there is nothing to show."""
        self._feed.start()
        self._loop.run()
        if self._feed.failure is not None:
            raise self._feed.failure

    def _on_news(self) -> None:
        """Have the news drawn; called in the thread of the feed."""
        if self._feed.failure is None:
            self._loop.wake()
        else:
            self._loop.end()

    def _draw(self, columns: int, lines: int) -> list[str]:
        with self._feed.lock:
            view = self._feed.state.view(self._looks, lines)
            self._page = rows_room(view, columns, lines)
            selected = view.selected or 0
            first = min(self._looks.first, selected)
            first = max(first, selected - self._page + 1)
            self._looks = replace(self._looks, first=first, selected=selected)
            view = self._feed.state.view(self._looks, lines)
        return draw(view, columns, lines, colour=self._colour)

    # ---- keys ----------------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        steps = {
            keys.UP: -1,
            "k": -1,
            keys.DOWN: 1,
            "j": 1,
            keys.PAGE_UP: -self._page,
            keys.PAGE_DOWN: self._page,
            keys.HOME: -MAX_CONNECTIONS * MAX_CONNECTIONS,
            keys.END: MAX_CONNECTIONS * MAX_CONNECTIONS,
        }
        if key in ("q", "Q"):
            self._loop.end()
        elif key in steps:
            self._looks = replace(self._looks, selected=max(0, self._looks.selected + steps[key]))
        elif key in ("s", "S"):
            self._sort_by_next()
        elif key in (keys.ENTER, keys.RIGHT):
            self._open()
        elif key in (keys.ESCAPE, keys.LEFT) and self._looks.proxy:
            self._looks = replace(self._overview, connection_sort=self._looks.connection_sort)
            self._feed.watch()

    def _sort_by_next(self) -> None:
        if self._looks.proxy:
            sort = _next(CONNECTION_SORTS, self._looks.connection_sort)
            self._looks = replace(self._looks, connection_sort=sort)
            self._watch()
        else:
            self._looks = replace(self._looks, sort=_next((*SORTS,), self._looks.sort))

    def _open(self) -> None:
        """Look at the connections of the proxy that is selected."""
        with self._feed.lock:
            proxy = self._feed.state.id_of(self._looks)
        if proxy and not self._looks.proxy:
            self._overview = self._looks
            self._looks = replace(self._looks, proxy=proxy, first=0, selected=0)
            self._watch()

    def _watch(self) -> None:
        sort = self._looks.connection_sort
        order = "asc" if sort == "user" else "desc"
        self._feed.watch(proxy=self._looks.proxy, sort=sort, order=order, limit=MAX_CONNECTIONS)


def _next(names: tuple[str, ...], name: str) -> str:
    return names[(names.index(name) + 1) % len(names)]
