"""What a server, a client or a relay tells of itself when somebody asks for its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gnar_lib.pio.meter import Meter


@dataclass(frozen=True, slots=True)
class OpenProxy:
    """A proxy that is there at the moment; also one whose client is away and may come back."""

    name: str
    kind: str  # "tcp" or "udp"
    meter: Meter


@dataclass(frozen=True, slots=True)
class State:
    """What there is at the moment. What is None does not exist on this side, or is not known yet."""

    meter: Meter  # counts everything, also what proxies have carried that are gone
    proxies: Sequence[OpenProxy]
    clients: int | None = None  # of a server
    logins: int | None = None  # connections to a server that are logging in
    users_waiting: int | None = None  # at a server, for a data connection: the conn map
    data_conns_waiting: int | None = None  # for a user, at either end
    answers: Sequence[int] | None = None  # of a server to requests by name, by the hundreds of their statuses
    is_connected: bool | None = None  # a client to its server
    round_trip_s: float | None = None  # between a client and its server
