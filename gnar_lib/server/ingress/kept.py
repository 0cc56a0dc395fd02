"""Ingresses whose client is away and may come back: users wait there; knows no control connection."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gnar_lib.auth import Credential, Rights
from gnar_lib.config import PortRanges
from gnar_lib.events import CloseReason, ProxyClosed, Side, emit
from gnar_lib.net import DatagramSocket, Listener
from gnar_lib.proto import ProxyReq
from gnar_lib.proto.pace import MESSAGE_S, pace
from gnar_lib.server.ingress.making import Ingress, Key, new_ingress
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.shared import Shared
from gnar_lib.server.upstream import Upstream

KEEP_S = 15.0  # for the next start of a client that leaves: `grace`, and the time to start
HANDED_OVER_S = 60.0  # for the clients of a server that has been replaced: they are told to come at once
MAX_KEPT = 4096  # of clients that leave, as many as one may have by default; further ones are closed at once


@dataclass(frozen=True, slots=True)
class Kept:
    """One ingress without a client, until `until_s` of `time.monotonic`.

    Only a client with this credential gets it. `client_id`, unless it is empty, is that of the one client who
    gets it by asking for any port.
    """

    ingress: Ingress
    credential: Credential
    client_id: str
    until_s: float


class KeptIngresses:
    """The ingresses of a server that wait for their clients. Users who come meanwhile wait, too."""

    def __init__(self, shared: Shared) -> None:
        self.nobody = Upstream.of_nobody(shared.conn_map)  # who has been accepted waits for it
        self.shared = shared
        self._kept: dict[Key, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def all(self) -> list[Kept]:
        """Those that wait at the moment."""
        return [*self._kept.values()]

    def keep(self, ingress: Ingress, credential: Credential) -> None:
        """Have the port of a client that leaves, which stays held in `Shared.ports`, wait for the client."""
        kept = Kept(ingress, credential, "", time.monotonic() + KEEP_S)
        if len(self._kept) >= MAX_KEPT or self.shared.stopping:
            self._close(kept, CloseReason.CLIENT_LEFT)
            return
        ingress.rest(self.nobody)
        self._kept[ingress.key] = kept

    def adopt(
        self, opened: Listener | DatagramSocket, request: ProxyReq, credential: Credential, client_id: str
    ) -> None:
        """Have the port of a server that is replaced wait for its client, whose `request` it has answered."""
        ingress = new_ingress(self.shared, opened, self.nobody, Rights.of(self.shared.config), request)
        if isinstance(ingress, UdpIngress):
            ingress.start()  # asks `nobody` for a data connection
        self.shared.ports.hold(ingress.proxy.kind, ingress.port)
        self._kept[ingress.key] = Kept(ingress, credential, client_id, time.monotonic() + HANDED_OVER_S)

    def take(
        self, request: ProxyReq, credential: Credential, client_id: str, allowed: PortRanges
    ) -> Ingress | None:
        """Return the ingress that has waited for this request of a client, whose it now is.

        None if there is none. A port that has waited for another proxy of the same client, or that is not
        `allowed` any more, is closed, so that the request is answered as one for a new port.
        """
        kept = self._kept_for(request, credential, client_id)
        if kept is None:
            return None
        del self._kept[kept.ingress.key]
        if kept.ingress.proxy.name != request.proxy_name or not allowed.allows(kept.ingress.port):
            self._close(kept, CloseReason.CLIENT_LEFT)
            return None
        return kept.ingress

    def _kept_for(self, request: ProxyReq, credential: Credential, client_id: str) -> Kept | None:
        kind, port, name = request.proxy_type, request.remote_port, request.proxy_name
        if port:
            kept = self._kept.get((kind, port))
            return kept if kept is not None and kept.credential == credential else None
        for kept in self._kept.values():
            proxy = kept.ingress.proxy
            is_meant = (proxy.kind, proxy.name) == (kind, name) and kept.client_id in ("", client_id)
            if is_meant and kept.credential == credential:  # compared last, since that takes longest
                return kept
        return None

    def tend(self) -> None:
        """Close those for which no client has come; to be called once a second."""
        now_s = time.monotonic()
        for key, kept in [*self._kept.items()]:
            if kept.until_s > now_s or self._kept.get(key) is not kept:  # a client has come during `take`
                continue
            del self._kept[key]
            self._close(kept, CloseReason.CLIENT_LEFT)
            pace.take(MESSAGE_S)

    def drop(self, ingress: Ingress) -> bool:
        """Close a port for good; returns whether it was one of these."""
        kept = self._kept.get(ingress.key)
        if kept is None or kept.ingress is not ingress:
            return False
        del self._kept[ingress.key]
        self._close(kept, CloseReason.ENDED)
        return True

    def close(self) -> None:
        """Close them all: the server stops, or another process has them."""
        while self._kept:
            _, kept = self._kept.popitem()
            self._close(kept, CloseReason.STOPPING)

    def _close(self, kept: Kept, reason: CloseReason) -> None:
        """Close a port that is not listed any more; users who have waited there are refused."""
        ingress = kept.ingress
        self.shared.ports.release(ingress.proxy.kind, ingress.port)
        emit(ProxyClosed, Side.SERVER, ingress.proxy.name, ingress.proxy.kind, ingress.port, "", reason)
        ingress.close()
