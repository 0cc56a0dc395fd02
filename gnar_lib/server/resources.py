"""Who holds which port: takes one that is free and allowed, says why where it cannot."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, TypeVar

from gnar_lib.config import PortRanges
from gnar_lib.errors import ListenError, PortTakenError, ProxyRefusedError
from gnar_lib.net import DatagramSocket, Listener, bind_udp, listen
from gnar_lib.net.datagram import is_out_of_files

TRIES_FOR_ANY_PORT = 100
PROXY_TYPES = ("tcp", "udp")

Owner = TypeVar("Owner")
Opened = TypeVar("Opened")


class Ports(Generic[Owner]):
    """The proxied ports of a server, and the proxy that each belongs to; TCP's and UDP's are not the same."""

    def __init__(self, bind: str, udp_bind: str = "") -> None:
        self._bind = bind
        self._udp_bind = udp_bind or bind
        self._owners: dict[tuple[str, int], Owner] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def listen(self, port: int, allowed: PortRanges) -> Listener:
        """Return a listener on `port`, or on any free port that is allowed when it is 0.

        Raises `ProxyRefusedError` when it is not allowed, `PortTakenError` when somebody has it, another
        `ListenError` when there are too many files: later there may be fewer.
        """
        return self._open("tcp", lambda number: listen(self._bind, number), port, allowed)

    def bind_udp(self, port: int, allowed: PortRanges) -> DatagramSocket:
        """Return a socket for datagrams; everything else is as with `listen`."""
        return self._open("udp", lambda number: bind_udp(self._udp_bind, number), port, allowed)

    def _open(
        self, proxy_type: str, open_port: Callable[[int], Opened], port: int, allowed: PortRanges
    ) -> Opened:
        if port == 0 and allowed:
            return self._open_any(open_port, self._candidates(proxy_type, allowed))
        if port and not allowed.allows(port):
            raise ProxyRefusedError(f"port {port} is not allowed (allowed: {allowed})")
        try:
            return open_port(port)
        except PortTakenError:
            raise PortTakenError(f"port {port} is taken") from None
        except ListenError as exc:
            if is_out_of_files(exc):
                raise
            raise ProxyRefusedError(str(exc)) from exc

    @staticmethod
    def _open_any(open_port: Callable[[int], Opened], candidates: list[int]) -> Opened:
        for port in candidates:
            try:
                return open_port(port)
            except ListenError:
                continue
        raise PortTakenError("no allowed port is free")

    def _candidates(self, proxy_type: str, allowed: PortRanges) -> list[int]:
        free = [port for port in allowed if (proxy_type, port) not in self._owners]
        return random.sample(free, min(len(free), TRIES_FOR_ANY_PORT))

    def hold(self, proxy_type: str, port: int, owner: Owner) -> None:
        """Note that `owner` has this port."""
        self._owners[proxy_type, port] = owner

    def release(self, proxy_type: str, port: int, owner: Owner) -> None:
        """Forget that `owner` has this port; another one's stays."""
        if self._owners.get((proxy_type, port)) is owner:
            del self._owners[proxy_type, port]

    def owners(self, port: int) -> list[Owner]:
        """Return who has this port, of TCP and of UDP."""
        found = (self._owners.get((proxy_type, port)) for proxy_type in PROXY_TYPES)
        return [owner for owner in found if owner is not None]
