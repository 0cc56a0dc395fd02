"""The users of a UDP proxy, as far as they take places: who has sent a datagram lately; touches no socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from gnar_lib.net import Datagram, Sockaddr
from gnar_lib.net.datagram import unpack_address
from gnar_lib.net.peer_table import ANSWERED, UNANSWERED, Entry, PeerTable
from gnar_lib.server.places import GiveUp, Places

RECENT_S = 60.0  # whoever has sent a datagram in that time counts as a user
MAX_USERS = 4096  # of one proxy; one too many ends another, as with the sessions at the client


class _User(Entry):
    __slots__ = ("give_up", "network")

    def __init__(self, network: str, give_up: GiveUp) -> None:
        super().__init__()
        self.network = network
        self.give_up = give_up


class UdpUsers:
    """Lets the datagrams of those users pass who have a place; `on_refused` is told of each other one.

    A user has earned the place who sends again after an answer: whoever puts another's address on a datagram
    does not get the answer.
    """

    def __init__(self, places: Places, on_refused: Callable[[Sockaddr, str], None]) -> None:
        self._places = places
        self._on_refused = on_refused
        self._refusal: Callable[[Sockaddr], str] | None = None
        self._users: PeerTable[_User] = PeerTable(MAX_USERS, RECENT_S, self._on_end)

    def set_refusal(self, refusal: Callable[[Sockaddr], str] | None) -> None:
        """Have `refusal` say why a user may not come from an address; empty if so. None: all may come."""
        self._users.close()  # they are looked at anew
        self._refusal = refusal

    def admit(self, datagrams: list[Datagram]) -> list[Datagram]:
        """Return the datagrams of users who have a place, or get one now."""
        if not self._places.are_limited and self._refusal is None:
            return datagrams
        find, now_s = self._users.get, time.monotonic()
        admitted = []
        for datagram in datagrams:
            packed = datagram[0]
            user = find(packed) or self._begin(packed)
            if user is not None:
                user.used_s = now_s
                if user.standing == ANSWERED:
                    self._users.promote(packed, user)
                    self._places.settle(user.give_up)
                admitted.append(datagram)
        return admitted

    def note_answers(self, answers: list[Datagram]) -> None:
        """Take note of whom the service has answered."""
        if not len(self._users):
            return
        find = self._users.get
        for packed, _ in answers:
            user = find(packed)
            if user is not None and user.standing == UNANSWERED:
                self._users.promote(packed, user)

    def _begin(self, packed: bytes) -> _User | None:
        address = unpack_address(packed)
        if self._refusal is not None and (reason := self._refusal(address)):
            self._on_refused(address, reason)
            return None
        network = self._places.network_of(address)
        user = _User(network, partial(self._users.end, packed))
        if reason := self._places.enter(network, user.give_up):
            self._on_refused(address, reason)
            return None
        self._users.add(packed, user)
        return user

    def _on_end(self, _packed: bytes, user: _User) -> None:
        self._places.leave(user.network, user.give_up)

    def close(self) -> None:
        """Give all places back."""
        self._users.close()
