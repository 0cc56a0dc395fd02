"""Who is in front of gnar, and what a service is told of the user (X-Forwarded-For and others, RFC 7239).

What users send there is replaced, since a service believes it. What those send who are trusted, such as Caddy
on this machine, is kept and appended to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from gnar_lib.http.head import TOKEN
from gnar_lib.http.heads import FORWARDED, RequestToPass
from gnar_lib.net import Sockaddr, host_of

MAX_VALUE_BYTES = 4096  # of X-Forwarded-For or Forwarded; more is replaced, whoever sends it
MAX_HOPS = 32  # of X-Forwarded-For, that are looked at to find out who the user is
_SAID_ANEW = (b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")
_TOKEN = re.compile(TOKEN)
_HOST = re.compile(rb"[A-Za-z0-9._~\[\]:-]{1,255}")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, with or without brackets, IPv4 in IPv6 as IPv4; None if the text is none."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


class Trust:
    """The addresses whose word about a user counts."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(each) for each in networks]

    def includes(self, host: str) -> bool:
        """Tell whether the word of whoever has this address counts."""
        address = address_of(host)
        return address is not None and any(address in network for network in self._networks)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as far as gnar knows."""

    request: RequestToPass
    user: str  # the address of the user; behind somebody who is trusted, what that one says
    scheme: str  # "http" or "https", by which the user has asked
    fields: bytes  # the lines of the header that tell the service


class Peer:
    """Whoever is at the other end of one connection to the web port."""

    def __init__(self, address: Sockaddr, scheme: str, trust: Trust) -> None:
        ip = address_of(host_of(address))
        self.host = str(ip or "unknown")
        self.is_trusted = trust.includes(self.host)
        self._trust = trust
        self._scheme = scheme
        self._shown = self.host.encode()
        self._node = b'"[%b]"' % self._shown if ip is not None and ip.version == 6 else self._shown  # noqa: PLR2004

    def origin_of(self, request: RequestToPass) -> Origin:
        """Return where a request comes from."""
        host = request.authority
        if not self.is_trusted:
            scheme = self._scheme.encode()
            fields = (
                b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n"
                b"Forwarded: for=%b;host=%b;proto=%b\r\n"
            ) % (self._shown, scheme, host, self._node, _quoted(host), scheme)
            return Origin(request, self.host, self._scheme, fields)
        return self._origin_behind(request)

    def _origin_behind(self, request: RequestToPass) -> Origin:
        """Return where a request comes from that somebody who is trusted has passed on."""
        seen = request.seen
        said = b", ".join(seen.get(b"x-forwarded-for", []))[: MAX_VALUE_BYTES + 1]
        hops = [each.strip().decode("latin-1") for each in said.split(b",")] if said else []
        if len(said) > MAX_VALUE_BYTES:
            said, hops = b"", []
        scheme = (seen.get(b"x-forwarded-proto") or [b""])[0].lower()
        if scheme not in (b"http", b"https"):
            scheme = self._scheme.encode()
        host = (seen.get(b"x-forwarded-host") or [b""])[0]
        if not _HOST.fullmatch(host):
            host = request.authority
        forwarded = b", ".join(seen.get(b"forwarded", []))
        if len(forwarded) > MAX_VALUE_BYTES:
            forwarded = b""
        hop = b"for=%b;host=%b;proto=%b" % (self._node, _quoted(request.authority), scheme)
        fields = (
            b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nForwarded: %b\r\n"
        ) % (_appended(said, self._shown), scheme, host, _appended(forwarded, hop))
        if real := seen.get(b"x-real-ip"):
            fields += b"X-Real-IP: %b\r\n" % real[0]
        for name, values in seen.items():  # such as X-Forwarded-Port
            if name.startswith(FORWARDED) and name not in _SAID_ANEW:
                fields += b"".join([b"%b: %b\r\n" % (name, value) for value in values])
        return Origin(request, self._user_among(hops), scheme.decode(), fields)

    def _user_among(self, hops: list[str]) -> str:
        """Return the last of the addresses that nobody has to be trusted for; else the first of them."""
        first = ""
        for hop in hops[: -MAX_HOPS - 1 : -1]:  # from the last on
            if host := _node_address(hop):
                first = host
                if not self._trust.includes(host):
                    break
        return first or self.host


def _node_address(text: str) -> str:
    """Return the address in an entry of X-Forwarded-For, which may have a port; empty if there is none."""
    found = re.fullmatch(r"\[?([0-9A-Fa-f:.]+?)\]?(?::\d{1,5})?", text)
    address = address_of(text) or (address_of(found[1]) if found else None)
    return str(address) if address is not None else ""


def _appended(before: bytes, more: bytes) -> bytes:
    return b"%b, %b" % (before, more) if before else more


def _quoted(host: bytes) -> bytes:
    """Return a host for Forwarded, in quotes unless it is a token (RFC 7239, section 4)."""
    return host if _TOKEN.fullmatch(host) else b'"%b"' % host
