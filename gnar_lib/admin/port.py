"""The admin port: listens, and serves what every process has there, beside the routes of the process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import gevent

from gnar_lib import logger
from gnar_lib.admin.access import Access
from gnar_lib.config import AdminConfig, Secret
from gnar_lib.config.model import LOOPBACK, NO_SECRET
from gnar_lib.errors import ConnError, PortTakenError, UnsupportedError
from gnar_lib.http import HTTPError, Limits, Request, Response, Routes, Service
from gnar_lib.metrics import Metrics
from gnar_lib.net import Crew, Listener, deadline, listen
from gnar_lib.net.descriptors import descriptors
from gnar_lib.net.target import Target

MAX_CONNS = 1200
MAX_BODY_BYTES = 4096  # of a request: a password, or a port
MIN_OF_NETWORK = 64  # connections that one network may have although that is more than a quarter of all
RETRY_S = 0.1
# Of a page that shows this port: nothing from elsewhere, nothing inline, in no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)

LEAVING = b"GET /readyz HTTP/1.0\r\n\r\n", b" 503 "  # what is asked, and the answer of a process that stops
ASK_S = 1.0  # for that answer

_log = logger.get("admin")


def is_left(config: AdminConfig) -> bool:
    """Tell whether the port is that of another process which is about to stop, and so will be free."""
    question, answer = LEAVING
    try:
        with deadline(ASK_S, "an answer"):
            conn = Target(
                LOOPBACK if config.bind in ("", "0.0.0.0", "::") else config.bind, config.port
            ).dial()
            try:
                conn.sendall(question)
                return answer in conn.recv(64)
            finally:
                conn.close()
    except ConnError:
        return False


class AdminPort:
    """The port at which people and programs watch, and maybe steer, this process.

    `read` returns the settings, which a reload may change. `is_ready` tells whether the process does what it
    is for. `routes` may be added to. `mixed_in` is a secret by which logins are good after a restart as well.
    """

    def __init__(
        self,
        read: Callable[[], AdminConfig],
        metrics: Metrics,
        is_ready: Callable[[], bool],
        mixed_in: Callable[[], Secret] = lambda: NO_SECRET,
    ) -> None:
        self.access = Access(read, mixed_in)
        self.routes = Routes()
        self.crew = Crew("admin")  # a greenlet for each connection
        self._read = read
        self._metrics = metrics
        self._is_ready = is_ready
        self._listener: Listener | None = None
        most = min(MAX_CONNS, max(descriptors.limit // 8, 1))  # whoever watches does not shut users out
        self._service = Service(
            self.routes,
            guard=self.access.check,
            headers=HEADERS,
            limits=Limits(
                connections=most,
                connections_of_network=max(most // 4, min(most - most // 6, MIN_OF_NETWORK), 1),
                streams=max(most - most // 6, 1),
                body_bytes=MAX_BODY_BYTES,
            ),
            log=_log,
        )
        self.routes.add("GET", "/healthz", lambda _: Response(200, b"ok\n"))
        self.routes.add("GET", "/readyz", self._show_ready)
        self.routes.add("GET", "/metrics", self._show_metrics)

    def start(self, wait_s: float = 0.0) -> int:
        """Listen and serve; return the port. Raises `ListenError`.

        A port that another process has is tried again for `wait_s`; one whose process is about to stop, until
        it is free, in the background.
        """
        config, until_s = self._read(), time.monotonic() + wait_s
        while self._listener is None:
            try:
                self._listen(config)
            except PortTakenError:
                if time.monotonic() < until_s:
                    gevent.sleep(RETRY_S)
                elif is_left(config):
                    _log.warning("port %d is that of a process which stops: waiting for it", config.port)
                    self.crew.spawn(self._listen_when_free, config)
                    break
                else:
                    raise
        self._metrics.start()
        return config.port if self._listener is None else self._listener.port

    def _listen(self, config: AdminConfig) -> None:
        self._listener = listen(config.bind, config.port)
        self._listener.serve(self.crew, self._service.serve)
        _log.info("listening on port %d%s", self._listener.port, f" of {config.bind}" if config.bind else "")

    def _listen_when_free(self, config: AdminConfig) -> None:
        while self._listener is None:
            gevent.sleep(RETRY_S)
            with suppress(PortTakenError):
                self._listen(config)

    def close(self) -> None:
        """Listen no more, and end all connections."""
        if self._listener is not None:
            self._listener.close()
        self._metrics.close()
        self._service.close()
        self.crew.kill()

    # ---- what every process answers ------------------------------------------------------------------------

    def _show_ready(self, _request: Request) -> Response:
        return Response(200, b"ok\n") if self._is_ready() else Response(503, b"not ready\n")

    def _show_metrics(self, request: Request) -> Response:
        try:
            content_type, body = self._metrics.render(request.headers.get("accept", ""))
        except UnsupportedError as exc:
            raise HTTPError(501, str(exc)) from exc
        return Response(200, body, content_type)
