"""What is kept of a server's history, as rows for a file; knows neither the file nor the server.

Times are in Unix seconds, minutes in Unix seconds divided by 60. The key of a client or a proxy is the `id`
that it has in the API after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MINUTE_S = 60


class ClientRow(NamedTuple):
    """A client."""

    key: str
    client_id: str
    version: str
    is_multiplexed: int
    since: float
    address: str
    proxies: str  # the key and the name of each of its proxies, as JSON
    gone_at: float | None
    reason: str


class ProxyRow(NamedTuple):
    """A proxy, with its counts."""

    key: str
    name: str
    kind: str
    port: int
    client: str  # the key of the client, or empty
    since: float
    up: int
    down: int
    users_total: int
    dropped: int
    gone_at: float | None
    reason: str
    link: str = ""  # the URL of a proxy that has a name


class EventRow(NamedTuple):
    """A noteworthy event, in JSON."""

    number: int
    at: float
    text: str


class MinuteRow(NamedTuple):
    """What went through the proxies of one name, kind and port in a minute, or a part of that."""

    course: int  # says which proxies
    minute: int
    up: int
    down: int
    users: int  # the most at one time


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier process has left in the file. All clients and proxies are gone."""

    run: int  # the number of this process among those that have used the file
    set_aside: str  # the path to which a damaged file was moved; empty if the file was whole
    clients: list[ClientRow]
    proxies: list[ProxyRow]
    events: list[EventRow]


@dataclass(slots=True)
class Batch:
    """What has changed since the last batch that was written."""

    run: int
    now: float
    is_last: bool  # the server stops
    clients: list[ClientRow] = field(default_factory=list)
    proxies: list[ProxyRow] = field(default_factory=list)
    gone_clients: list[str] = field(default_factory=list)  # keys of those to be forgotten
    gone_proxies: list[str] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    minutes: list[MinuteRow] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has changed."""
        rows = self.clients, self.proxies, self.gone_clients, self.gone_proxies, self.events, self.minutes
        return not any(rows)
