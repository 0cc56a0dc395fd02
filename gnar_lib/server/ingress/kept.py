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
from gnar_lib.server.ingress.making import Ingress, Key, Wanted, new_ingress
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.table import AWAY_S
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

    is_silent = True  # other clients with the credential of one that is away may have its names at once

    def lose(self, name: Name) -> None:
        """Close what waits with a name: a client has asked for the name in another way."""
        for kept in self.all:
            if kept.ingress.named is not None and kept.ingress.named.name == name:
                del self._kept[kept.ingress.key]
                self._close(kept, CloseReason.CLIENT_LEFT)

    def keep(self, ingress: Ingress, owner: tuple[Credential, str]) -> None:
        """Have the ingress of a client that leaves, whose port and name stay held, wait for the client."""
        kept = Kept(ingress, owner[0], "", time.monotonic() + KEEP_S)
        if len(self._kept) >= MAX_KEPT or self.shared.stopping:
            self._close(kept, CloseReason.CLIENT_LEFT)
            return
        ingress.rest(self.nobody)
        self._hold_name(ingress, owner)
        self._kept[ingress.key] = kept

    def _hold_name(self, ingress: Ingress, owner: tuple[Credential, str]) -> None:
        if ingress.named is not None:
            self.shared.names.move(ingress.named.name, ingress.named.proxy, owner, self)

    def adopt(
        self,
        opened: Listener | DatagramSocket | None,
        request: ProxyReq,
        credential: Credential,
        client_id: str,
    ) -> None:
        """Have what a server has had that is replaced wait for its client, whose `request` it has answered.

        Raises `GnarError` if this server does not have that; the caller closes what is open.
        """
        config = self.shared.config
        wanted = Wanted.of(request, config, is_go=not request.udp_timeout)
        if wanted.name is not None:
            self.shared.names.check(wanted.name, credential)
        ingress = new_ingress(self.shared, opened, self.nobody, Rights.of(config), wanted)
        owner = credential, ""
        if ingress.named is not None:
            self.shared.names.take(ingress.named.name, ingress.named.proxy, owner, self)
            self.shared.names.open(ingress.named.name, ingress.named.proxy)
        if isinstance(ingress, UdpIngress):
            ingress.start()  # asks `nobody` for a data connection
        self.shared.room.take(ingress.key, wanted.size)
        if ingress.port:
            self.shared.ports.hold(ingress.proxy.kind, ingress.port)
        self._kept[ingress.key] = Kept(ingress, credential, client_id, time.monotonic() + HANDED_OVER_S)

    def take(
        self, wanted: Wanted, credential: Credential, client_id: str, allowed: PortRanges
    ) -> Ingress | None:
        """Return the ingress that has waited for this request of a client, whose it now is.

        None if there is none. One that has waited for another proxy of the same client, or that is not
        `allowed` any more, is closed, so that the request is answered as one for a new port or name.
        """
        kept = self._kept_for(wanted, credential, client_id)
        if kept is None:
            return None
        del self._kept[kept.ingress.key]
        if not wanted.fits(kept.ingress, allowed):
            self._close(kept, CloseReason.CLIENT_LEFT)
            return None
        return kept.ingress

    def _kept_for(self, wanted: Wanted, credential: Credential, client_id: str) -> Kept | None:
        if (key := wanted.key) is not None:
            kept = self._kept.get(key)
            return kept if kept is not None and kept.credential == credential else None
        kind, name = wanted.request.proxy_type, wanted.request.proxy_name
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
            kept.ingress.leave(AWAY_S - KEEP_S)
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
        ingress, proxy = kept.ingress, kept.ingress.proxy
        self.shared.room.free(ingress.key)
        self.shared.ports.release(proxy.kind, ingress.port)
        emit(ProxyClosed, Side.SERVER, proxy.name, proxy.kind, ingress.port, "", reason, ingress.where)
        ingress.close()
