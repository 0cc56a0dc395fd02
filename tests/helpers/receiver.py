"""A receiver of hooks: an HTTP server in threads that answers as it is told, and keeps what was posted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helpers.harness import LOOPBACK, wait_until


@dataclass(frozen=True)
class Posted:
    """What was posted once."""

    path: str
    headers: dict[str, str]  # the names in small letters
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The body, as JSON."""
        fields: dict[str, Any] = json.loads(self.body)
        return fields


class Receiver:
    """Answers each request with the next of `answers`, and with 204 once there are no more.

    `before` is called ahead of each answer, and may wait.
    """

    def __init__(
        self,
        *answers: tuple[int, dict[str, str]],
        port: int = 0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.posted: list[Posted] = []
        waiting = [*answers]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805  (the name is that of http.server)
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                headers = {key.lower(): value for key, value in handler.headers.items()}
                before()
                self.posted.append(Posted(handler.path, headers, body))
                status, more = waiting.pop(0) if waiting else (204, {})
                handler.send_response(status)
                for name, value in more.items():
                    handler.send_header(name, value)
                handler.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer((LOOPBACK, port), Handler)
        self.port = int(self.server.server_address[1])
        self.url = f"http://{LOOPBACK}:{self.port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def events(self) -> list[str]:
        """The names of the events that were posted, in this order."""
        return [posted.headers["x-gnar-event"] for posted in self.posted]

    def wait(self, event: str, count: int = 1) -> Posted:
        """Wait until an event was posted `count` times, and return the last of them."""
        wait_until(lambda: self.events.count(event) >= count, f"{count} of {event}, among {self.events}")
        return [posted for posted in self.posted if posted.headers["x-gnar-event"] == event][count - 1]
