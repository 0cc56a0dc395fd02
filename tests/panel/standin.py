"""A stand-in for the server's admin port: made-up figures behind the real page.

It has 4,000 proxies at once, addresses that are kept for documentation, and is lost at the very moment that a
test wants. What the real server does is tested with the real server.
"""

from __future__ import annotations

import json
import math
import socket
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PACKAGE = Path(__file__).resolve().parents[2] / "gnar_lib"
STATIC = (PACKAGE / "server" / "admin" / "static", PACKAGE / "admin" / "static")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STEP_S = 5
POINTS = 60
Item = dict[str, Any]


class World:
    """What the stand-in tells; a test changes it while the stand-in runs."""

    def __init__(self) -> None:
        self.started_at = time.time() - 302_460
        self.clients: dict[str, Item] = {}
        self.proxies: dict[str, Item] = {}
        self.connections: dict[str, Item] = {}
        self.events: list[Item] = []
        self.may_change = True
        self.password = ""
        self.cadence_s = 0.2  # the real server sends every second

    def client(
        self, address: str, version: str = "gnar-py/0.9.0", *, age_s: float = 5000, **fields: Any
    ) -> Item:
        """Add a client."""
        item: Item = {"id": f"c{len(self.clients) + 1}", "address": address, "version": version}
        item |= {"multiplexed": True, "state": "connected", "since": time.time() - age_s}
        item |= {"gone_at": None, "reason": "", "proxies": [], "names": []}
        self.clients[item["id"]] = item | fields
        return self.clients[item["id"]]

    def proxy(
        self, client: Item, name: str, port: int, down: float = 0, up: float = 0, **fields: Any
    ) -> Item:
        """Add a proxy, whose rates swing about `down` and `up`."""
        number = len(self.proxies) + 1
        item: Item = {"id": f"p{number}", "name": name, "kind": "tcp", "port": port, "client": client["id"]}
        item |= {"link": f"gnar.example:{port}", "state": "open", "since": client["since"] + 1}
        item |= {"gone_at": None, "reason": "", "users": 0, "users_total": 0, "dropped": 0}
        item |= {"limit_up": None, "limit_down": None, "rate_up": up, "rate_down": down, "mean": (up, down)}
        item |= {"bytes_up": int(up * 4000), "bytes_down": int(down * 4000), "chart": None}
        if up or down:
            waves = [wave(number, step) for step in range(POINTS)]
            item["chart"] = {"step_s": STEP_S, "until": time.time(), "users": [1] * POINTS}
            item["chart"] |= {"up": [round(up * each) for each in waves]}
            item["chart"] |= {"down": [round(down * each) for each in waves]}
        self.proxies[item["id"]] = item | fields
        client["proxies"].append(item["id"])
        client["names"].append(item["name"])
        return self.proxies[item["id"]]

    def connection(self, proxy: Item, user: str, **fields: Any) -> Item:
        """Add a live connection."""
        item: Item = {"id": f"u{len(self.connections) + 1}", "proxy": proxy["id"], "user": user}
        item |= {"since": time.time() - 60, "bytes_up": 0, "bytes_down": 0}
        item |= {"rate_up": 0, "rate_down": 0, "idle_s": 0.0}
        self.connections[item["id"]] = item | fields
        proxy["users"] += 1
        proxy["users_total"] += 1
        return self.connections[item["id"]]

    def happened(self, event: str, age_s: float = 0, **fields: Any) -> None:
        """Add an event."""
        self.events.append({"event": event, "at": time.time() - age_s, **fields})

    def end(self, kind: str, number: str) -> bool:
        """End a connection, a proxy or a client, and return whether there was one."""
        if kind == "connections":
            return self.connections.pop(number, None) is not None
        items = {"proxies": self.proxies, "clients": self.clients}[kind]
        if number not in items:
            return False
        gone = {"state": "gone", "gone_at": time.time(), "reason": "ended from the panel"}
        items[number] |= gone
        for proxy in self.clients[number]["proxies"] if kind == "clients" else ():
            self.proxies[proxy] |= gone
        return True

    def server(self) -> Item:
        """Return the totals."""
        proxies = list(self.proxies.values())
        total = {key: sum(each[key] for each in proxies) for key in ("users", "users_total", "bytes_up")}
        total |= {key: sum(each[key] for each in proxies) for key in ("bytes_down", "rate_up", "rate_down")}
        here = [each for each in self.clients.values() if each["state"] == "connected"]
        counts = {"clients": len(here), "proxies": sum(each["state"] == "open" for each in proxies)}
        total |= counts | {"udp_users": 3, "udp_dropped": sum(each["dropped"] for each in proxies)}
        total |= {"version": "0.9.0", "port": 8910, "started_at": self.started_at, "now": time.time()}
        return total | {
            "descriptors": 64 + 2 * total["users"],
            "loop_lag_s": 0.0004,
            "may_change": self.may_change,
            "logged_in": bool(self.password),
        }

    def found(self, query: dict[str, str]) -> Item:
        """Return the connections that a query asks for."""
        of_proxy = [each for each in list(self.connections.values()) if each["proxy"] == query["proxy"]]
        found = [each for each in of_proxy if query.get("filter", "") in each["user"]]
        sort = query.get("sort", "age")
        key = {"age": "since", "idle": "idle_s", "up": "bytes_up", "down": "bytes_down"}.get(sort, sort)
        is_falling = (query.get("order") == "desc") != (sort == "age")  # who came last is the youngest
        found.sort(key=lambda each: each[key], reverse=is_falling)
        start = int(query.get("offset", 0))
        shown = found[start : start + int(query.get("limit", 100))]
        return {"connections": shown, "matched": len(found), "total": len(of_proxy)}


def wave(number: int, step: int) -> float:
    """Return a factor around 1 that changes as traffic does: swings, with a burst now and then."""
    swing = 0.55 + 0.3 * math.sin(step / 5 + number) + 0.12 * math.sin(step * 1.7 + number * 3)
    return max(0.03, swing + (0.8 if (step * 7 + number * 5) % 23 < 2 else 0))


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        """Answer with a file, figures or a stream."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if not url.path.startswith("/api/"):
            self._send_file(url.path.removeprefix("/static/").strip("/") or "index.html")
        elif self._is_refused():
            self._send(401, b'{"title":"Unauthorized"}', "application/problem+json")
        elif url.path == "/api/v1/live":
            self._stream(query)
        elif url.path == "/api/v1/server":
            self._send(200, json.dumps(self.server.world.server()).encode(), "application/json")
        else:
            self._send(404, b"{}", "application/problem+json")

    def do_POST(self) -> None:
        """Log in or out."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path == "/api/v1/logout":
            self.server.sessions.clear()
        elif body.get("password") != self.server.world.password:
            self.server.wrong += 1
            self._send(401 if self.server.wrong < 10 else 429, b"{}", "application/problem+json")
            return
        else:
            self.server.sessions.add("session=1")
        self._send(204, b"", "", ("Set-Cookie", "session=1; HttpOnly; SameSite=Strict; Path=/"))

    def do_DELETE(self) -> None:
        """End something."""
        kind, number = self.path.split("/")[-2:]
        self._send(204 if self.server.world.end(kind, number) else 404, b"", "")

    def _is_refused(self) -> bool:
        return bool(self.server.world.password) and self.headers.get("Cookie") not in self.server.sessions

    def _send_file(self, name: str) -> None:
        paths = [path for folder in STATIC for path in folder.iterdir() if path.name == name]
        if paths:
            self._send(200, paths[0].read_bytes(), TYPES[paths[0].suffix])
        else:
            self._send(404, b"", "")

    def _send(self, status: int, body: bytes, kind: str, *headers: tuple[str, str]) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers:
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, query: dict[str, str]) -> None:
        world, is_first, told, step = self.server.world, True, 0, POINTS
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            while not self.server.stopping.is_set():
                state: Item = {"server": world.server()}
                if query.get("only") == "connections":
                    state["connections"] = world.found(query)
                else:
                    state |= self._objects(is_first, step)
                    for event in world.events[told:]:
                        self._tell("happened", event)
                    told = len(world.events)
                self._tell("state", state)
                self.server.sent += 1
                is_first, step = False, step + 1
                self.server.stopping.wait(world.cadence_s)
        except OSError:
            pass  # the browser has gone

    def _objects(self, is_first: bool, step: int) -> Item:
        world = self.server.world
        proxies = [dict(each) for each in list(world.proxies.values())]
        if not is_first:
            proxies = [each for each in proxies if any(each["mean"]) or each["state"] == "gone"]
            for number, each in enumerate(proxies):
                up, down = (mean * wave(number, step) for mean in each["mean"])
                del each["chart"]
                each |= {"rate_up": up, "rate_down": down}
                each["point"] = {"up": up, "down": down, "users": each["users"]}
        return {"clients": list(world.clients.values()), "proxies": proxies, "connections": None}

    def _tell(self, event: str, data: Item) -> None:
        self.wfile.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class StandIn(ThreadingHTTPServer):
    """The stand-in, which runs while its block does."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, world: World, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.world = world
        self.sessions: set[str | None] = set()
        self.wrong = 0
        self.sent = 0  # how many times a state was told
        self._conns: list[socket.socket] = []
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, which ends at the latest with the stand-in."""
        self._conns.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that a browser hangs up; show everything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown()
        for conn in self._conns:
            with suppress(OSError):  # it has ended before
                conn.shutdown(socket.SHUT_RDWR)
        self.server_close()
