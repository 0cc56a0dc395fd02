"""What gnar wants of Caddy: the hosts, and where Caddy finds gnar; knows nothing of Caddy's configuration."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

ASK_PATH = "/.well-known/gnar/ask"
LEVELS = 3  # labels in front of the domain that a name may have; a `*` of Caddy stands for one label
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # where to dial what listens there


@dataclass(frozen=True, slots=True)
class Wish:
    """Hosts, as names or patterns such as `*.example.com`, that Caddy is to lead to gnar's web port."""

    hosts: tuple[str, ...]
    dial: str  # the web port as Caddy writes it
    same: frozenset[str]  # other ways to write the same

    @classmethod
    def of(cls, domain: str, allow_hosts: Iterable[str], web_address: tuple[str, int]) -> Wish:
        """Return the wish for names under a domain, and for hosts that match a pattern."""
        below = [f"{'*.' * level}{domain}" for level in range(1, LEVELS + 1)] if domain else []
        hosts = dict.fromkeys(host.lower().rstrip(".") for host in (*below, *allow_hosts))
        host, port = _EVERYWHERE.get(web_address[0], web_address[0]), web_address[1]
        names = {host}
        if _is_loopback(host):
            names |= {"localhost", "127.0.0.1", "::1", ""}
        return cls(tuple(hosts), _joined(host, port), frozenset(_joined(name, port) for name in names))

    @property
    def ask(self) -> str:
        """The URL at which gnar says whether a name is in use."""
        return f"http://{self.dial}{ASK_PATH}"


def covers(pattern: str, host: str) -> bool:
    """Tell whether a pattern matches a host, or all that another pattern matches, as Caddy compares them."""
    ours, theirs = pattern.lower().split("."), host.lower().split(".")
    return len(ours) == len(theirs) and all(a in ("*", b) for a, b in zip(ours, theirs, strict=True))


def is_covered(host: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of several patterns covers a host."""
    return any(covers(pattern, host) for pattern in patterns)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
