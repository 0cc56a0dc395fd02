"""A stand-in for the admin port of a server, which says what a test wants."""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.harness import LOOPBACK

PACE_S = 0.05  # between two states, so that tests are quick; a server takes a second
NOW = 1_790_000_000.0


def server_object(**changes: Any) -> dict[str, Any]:
    return {
        "version": "0.9.0",
        "port": 8910,
        "started_at": NOW - 7384,
        "now": NOW,
        "clients": 1,
        "proxies": 2,
        "users": 3,
        "users_total": 120,
        "udp_users": 0,
        "bytes_up": 1 << 20,
        "bytes_down": 5 << 30,
        "rate_up": 2048.0,
        "rate_down": 3.0 * (1 << 20),
        "udp_dropped": 7,
        "descriptors": 40,
        "loop_lag_s": 0.002,
        "may_change": True,
        **changes,
    }


def client_object(**changes: Any) -> dict[str, Any]:
    return {
        "id": "c12",
        "address": "192.0.2.7:5123",
        "version": "0.9.0",
        "multiplexed": False,
        "state": "connected",
        "since": NOW - 100,
        "gone_at": None,
        "reason": "",
        "proxies": ["p5", "p6"],
        **changes,
    }


def proxy_object(**changes: Any) -> dict[str, Any]:
    return {
        "id": "p5",
        "name": "web",
        "kind": "tcp",
        "port": 9000,
        "link": "example.com:9000",
        "client": "c12",
        "state": "open",
        "since": NOW - 100,
        "gone_at": None,
        "reason": "",
        "users": 3,
        "users_total": 120,
        "bytes_up": 1 << 20,
        "bytes_down": 5 << 30,
        "rate_up": 2048.0,
        "rate_down": 3.0 * (1 << 20),
        "limit_up": None,
        "limit_down": None,
        "dropped": 0,
        "chart": {"step_s": 5, "until": NOW, "up": [], "down": [], "users": []},
        **changes,
    }


def connection_object(**changes: Any) -> dict[str, Any]:
    return {
        "id": "u77",
        "proxy": "p5",
        "user": "198.51.100.2:4242",
        "since": NOW - 50,
        "bytes_up": 100,
        "bytes_down": 2 << 20,
        "rate_up": 0.0,
        "rate_down": 1024.0,
        "idle_s": 3.0,
        **changes,
    }


class StandIn:
    """Serves the API until the end of the block; `stop` and `start` may alternate."""

    def __init__(self, secret: str = "", port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.secret = secret
        self.server = server_object()
        self.clients = [client_object()]
        self.proxies = [proxy_object(), proxy_object(id="p6", name="api", port=9001, link="", users=0)]
        self.connections = [connection_object(), connection_object(id="u78", user="198.51.100.3:1")]
        self.busy = 0  # so many requests are answered by a server that is busy
        self.queries: list[dict[str, str]] = []  # of all live streams
        self.more: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()  # further events of the stream
        self.port = port
        self._context = context
        self._is_up = False
        self.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    stand_in._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._is_up = True
        self._http = ThreadingHTTPServer((LOOPBACK, self.port), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        if self._context is not None:
            self._http.socket = self._context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and end all streams."""
        self._is_up = False
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_up:
            self.stop()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path = parts.path.removeprefix("/api/v1")
        given = request.headers.get("Authorization", "").encode("latin-1").decode()
        if self.busy:
            self.busy -= 1
            self._send(request, 503, "application/problem+json", {"title": "Busy", "status": 503})
        elif self.secret and given != f"Bearer {self.secret}":
            self._send(request, 401, "application/problem+json", {"title": "Unauthorized", "status": 401})
        elif path == "/live":
            self._stream(request, {key: value[0] for key, value in parse_qs(parts.query).items()})
        elif path in ("/server", "/clients", "/proxies"):
            kind = path[1:]
            objects = getattr(self, kind)
            self._send(request, 200, "application/json", objects if kind == "server" else {kind: objects})
        else:
            self._send(request, 404, "application/problem+json", {"title": "Not Found", "status": 404})

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, kind: str, value: Any) -> None:
        body = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _stream(self, request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        self.queries.append(query)
        request.close_connection = True
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Connection", "close")
        request.end_headers()

        def say(name: str, data: dict[str, Any]) -> None:
            request.wfile.write(f"id: 1\nevent: {name}\ndata: {json.dumps(data)}\n\n:\n\n".encode())

        http, everything = self._http, {"clients": self.clients, "proxies": self.proxies}
        found = None
        if "proxy" in query:
            total = len(self.connections)
            found = {"connections": self.connections, "matched": total, "total": total}
        say("state", {"server": self.server, **everything, "connections": found})
        while self._is_up and self._http is http:
            try:
                say(*self.more.get(timeout=PACE_S))
            except queue.Empty:
                say("state", {"server": self.server, "clients": [], "proxies": [], "connections": found})
            time.sleep(0)
