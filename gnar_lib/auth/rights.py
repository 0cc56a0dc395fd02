"""What a client may do once it has logged in; knows neither who asks nor what is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from gnar_lib.config import PortRanges, Rate, ServerConfig


@dataclass(frozen=True, slots=True)
class Rights:
    """What one client may have: which ports, how many proxies, and how fast each of them may be."""

    ports: PortRanges
    proxies: int
    speed: Rate  # of each proxy
    idle_timeout_s: float = 0.0  # of each user of TCP; 0 for never

    @classmethod
    def of(cls, config: ServerConfig) -> Rights:
        """Return the rights that the settings of a server give to whoever has the token."""
        return cls(config.allow_ports, config.max_proxies, config.max_speed, config.idle_timeout_s)
