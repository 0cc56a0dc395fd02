"""Serves one user: from the data connection to the local service and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnar_lib.errors import ConnError, DialError
from gnar_lib.net import SocketConn
from gnar_lib.proto import Exchange, recv
from gnar_lib.proxy.stream import stream

if TYPE_CHECKING:
    from gnar_lib.client.link import Link
    from gnar_lib.client.proxies import ClientProxy


def bring_data_conn(link: Link, message: Exchange) -> None:
    """A user has come: open the data connection that it is to have, and serve it."""
    proxy = link.proxy_of(message)
    conn = link.control.open_data(message)
    _serve(proxy, conn)


def wait_for_user(link: Link) -> None:
    """Open a data connection that waits; serve the user whom the server gives to it."""
    conn = link.open_waiting()
    try:
        while not isinstance(message := recv(conn), Exchange):
            link.heard_on(conn, message)
        proxy = link.proxy_of(message)
    except BaseException:
        conn.close()
        raise
    finally:
        link.no_longer_waits(conn)
    link.fill()
    _serve(proxy, conn)


def _serve(proxy: ClientProxy, conn: SocketConn) -> None:
    """Join the data connection with the local service; one that refuses ends the user's connection."""
    try:
        local = proxy.target.dial()
    except DialError as exc:
        proxy.refused(exc)
        conn.abort()
        return
    except BaseException:
        conn.abort()
        raise
    proxy.reached()
    proxy.meter.enter()
    try:
        stream(conn, local, proxy.up, proxy.down)
    except ConnError as exc:
        proxy.log.debug("a user's connection broke: %s", exc)
    finally:
        proxy.meter.leave()
