"""Serves one user: from the data connection to the local service and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnar_lib.errors import ConnError, DialError, ProtocolError
from gnar_lib.net import Conn, deadline
from gnar_lib.proto import Exchange, expect, recv
from gnar_lib.proxy.stream import stream as join
from gnar_lib.yamux import Stream

if TYPE_CHECKING:
    from gnar_lib.client.link import Link
    from gnar_lib.client.proxies import ClientProxy

FIRST_MESSAGE_S = 10.0  # the server sends it with the stream's first frame


def bring_data_conn(link: Link, message: Exchange) -> None:
    """A user has come: open the data connection that it is to have, and serve it."""
    proxy = link.proxy_of(message)
    conn = link.control.open_data(message)
    _serve(proxy, conn)


def serve_stream(link: Link, stream: Stream) -> None:
    """Serve the user for whom the server has opened a stream."""
    try:
        with deadline(FIRST_MESSAGE_S, "the first message of a stream"):
            proxy = link.proxy_of(expect(stream, Exchange))
    except BaseException:
        stream.abort()
        raise
    _serve(proxy, stream)


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


def _serve(proxy: ClientProxy, conn: Conn) -> None:
    """Join the data connection with the local service; one that refuses ends the user's connection."""
    if proxy.udp is not None:  # the TCP port of that number was never offered to the server
        conn.abort()
        raise ProtocolError(f"a user of TCP for {proxy.name!r}, which is UDP")
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
    with proxy.meter.connection("", conn.abort) as live:
        try:
            join(conn, local, live.up, live.down)
        except ConnError as exc:
            proxy.log.debug("a user's connection broke: %s", exc)
