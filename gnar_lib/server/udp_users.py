"""The users of a UDP proxy, as far as they take places: who has sent a datagram lately; touches no socket."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from gnar_lib.net import Datagram, Sockaddr
from gnar_lib.net.datagram import unpack_address
from gnar_lib.net.peer_table import Entry, PeerTable
from gnar_lib.server.places import Places

RECENT_S = 60.0  # whoever has sent a datagram in that time counts as a user


class _User(Entry):
    __slots__ = ("network",)

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = network


class UdpUsers:
    """Lets the datagrams of those users pass who have a place; `on_refused` is told of each other one."""

    def __init__(self, places: Places, on_refused: Callable[[Sockaddr, str], None]) -> None:
        self._places = places
        self._on_refused = on_refused
        self._users: PeerTable[_User] = PeerTable(sys.maxsize, RECENT_S, self._on_end)

    def admit(self, datagrams: list[Datagram]) -> list[Datagram]:
        """Return the datagrams of users who have a place, or get one now."""
        if not self._places.are_limited:
            return datagrams
        find, now_s = self._users.get, time.monotonic()
        admitted = []
        for datagram in datagrams:
            packed = datagram[0]
            user = find(packed) or self._begin(packed)
            if user is not None:
                user.used_s = now_s
                admitted.append(datagram)
        return admitted

    def _begin(self, packed: bytes) -> _User | None:
        address = unpack_address(packed)
        network = self._places.network_of(address)
        if reason := self._places.enter(network):
            self._on_refused(address, reason)
            return None
        user = _User(network)
        self._users.add(packed, user)
        return user

    def _on_end(self, _packed: bytes, user: _User) -> None:
        self._places.leave(user.network)

    def close(self) -> None:
        """Give all places back."""
        self._users.close()
