"""How many users may be there at the same time, on the whole server and in one proxy; knows no user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib.net import Sockaddr, network_of

GiveUp = Callable[[], None]
"""Ends a user, who leaves."""


@dataclass(frozen=True, slots=True)
class UserLimits:
    """How many users there may be, and how many of them from one address; 0 is no limit."""

    users: int = 0
    per_address: int = 0


class Places:
    """The places for users of one proxy, or of the whole server, `within` which a proxy's places are.

    A user who has yet to earn the place gives it up as soon as another needs it: of UDP, where one datagram
    with anybody's address makes a user. Such a user enters with `give_up`, which ends the user.

    One address is an IPv4 address, or an IPv6 network of 64 bits, since a single owner has all of that.
    """

    def __init__(self, what: str, limits: UserLimits, within: Places | None = None) -> None:
        self.limits = limits  # a reload may replace them
        self.taken = 0
        self._what = what  # "this server", say: who has the limit
        self._levels: tuple[Places, ...] = (self, *(within._levels if within is not None else ()))
        self._of_network: Counter[str] = Counter()  # users of each network that was told to `enter`
        # Those who have yet to earn their places, the oldest first: all, and by network.
        self._unearned: dict[GiveUp, str] = {}
        self._unearned_of: dict[str, dict[GiveUp, None]] = {}

    @property
    def are_limited(self) -> bool:
        """Whether there is any limit, here or around."""
        return any(places.limits.users or places.limits.per_address for places in self._levels)

    def network_of(self, address: Sockaddr) -> str:
        """Return what `enter` and `leave` have to be told of a user; empty while nobody has to know."""
        for places in self._levels:
            if places.limits.per_address:
                return network_of(address)
        return ""

    def enter(self, network: str, give_up: GiveUp | None = None) -> str:
        """Take a place for a user of that network. Returns why there is none, or an empty text."""
        for places in self._levels:
            limits = places.limits
            if (limits.users or limits.per_address) and (reason := places._make_room(network)):
                return reason
        for places in self._levels:
            places.taken += 1
            if network:
                places._of_network[network] += 1
            if give_up is not None:
                places._unearned[give_up] = network
                places._unearned_of.setdefault(network, {})[give_up] = None
        return ""

    def _make_room(self, network: str) -> str:
        """Have users give up what they have not earned, as far as necessary; return why that will not do."""
        limits = self.limits
        while network and limits.per_address and self._of_network[network] >= limits.per_address:
            if network not in self._unearned_of:
                here = f"{self._of_network[network]} users of that address"
                return f"{self._what} has {here} already (max-users-per-address)"
            next(iter(self._unearned_of[network]))()
        while limits.users and self.taken >= limits.users:
            if not self._unearned:
                return f"{self._what} has {self.taken} users already (max-users)"
            next(iter(self._unearned))()
        return ""

    def settle(self, give_up: GiveUp) -> None:
        """Take note that a user who has entered with `give_up` has earned the place."""
        for places in self._levels:
            network = places._unearned.pop(give_up, None)
            if network is None:
                return
            theirs = places._unearned_of[network]
            del theirs[give_up]
            if not theirs:
                del places._unearned_of[network]

    def leave(self, network: str, give_up: GiveUp | None = None) -> None:
        """Give a place back that a user has had with this `network`."""
        if give_up is not None:
            self.settle(give_up)
        for places in self._levels:
            places.taken -= 1
            if network:
                places._of_network[network] -= 1
                if not places._of_network[network]:
                    del places._of_network[network]
