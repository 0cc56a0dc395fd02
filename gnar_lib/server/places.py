"""How many users may be there at the same time, on the whole server and in one proxy; knows no user."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gnar_lib.net import Sockaddr, network_of


@dataclass(frozen=True, slots=True)
class UserLimits:
    """How many users there may be, and how many of them from one address; 0 is no limit."""

    users: int = 0
    per_address: int = 0


class Places:
    """The places for users of one proxy, or of the whole server, `within` which a proxy's places are.

    One address is an IPv4 address, or an IPv6 network of 64 bits, since a single owner has all of that.
    """

    def __init__(self, what: str, limits: UserLimits, within: Places | None = None) -> None:
        self.limits = limits  # a reload may replace them
        self.taken = 0
        self._what = what  # "this server", say: who has the limit
        self._within = within
        self._of_network: Counter[str] = Counter()  # users of each network that was told to `enter`

    @property
    def are_limited(self) -> bool:
        """Whether there is any limit, here or around."""
        return self.limits != UserLimits() or (self._within is not None and self._within.are_limited)

    def network_of(self, address: Sockaddr) -> str:
        """Return what `enter` and `leave` have to be told of a user; empty while nobody has to know."""
        return network_of(address) if self._counts_networks else ""

    @property
    def _counts_networks(self) -> bool:
        return bool(self.limits.per_address) or (self._within is not None and self._within._counts_networks)

    def enter(self, network: str) -> str:
        """Take a place for a user of that network. Returns why there is none, or an empty text."""
        limits = self.limits
        if limits.users and self.taken >= limits.users:
            return f"{self._what} has {self.taken} users already (max-users)"
        if network and limits.per_address and self._of_network[network] >= limits.per_address:
            here = f"{self._of_network[network]} users of that address"
            return f"{self._what} has {here} already (max-users-per-address)"
        if self._within is not None and (reason := self._within.enter(network)):
            return reason
        self.taken += 1
        if network:
            self._of_network[network] += 1
        return ""

    def leave(self, network: str) -> None:
        """Give a place back that a user has had with this `network`."""
        self.taken -= 1
        if network:
            self._of_network[network] -= 1
            if not self._of_network[network]:
                del self._of_network[network]
        if self._within is not None:
            self._within.leave(network)
