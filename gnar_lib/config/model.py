"""The settings as the program uses them: frozen, checked, with secrets that do not show."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass

DEFAULT_PORT = 8910
DEFAULT_GRACE_S = 10.0
DEFAULT_UDP_TIMEOUT_S = 60.0
LOOPBACK = "127.0.0.1"
MAX_PORT = 65535


class Secret:
    """A token that does not show in prints, logs and errors; false when it is empty."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


NO_SECRET = Secret()


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes per second from the user to the local service (`up`) and back (`down`); None is no limit."""

    up: int | None = None
    down: int | None = None


@dataclass(frozen=True, slots=True)
class PortRanges:
    """Ports that may be proxied, as a person wrote them; none means all of them."""

    text: str = ""
    ranges: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        return self.text or f"1-{MAX_PORT}"

    def __iter__(self) -> Iterator[int]:
        for low, high in self.ranges:
            yield from range(low, high + 1)

    def allows(self, port: int) -> bool:
        """Tell whether a port may be proxied."""
        return not self.ranges or any(low <= port <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """One proxy of a client; `remote_port` 0 lets the server choose."""

    proxy_name: str
    local_port: int
    remote_port: int = 0
    proxy_type: str = "tcp"
    local_host: str = LOOPBACK
    subdomain: str = ""
    speed_limit: Rate = Rate()
    udp_timeout_s: float = DEFAULT_UDP_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Everything that a client is told."""

    server: Address
    proxies: tuple[ProxyConfig, ...]
    token: Secret = NO_SECRET
    auth: str = "hmac"
    multiplex: bool = False
    grace_s: float = DEFAULT_GRACE_S


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything that a server is told; an empty `bind` means every address."""

    port: int = DEFAULT_PORT
    bind: str = ""
    udp_bind: str = ""
    token: Secret = NO_SECRET
    auth: str = "any"
    allow_ports: PortRanges = PortRanges()
    max_speed: Rate = Rate()
    domain: str = ""
    domain_tunnel: bool = False
    caddy_srv_name: str = "srv0"
    admin_port: int = 0
    multiplex: bool = False
    grace_s: float = DEFAULT_GRACE_S
