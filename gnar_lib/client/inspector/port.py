"""The port of the inspector's page: where it is, and who may ask. Knows not what is answered.

Whoever reaches the page sees everything that passes. So it listens on loopback alone, and a page of somebody
else, in a browser on this machine, gets nothing: neither by a name that leads to this machine (DNS rebinding)
nor by sending requests that it cannot read the answers of.
"""

from __future__ import annotations

from gnar_lib import logger
from gnar_lib.admin.access import Access, is_this_machine
from gnar_lib.admin.port import HEADERS
from gnar_lib.config import Address
from gnar_lib.config.model import NO_ADMIN
from gnar_lib.errors import PortTakenError
from gnar_lib.http import HTTPError, Limits, Request, Routes, Service
from gnar_lib.net import Crew, Listener, listen

FIRST_PORT, LAST_PORT = 4040, 4049
MAX_CONNS = 64
MAX_STREAMS = 16  # pages that are open
MAX_BODY_BYTES = 1 << 20  # of a request: one that was edited, with its body

_log = logger.get("inspect")


class Port:
    """Serves some routes on loopback, from `start` to `close`."""

    def __init__(self, routes: Routes) -> None:
        self._access = Access(lambda: NO_ADMIN)
        self._crew = Crew("inspect")
        self._listener: Listener | None = None
        self._service = Service(
            routes,
            guard=self._check,
            headers=HEADERS,
            limits=Limits(
                connections=MAX_CONNS,
                connections_of_network=MAX_CONNS,
                streams=MAX_STREAMS,
                body_bytes=MAX_BODY_BYTES,
            ),
            log=_log,
        )

    def start(self, where: Address) -> str:
        """Listen, on the first free port if `where` has the port 0; return the URL. Raises `ListenError`."""
        self._listener = _listen(where)
        self._listener.serve(self._crew, self._service.serve)
        return f"http://{Address(where.host, self._listener.port)}/"

    def close(self) -> None:
        """Listen no more, and end all connections."""
        if self._listener is not None:
            self._listener.close()
        self._service.close()
        self._crew.kill()

    def _check(self, request: Request) -> None:
        """Refuse what the page itself would not ask."""
        host = request.headers.get("host", "")
        port = self._listener.port if self._listener is not None else 0
        if not is_this_machine(host) or host.rpartition(":")[2] != str(port):
            raise HTTPError(
                403, f"this page answers to the addresses of this machine alone: localhost:{port}"
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            raise HTTPError(403, "a page from elsewhere may not ask for this")
        self._access.check(request)


def _listen(where: Address) -> Listener:
    if where.port:
        try:
            return listen(where.host, where.port)
        except PortTakenError as exc:
            raise PortTakenError(
                f"inspect: {exc}; choose another port, or `on` for the next free one"
            ) from exc
    for port in range(FIRST_PORT, LAST_PORT):
        try:
            return listen(where.host, port)
        except PortTakenError:
            continue
    return listen(where.host, LAST_PORT)
