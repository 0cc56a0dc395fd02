"""One proxy as the client sees it: what was asked for, what came of it, how the service answers."""

from __future__ import annotations

from enum import Enum

from gnar_lib import logger
from gnar_lib.client.udp import UdpService
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import DialError
from gnar_lib.net.target import Target
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import ProxyCancel, ProxyReq


class ProxyState(Enum):
    """Where a proxy stands with the server."""

    PENDING = "asked for, or to be asked for again"
    OPEN = "open"
    REFUSED = "given up: the server will never open it"


class ClientProxy:
    """A proxy of this client."""

    def __init__(self, config: ProxyConfig, total: Meter) -> None:
        self.config = config
        self.meter = Meter(total, config.speed_limit)
        self.target = Target(config.local_host, config.local_port)
        self.log = logger.get(f"{config.proxy_type.upper()} [{config.proxy_name}]")
        self.udp: UdpService | None = None
        if config.proxy_type == "udp":
            self.udp = UdpService(config, self.meter, self.log)
        self.state = ProxyState.PENDING
        self.remote_port = config.remote_port
        self.domain = ""
        self._refusals = logger.Burst()

    @property
    def name(self) -> str:
        """The name by which client and server speak of it."""
        return self.config.proxy_name

    def request(self) -> ProxyReq:
        """Return the message that asks for it; a port that the server chose once is asked for again."""
        return ProxyReq(
            remote_port=self.remote_port,
            proxy_name=self.name,
            subdomain=self.config.subdomain,
            proxy_type=self.config.proxy_type,
        )

    def cancellation(self) -> ProxyCancel:
        """Return the message that ends it."""
        return ProxyCancel(proxy_name=self.name, remote_port=self.remote_port)

    def end(self) -> None:
        """It is no proxy of this client any more: its users of TCP stay, those of UDP do not."""
        self.meter.end()
        if self.udp is not None:
            self.udp.close()

    def refused(self, error: DialError) -> None:
        """The local service did not answer: say so once, not for every user of a burst."""
        self._refusals.warning(self.log, "the local service does not answer: %s", error)

    def reached(self) -> None:
        """The local service answers."""
        self._refusals.end(self.log)
