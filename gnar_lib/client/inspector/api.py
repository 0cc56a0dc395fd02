"""What the inspector's page asks for and does, as routes; knows no conn."""

from __future__ import annotations

import json
from collections.abc import Iterable

import gevent
import gevent.event

from gnar_lib import __version__
from gnar_lib.client.inspector.edit import edited
from gnar_lib.client.inspector.replay import Replayer
from gnar_lib.client.inspector.rows import detail, summary
from gnar_lib.http import EventStream, HTTPError, Request, Response, Routes, Send, StaticFiles
from gnar_lib.http.share import share
from gnar_lib.inspect import Exchange, Inspector, curl_of, har_text

PACKAGES, FOLDER = ("gnar_lib.client.inspector", "gnar_lib.admin"), "static"
INDEX = "inspector.html"
PAUSE_S = 0.2  # between two looks for what has changed


class API:
    """Answers requests about what an inspector has recorded."""

    def __init__(self, inspector: Inspector, replayer: Replayer) -> None:
        self._store = inspector.store
        self._replayer = replayer
        self._files = StaticFiles(*PACKAGES, folder=FOLDER)
        self._news: gevent.event.Event = gevent.event.Event()
        self._store.on_change = self._news.set

    def add_to(self, routes: Routes) -> None:
        """Add all routes."""
        routes.add("GET", "/", lambda request: self._files.serve(request, INDEX))
        routes.add("GET", "/static/{name}", self._files.serve)
        routes.add("GET", "/api/exchanges", self._list)
        routes.add("GET", "/api/exchanges/{number}", self._show)
        routes.add("GET", "/api/exchanges/{number}/curl", self._curl)
        routes.add("GET", "/api/exchanges/{number}/har", self._one_har)
        routes.add("POST", "/api/exchanges/{number}/replay", self._replay)
        routes.add("GET", "/api/har", lambda _request: _archive([*self._store]))
        routes.add("POST", "/api/clear", self._clear)
        routes.add("GET", "/api/live", self._live)

    # ---- looking -------------------------------------------------------------------------------------------

    def _list(self, _request: Request) -> Response:
        return Response.json(self._changes(-1))

    def _show(self, _request: Request, number: str) -> Response:
        return Response.json(detail(self._exchange(number)))

    def _curl(self, request: Request, number: str) -> Response:
        with_secrets = request.query.get("secrets", "") == "1"
        command = curl_of(self._exchange(number), with_secrets=with_secrets)
        return Response.json({"command": command.text, "notes": [*command.notes]})

    def _one_har(self, _request: Request, number: str) -> Response:
        return _archive([self._exchange(number)])

    def _exchange(self, number: str) -> Exchange:
        exchange = self._store.get(int(number)) if number.isascii() and number.isdigit() else None
        if exchange is None:
            raise HTTPError(404, "this exchange is not kept, or no longer")
        return exchange

    def _changes(self, since: int) -> dict[str, object]:
        """Return what has changed behind the change with this number."""
        present = [*self._store]
        return {
            "version": __version__,
            "change": self._store.change,
            "clearings": self._store.clearings,
            "total": self._store.total,
            "first": present[0].id if present else self._store.total + 1,  # older ones are not kept any more
            "exchanges": [summary(each) for each in present if each.change > since],
        }

    def _live(self, _request: Request) -> EventStream:
        return EventStream(self._send_changes)

    def _send_changes(self, send: Send) -> None:
        """Send what changes, until the reader has gone."""
        since = -1
        while True:
            changes = self._changes(since)
            since = self._store.change
            send("changes", json.dumps(changes, separators=(",", ":")))
            self._news.clear()
            if since == self._store.change:
                self._news.wait()
            gevent.sleep(PAUSE_S)

    # ---- changing ------------------------------------------------------------------------------------------

    def _replay(self, request: Request, number: str) -> Response:
        exchange, changes = self._exchange(number), request.json()
        return Response.json({"id": self._replayer.send(exchange, edited(exchange, changes))}, 202)

    def _clear(self, request: Request) -> Response:
        request.json()  # which a form of a foreign page cannot send
        self._store.clear()
        return Response(204)


def _archive(exchanges: Iterable[Exchange]) -> Response:
    text = har_text(exchanges, share.give_way)
    named = [("Content-Disposition", 'attachment; filename="gnar.har"')]
    return Response(200, text.encode(errors="replace"), "application/json", named)
