"""The admin port of a process that is watched and not steered there: a client, or a relay."""

from __future__ import annotations

from collections.abc import Callable

from gnar_lib.admin.port import AdminPort
from gnar_lib.config import AdminConfig
from gnar_lib.events import Side
from gnar_lib.http import Request, Response
from gnar_lib.metrics import Metrics, State

INDEX = b"gnar: /metrics for Prometheus, /healthz, /readyz\n"


def open_port(
    side: Side, read: Callable[[], AdminConfig], state: Callable[[], State], is_ready: Callable[[], bool]
) -> AdminPort | None:
    """Return the admin port, which listens and which the caller closes; None if there is to be none.

    `read` returns the settings, which a reload may change. Raises `ListenError`.
    """
    if not read().port:
        return None
    port = AdminPort(read, Metrics(side, state), is_ready)
    port.routes.add("GET", "/", _show_index)
    port.start()
    return port


def _show_index(_request: Request) -> Response:
    return Response(200, INDEX)
