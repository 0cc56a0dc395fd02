"""From where the users of a proxy may come: networks that are let in, and networks that are not."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from gnar_lib.errors import ProxyRefusedError
from gnar_lib.net import Sockaddr, host_of

MAX_NETWORKS = 64  # of one list

_MAPPED_BITS = 96  # in front of an IPv4 address that is written as IPv6

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRules:
    """Tells who may come to a proxy by the address from which a user comes.

    An IPv4 address that is written as an IPv6 address (::ffff:192.0.2.1) counts as IPv4. Without rules
    everybody may come.
    """

    __slots__ = ("_allowed", "_denied")

    def __init__(self, allowed: tuple[_Network, ...] = (), denied: tuple[_Network, ...] = ()) -> None:
        self._allowed = allowed
        self._denied = denied

    @classmethod
    def of(cls, allow: Sequence[str], deny: Sequence[str]) -> AddressRules:
        """Return the rules that a client asks for; raises `ProxyRefusedError`."""
        return cls(_networks("allow-from", allow), _networks("deny-from", deny))

    def __bool__(self) -> bool:
        return bool(self._allowed or self._denied)

    def refusal(self, address: Sockaddr) -> str:
        """Return why a user may not come from an address; empty if the user may."""
        if not (self._allowed or self._denied):
            return ""
        ip = ip_of(address)
        if ip is None:  # a Unix socket: of this machine, whose users have no address
            return "" if not self._allowed else "the user has no address, and allow-from is set"
        if any(ip in network for network in self._denied):
            return "the address is one of deny-from"
        if self._allowed and not any(ip in network for network in self._allowed):
            return "the address is none of allow-from"
        return ""


ALL_MAY_COME = AddressRules()


def _networks(key: str, texts: Sequence[str]) -> tuple[_Network, ...]:
    if len(texts) > MAX_NETWORKS:
        raise ProxyRefusedError(f"{key}: {len(texts)} networks; at most {MAX_NETWORKS} are possible")
    try:
        return tuple(plain_network(ipaddress.ip_network(text, strict=False)) for text in texts)
    except ValueError:
        raise ProxyRefusedError(f"{key}: what is no network; write one such as 10.0.0.0/8") from None


def plain_network(network: _Network) -> _Network:
    """Return a network of IPv4 addresses that are written as IPv6 as one of IPv4."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            return ipaddress.IPv4Network((inner, network.prefixlen - _MAPPED_BITS))
    return network


def ip_of(address: Sockaddr) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address of a socket's address, IPv4 in IPv6 as IPv4; None if there is none."""
    host = host_of(address).strip("[]").partition("%")[0]
    if not host:
        return None
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip
