"""The API of a server: what may be asked and ended, as `openapi.json` describes it, and the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

from gnar_lib import __version__, logger
from gnar_lib.admin.access import Access, client_of, pass_of
from gnar_lib.admin.feed import NOTEWORTHY, Feed
from gnar_lib.admin.sessions import Role
from gnar_lib.events import BY_NAME, Event
from gnar_lib.http import EventStream, HTTPError, Request, Response, Routes, Send, StaticFiles
from gnar_lib.http.message import Handler
from gnar_lib.net import format_address, host_of
from gnar_lib.server.admin.live import Live
from gnar_lib.server.admin.registry import ProxyEntry
from gnar_lib.server.admin.view import MAX_ROWS, SORTS, View, Wanted
from gnar_lib.server.belongings import BY_ADMINISTRATOR

MAX_LIVE = 32  # streams of the panel: each costs the server a bit of time each second
MAX_LIVE_OF_READERS = MAX_LIVE // 2  # of them with the read token: whoever may change things gets in
MAX_EVENT_STREAMS = 200
MAX_TEXT = 200  # characters of a filter
_DIGITS = re.compile("[0-9]{1,18}")
_log = logger.get("admin")
PACKAGE, FOLDER = "gnar_lib.server.admin", "static"
COMMON_PACKAGE = "gnar_lib.admin"  # whose folder of that name has what all pages of gnar share


class _NotAllowedError(Exception):
    """Ends an event stream: the password has changed, or the session is over."""


class API:
    """Answers requests about one server."""

    def __init__(self, view: View, feed: Feed, access: Access) -> None:
        self._view = view
        self._feed = feed
        self._access = access
        self._live = Live(view, feed)
        self._files = StaticFiles(PACKAGE, COMMON_PACKAGE, folder=FOLDER)
        self._description = _make_description()

    def add_to(self, routes: Routes) -> None:
        """Add all routes."""
        handlers: dict[str, Handler] = {
            "/": self._page,
            "/static/{name}": self._files.serve,
            "/api/openapi.json": lambda _: self._description,
            "/api/v1/server": self._server,
            "/api/v1/clients": self._clients,
            "/api/v1/proxies": self._proxies,
            "/api/v1/connections": self._connections,
            "/api/v1/events": self._events,
            "/api/v1/live": self._stream,
        }
        for path, handler in handlers.items():
            routes.add("GET", path, handler)
        routes.add("DELETE", "/api/v1/clients/{id}", self._end_client)
        routes.add("DELETE", "/api/v1/proxies/{id}", self._end_proxy)
        routes.add("DELETE", "/api/v1/connections/{id}", self._end_connection)
        routes.add("POST", "/api/v1/login", self._log_in)
        routes.add("POST", "/api/v1/logout", self._log_out)
        routes.add("POST", "/admin/tunnel/close", self._close_tunnel)

    # ---- the page, and who looks at it ---------------------------------------------------------------------

    def _page(self, request: Request) -> Response:
        return self._files.serve(request, "index.html")

    def _log_in(self, request: Request) -> Response:
        body = request.json()
        password = body.get("password") if isinstance(body, dict) else None
        if not isinstance(password, str):
            raise HTTPError(400, 'the body has to be {"password": "..."}')
        return Response(204, headers=[self._access.log_in(request, password)])

    def _log_out(self, request: Request) -> Response:
        return Response(204, headers=[self._access.log_out(request)])

    # ---- what there is -------------------------------------------------------------------------------------

    def _server(self, request: Request) -> Response:
        self._view.registry.look()
        return Response.json({**self._view.server(), **_role(request)})

    def _clients(self, _request: Request) -> Response:
        self._view.registry.look()
        return Response.json({"clients": self._view.clients()})

    def _proxies(self, _request: Request) -> Response:
        self._view.registry.look()
        return Response.json({"proxies": self._view.proxies()})

    def _connections(self, request: Request) -> Response:
        self._view.registry.look()
        return Response.json(self._view.connections(self._wanted(request)))

    def _wanted(self, request: Request) -> Wanted:
        """Return which connections a request asks for. Raises `HTTPError`."""
        query = request.query
        proxy = query.get("proxy", "")
        if proxy and proxy not in self._view.registry.proxies:
            raise HTTPError(404, "there is no such proxy")
        text = query.get("filter", "")
        if len(text) > MAX_TEXT:
            raise HTTPError(400, f"filter is longer than {MAX_TEXT} characters")
        return Wanted(
            proxy,
            text,
            _one_of(query, "sort", [*SORTS]),
            _one_of(query, "order", ["asc", "desc"]) == "desc",
            _number(query, "limit", 100, MAX_ROWS),
            _number(query, "offset", 0, 2**53),
        )

    # ---- what happens --------------------------------------------------------------------------------------

    def _events(self, request: Request) -> EventStream:
        if self._feed.readers >= MAX_EVENT_STREAMS:
            raise HTTPError(503, "too many read the events", [("Retry-After", "5")])
        wanted = _types(request.query.get("only", ""))
        last = request.headers.get("last-event-id", "")
        number = int(last) if _DIGITS.fullmatch(last) else self._feed.number
        return self._stream_of(request, lambda send: self._feed.send_all(send, wanted, number))

    def _stream(self, request: Request) -> EventStream:
        is_reader = pass_of(request).role is Role.READER
        if self._live.readers >= MAX_LIVE or (is_reader and self._live.watchers >= MAX_LIVE_OF_READERS):
            raise HTTPError(503, "too many pages are open", [("Retry-After", "5")])
        self._view.registry.look()
        wanted, role = self._wanted(request), _role(request)
        if _one_of(request.query, "only", ["", "connections"]):
            return self._stream_of(request, lambda send: self._live.send_connections(send, role, wanted))
        shown = wanted if wanted.proxy else None
        return self._stream_of(request, lambda send: self._live.send_all(send, role, shown))

    def _stream_of(self, request: Request, run: Callable[[Send], None]) -> EventStream:
        """Return a stream that ends once whoever asks may not ask any more."""
        given = pass_of(request)

        def run_while_allowed(send: Send) -> None:
            def send_if_allowed(event_name: str, data_text: str, event_id: str = "") -> None:
                if not self._access.still_allows(given):
                    raise _NotAllowedError
                send(event_name, data_text, event_id)

            with suppress(_NotAllowedError):
                run(send_if_allowed)

        return EventStream(run_while_allowed)

    # ---- what may be ended ---------------------------------------------------------------------------------

    def _end_connection(self, request: Request, id: str) -> Response:  # noqa: A002  (the name in the path)
        connection = self._view.find_connection(id)
        if connection is None:
            raise HTTPError(404, "there is no such connection, or no longer")
        _note_end(request, f"the connection of {format_address(connection.user)}")
        connection.end(BY_ADMINISTRATOR)
        return Response(204)

    def _end_proxy(self, request: Request, id: str) -> Response:  # noqa: A002
        self._view.registry.look()
        entry = self._view.registry.proxies.get(id)
        if entry is None or entry.ingress is None:
            raise HTTPError(404, "there is no such proxy, or no longer")
        self._end(request, entry)
        return Response(204)

    def _end(self, request: Request, entry: ProxyEntry) -> None:
        if entry.ingress is None:
            return
        where = f"at {entry.link}" if entry.link else f"on port {entry.port}"
        _note_end(request, f"proxy {entry.name!r} {where}")
        is_dropped = self._view.drop_kept(entry.ingress)
        if not is_dropped and entry.client is not None and entry.client.control is not None:
            entry.client.control.end_proxy(entry.ingress)
        self._view.registry.look()

    def _end_client(self, request: Request, id: str) -> Response:  # noqa: A002
        self._view.registry.look()
        entry = self._view.registry.clients.get(id)
        if entry is None or entry.control is None:
            raise HTTPError(404, "there is no such client, or no longer")
        _note_end(request, f"client {entry.address}")
        entry.control.dismiss()
        return Response(204)

    def _close_tunnel(self, request: Request) -> Response:
        """End the proxies at a port, as the Go program does."""
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError):
            raise HTTPError(400, 'the body has to be {"port": 9000}') from None
        port = body.get("port") if isinstance(body, dict) else None
        if not isinstance(port, int) or isinstance(port, bool):
            raise HTTPError(400, 'the body has to be {"port": 9000}')
        self._view.registry.look()
        proxies = self._view.registry.proxies.values()
        there = [each for each in proxies if port and each.port == port and each.ingress]
        if not there:
            raise HTTPError(404, f"no proxy has port {port}")
        for entry in there:
            self._end(request, entry)
        return Response(200, b"Close tunnel success")


def _make_description() -> Response:
    """Return the description of this API, in OpenAPI 3.1."""
    described = json.loads((files(PACKAGE) / "openapi.json").read_bytes())
    described["info"]["version"] = __version__
    return Response.json(described)


def _role(request: Request) -> dict[str, Any]:
    """Return what the page needs to know of who looks at it."""
    given = pass_of(request)
    return {"may_change": given.role is Role.ADMIN, "logged_in": given.session is not None}


def _note_end(request: Request, what: str) -> None:
    _log.info("%s is ended, as asked for from %s", what, host_of(client_of(request)) or "this machine")


def _one_of(query: Any, name: str, words: list[str]) -> str:
    """Return a parameter that has to be one of some words, the first of which is the default."""
    value = str(query.get(name, words[0]))
    if value not in words:
        raise HTTPError(400, f"{name} has to be one of {', '.join(words)}")
    return value


def _number(query: Any, name: str, default: int, most: int) -> int:
    text = str(query.get(name, default))
    if not _DIGITS.fullmatch(text) or int(text) > most:
        raise HTTPError(400, f"{name} has to be a number from 0 to {most}")
    return int(text)


def _types(names: str) -> frozenset[type[Event]]:
    """Return the types of events whose names are given, separated by commas; without names, those of note."""
    if not names:
        return frozenset(NOTEWORTHY)
    unknown = [name for name in names.split(",") if name not in BY_NAME]
    if unknown:
        raise HTTPError(400, f"only: there is no event {unknown[0][:50]!r}")
    return frozenset(BY_NAME[name] for name in names.split(","))
