"""Ranges of IP addresses: from where users may come."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gnar_lib.errors import UsageError
from gnar_lib.net.datagram import pack_address

_BITS = 128  # of an address; an IPv4 address is mapped to IPv6


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses that begin with the same bits."""

    first: int
    mask: int

    def has(self, packed: bytes) -> bool:
        """Tell whether an address is in the range; `packed` as `pack_address` returns it."""
        return int.from_bytes(packed[:16], "big") & self.mask == self.first


def read_range(text: str) -> Range:
    """Read `ADDRESS/BITS`, `ADDRESS:MASK` (IPv4), `[ADDRESS]/BITS` or one address; raises `UsageError`."""
    try:
        network = _network(text)
    except ValueError:
        raise UsageError("is not a range such as 10.0.0.0/8, 10.0.0.0:255.0.0.0 or [fd00::]/8") from None
    packed = pack_address((str(network.network_address), 0))
    return Range(int.from_bytes(packed[:16], "big"), (1 << _BITS) - network.num_addresses)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network that a text names; raises `ValueError`."""
    address, slash, bits = text.partition("/")
    if slash:
        return ipaddress.ip_network((address.strip("[]"), int(bits[:4])), strict=False)
    if "." not in text:
        return ipaddress.ip_network(text.strip("[]"))
    address, has_mask, mask = text.partition(":")
    network = ipaddress.ip_network(f"{address}/{mask}" if has_mask else address, strict=False)
    # A mask such as 0.0.255.255 is a different one for Python, and one with holes is none at all.
    if has_mask and network.netmask != ipaddress.ip_address(mask):
        raise ValueError(mask)
    return network
