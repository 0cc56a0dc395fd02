"""Who holds which port: takes one that is free and allowed, says why where it cannot."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Generic, TypeVar

from gnar_lib.config import PortRanges
from gnar_lib.errors import ListenError, PortTakenError, ProxyRefusedError
from gnar_lib.net import Listener, listen

TRIES_FOR_ANY_PORT = 100

Owner = TypeVar("Owner")


class Ports(Generic[Owner]):
    """The proxied ports of a server, and the proxy that each belongs to."""

    def __init__(self, bind: str) -> None:
        self._bind = bind
        self._owners: dict[int, Owner] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def listen(self, port: int, allowed: PortRanges) -> Listener:
        """Return a listener on `port`, or on any free port that is allowed when it is 0.

        Raises `ProxyRefusedError` when it is not allowed, `PortTakenError` when somebody has it.
        """
        if port == 0:
            return self._listen_on_any(allowed)
        if not allowed.allows(port):
            raise ProxyRefusedError(f"port {port} is not allowed (allowed: {allowed})")
        try:
            return listen(self._bind, port)
        except PortTakenError:
            raise PortTakenError(f"port {port} is taken") from None
        except ListenError as exc:
            raise ProxyRefusedError(str(exc)) from exc

    def _listen_on_any(self, allowed: PortRanges) -> Listener:
        if not allowed:
            return listen(self._bind, 0)
        for port in self._candidates(allowed):
            try:
                return listen(self._bind, port)
            except ListenError:
                continue
        raise PortTakenError("no allowed port is free")

    def _candidates(self, allowed: Iterable[int]) -> list[int]:
        free = [port for port in allowed if port not in self._owners]
        return random.sample(free, min(len(free), TRIES_FOR_ANY_PORT))

    def hold(self, port: int, owner: Owner) -> None:
        """Note that `owner` has this port."""
        self._owners[port] = owner

    def release(self, port: int, owner: Owner) -> None:
        """Forget that `owner` has this port; another one's stays."""
        if self._owners.get(port) is owner:
            del self._owners[port]

    def owner(self, port: int) -> Owner | None:
        """Return who has this port."""
        return self._owners.get(port)
