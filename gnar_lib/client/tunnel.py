"""Serves one user at the client, whose data connection is there; knows neither link nor pool."""

from __future__ import annotations

from functools import partial

from gnar_lib.client.proxies import ClientProxy
from gnar_lib.errors import ProtocolError
from gnar_lib.net import Conn


def serve(proxy: ClientProxy, conn: Conn, user: str) -> None:
    """Carry bytes between a data connection and the local service until both are closed; closes `conn`.

    `user` is the user's address as the server tells it, empty if the server does not. If the local service
    does not answer, the user's connection is reset. Raises `ConnError`, or `ProtocolError` if the proxy is of
    UDP.
    """
    if proxy.udp is not None:  # nobody has offered the TCP port of that number to the server
        conn.abort()
        raise ProtocolError(f"a user of TCP for {proxy.name!r}, which is UDP")
    if proxy.inspector is not None:
        conn = proxy.inspector.tapped(conn, user, proxy.name, tells_users=proxy.kind == "http")
    proxy.joiner.join(conn, user, partial(proxy.dial, user))
