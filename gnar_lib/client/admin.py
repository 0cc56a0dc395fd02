"""The admin port of a client: what its metrics tell, and when it is ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gnar_lib.admin.port import AdminPort
from gnar_lib.admin.watched import open_port
from gnar_lib.client.link import Link
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.shared import Shared
from gnar_lib.events import Side
from gnar_lib.metrics import OpenProxy, State


def open_admin(
    shared: Shared, links: list[Link], proxies: Callable[[], Iterable[ClientProxy]]
) -> AdminPort | None:
    """Return the admin port of a client that has these links; None if there is to be none.

    Raises `ListenError`. The caller closes what is returned.
    """

    def is_ready() -> bool:
        return bool(links) and all(link.connection is not None for link in links)

    def state() -> State:
        present = [link.connection for link in links if link.connection is not None]
        round_trips = [connection.control.round_trip_s for connection in present]
        return State(
            meter=shared.meter,
            proxies=[
                OpenProxy(proxy.name, "tcp" if proxy.udp is None else "udp", proxy.meter)
                for proxy in proxies()
            ],
            data_conns_waiting=sum(link.waiting for link in links),
            is_connected=is_ready(),
            round_trip_s=min((each for each in round_trips if each is not None), default=None),
        )

    return open_port(Side.CLIENT, lambda: shared.config.admin, state, is_ready)
