"""The admin port of a server: puts together what watches the server, and what is answered there."""

from __future__ import annotations

from collections.abc import Iterator

from gnar_lib.admin.feed import Feed
from gnar_lib.admin.port import AdminPort
from gnar_lib.events import Side
from gnar_lib.metrics import Metrics, OpenProxy, State
from gnar_lib.net import Crew
from gnar_lib.server.admin.api import API
from gnar_lib.server.admin.history import History
from gnar_lib.server.admin.view import View
from gnar_lib.server.ingress.control import ControlIngress
from gnar_lib.server.shared import Shared


class Admin:
    """Watches one server from `start` to `close`."""

    def __init__(self, shared: Shared, ingress: ControlIngress) -> None:
        self._shared = shared
        self._ingress = ingress
        metrics = Metrics(Side.SERVER, self._state)
        self._view = View(shared, ingress, lambda: metrics.lag.longest_s)
        self._feed = Feed()
        self._port = AdminPort(
            lambda: shared.config.admin, metrics, self._is_ready, lambda: shared.config.token
        )
        self._crew = Crew("admin")
        self._history = History(shared.config.state_dir, self._view.registry, self._feed)
        API(self._view, self._feed, self._port.access).add_to(self._port.routes)
        self._port.routes.add("GET", "/api/v1/proxies/{id}/history", self._history.show)

    def start(self, wait_s: float = 0.0) -> int:
        """Listen, and return the port; try one that is taken again for `wait_s`. Raises `ListenError`."""
        port = self._port.start(wait_s)
        self._view.registry.start()
        self._feed.start()
        self._crew.spawn(self._view.sampler.run)
        self._history.start(self._crew.spawn)
        return port

    def close(self) -> None:
        """End everything at once, but for the disk, which has a moment."""
        self._history.close()  # first: once the port is free, another process opens the file
        self._port.close()
        self._crew.kill()
        self._feed.close()
        self._view.registry.close()

    def _is_ready(self) -> bool:
        return self._ingress.listens and not self._shared.stopping

    def _state(self) -> State:
        """Return what the metrics tell."""
        clients = self._ingress.clients
        return State(
            meter=self._shared.meter,
            proxies=[*self._open_proxies()],
            clients=len(clients),
            logins=len(self._ingress.in_progress),
            users_waiting=len(self._shared.conn_map),
            answers=self._shared.answers,
            data_conns_waiting=sum(control.upstream.waiting for control in clients),
        )

    def _open_proxies(self) -> Iterator[OpenProxy]:
        held = [each for control in self._ingress.clients if not control.is_check for each in control.held]
        for ingress in [*held, *(kept.ingress for kept in self._ingress.kept.all)]:
            proxy = ingress.proxy
            yield OpenProxy(proxy.name, "udp" if proxy.kind == "udp" else "tcp", proxy.meter)
