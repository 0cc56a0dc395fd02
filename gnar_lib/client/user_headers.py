"""What the local service of a proxy is told of each user, by the PROXY protocol; knows no conn."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from gnar_lib import logger
from gnar_lib.config import ProxyConfig
from gnar_lib.net import Sockaddr, read_address
from gnar_lib.net.datagram import PACKED_ADDRESS_BYTES, unpack_address
from gnar_lib.transport.proxy_protocol import AUTHORITY, PROXY_NAME, V1, Tlv, encode

MAX_HOST_BYTES: Final = 255  # of a host name
_PORTS: Final = {"http": 80, "https": 443}  # where a URL names none


class UserHeaders:
    """Makes the headers of one proxy. `log` gets one warning if the server does not tell users' addresses."""

    def __init__(self, config: ProxyConfig, log: logger.Logger) -> None:
        self._version = config.proxy_protocol
        self._log = log
        self._destination: Sockaddr | None = None
        self._tlvs: list[Tlv] = [(PROXY_NAME, config.proxy_name.encode())]
        self._has_warned = False

    def opened(self, server: Sockaddr | None, port: int, domain: str, url: str) -> None:
        """Take note of where users find the proxy: at an address of the server, and a port or a URL."""
        host = server[0] if isinstance(server, tuple) else ""
        self._destination = host, port or _port_of(url)
        host_name = b"" if "*" in domain else domain.encode(errors="replace")
        if 0 < len(host_name) <= MAX_HOST_BYTES:
            self._tlvs = [(AUTHORITY, host_name), self._tlvs[-1]]

    def of_user(self, user: str) -> bytes:
        """Return the header for a user of TCP, by the address that the server tells; empty if it does not."""
        source = read_address(user)
        if source is None:
            self._warn()
        return encode(self._version, source, self._destination, tlvs=self._tlvs)

    def of_this_end(self) -> bytes:
        """Return the header of a connection that is no user's, but the client's own."""
        return encode(self._version, None, None)

    def of_datagrams(self, user: bytes) -> bytes:
        """Return the header for a user of UDP, by the packed address."""
        source = unpack_address(user)[:2] if len(user) == PACKED_ADDRESS_BYTES else None
        if source is None:
            self._warn()
        return encode(self._version, source, self._destination, is_datagram=True, tlvs=self._tlvs)

    def _warn(self) -> None:
        """Say once that nobody knows where users come from."""
        if not self._has_warned:
            self._has_warned = True
            said = "UNKNOWN" if self._version == V1 else "LOCAL"
            self._log.warning(
                "proxy-protocol has no effect: the server does not tell where users come from, as Go servers "
                "do not; the local service is told %s",
                said,
            )


def _port_of(url: str) -> int:
    """Return the port in a URL of the server's, which may be anything; 0 if there is none."""
    try:
        where = urlsplit(url)
        return where.port or _PORTS.get(where.scheme, 0)
    except ValueError:
        return 0
