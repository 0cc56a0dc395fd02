"""Says as events what happens to one client of a server; knows no connection."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from gnar_lib import logger
from gnar_lib.events import (
    ClientCame,
    ClientGone,
    ClientReturned,
    CloseReason,
    ProxyClosed,
    ProxyOpened,
    ProxyRefused,
    Side,
    emit,
)
from gnar_lib.net import Sockaddr, format_address
from gnar_lib.server.ingress.making import Ingress
from gnar_lib.server.logins import Peer

JUST_S = 5.0  # before a client goes: what it loses then, it is said to have had
MAX_LOST = 1000  # proxies that a client has lost just now

_log = logger.get("control")


class Teller:
    """Says what happens to one client; of `gnar client --check` it says nothing but a line at debug level."""

    def __init__(self, peer: Peer, client: Sockaddr, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._id = peer.login.client_id
        self._version = peer.version
        self._is_check = peer.login.check
        self._clock = clock
        self._began_s = clock()
        self._lost: deque[tuple[float, str, int]] = deque(maxlen=MAX_LOST)  # when, name and port

    def came(self, *, multiplexed: bool) -> None:
        """The client has logged in."""
        if self._is_check:
            _log.debug("%s is a check", format_address(self._client))
        else:
            emit(ClientCame, self._client, self._version, multiplexed, self._id)

    def returned(self, before: Sockaddr) -> None:
        """The client has come back before its end, at `before`, was noticed."""
        if not self._is_check:
            emit(ClientReturned, self._client, before, self._id)

    def gone(self, reason: str, held: Iterable[Ingress], *, broke_protocol: bool) -> None:
        """The client has gone, which had `held` until now."""
        if self._is_check:
            return
        now_s = self._clock()
        had = [(name, port) for at_s, name, port in self._lost if now_s - at_s < JUST_S]
        had += [(ingress.proxy.name, ingress.port) for ingress in held]
        names, ports = tuple(zip(*had, strict=True)) or ((), ())
        lasted_s = now_s - self._began_s
        emit(ClientGone, self._client, reason, broke_protocol, self._id, names, lasted_s, ports)

    # ---- its proxies ---------------------------------------------------------------------------------------

    def opened(self, ingress: Ingress) -> None:
        """A proxy is open."""
        if not self._is_check:
            proxy = ingress.proxy
            emit(ProxyOpened, Side.SERVER, proxy.name, proxy.kind, ingress.port, self._client, ingress.where)

    def refused(self, name: str, kind: str, reason: str) -> None:
        """The client does not get a proxy."""
        if not self._is_check:
            emit(ProxyRefused, Side.SERVER, name, kind, self._client, reason)

    def left(self, ingress: Ingress) -> None:
        """The client leaves a proxy, whose port waits for it."""
        self._lost.append((self._clock(), ingress.proxy.name, ingress.port))

    def closed(self, ingress: Ingress, reason: CloseReason) -> None:
        """A proxy is closed."""
        self.left(ingress)
        if not self._is_check:
            proxy, where = ingress.proxy, ingress.where
            emit(ProxyClosed, Side.SERVER, proxy.name, proxy.kind, ingress.port, self._client, reason, where)
