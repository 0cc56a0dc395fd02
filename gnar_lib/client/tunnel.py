"""Serves one user: joins the data connection with the local service; knows neither link nor pool."""

from __future__ import annotations

import time

from gnar_lib.client.proxies import ClientProxy
from gnar_lib.errors import ConnError, DialError, ProtocolError
from gnar_lib.events import Side, UserCame, UserConnected, UserLeft, emit
from gnar_lib.net import Conn
from gnar_lib.proxy.stream import stream


def serve(proxy: ClientProxy, conn: Conn, user: str) -> None:
    """Carry bytes between a data connection and the local service until both are closed; closes `conn`.

    `user` is the user's address as the server tells it, empty if the server does not. If the local service
    does not answer, the user's connection is reset. Raises `ProtocolError` for a user of TCP of a UDP proxy.
    """
    if proxy.udp is not None:  # nobody has offered the TCP port of that number to the server
        conn.abort()
        raise ProtocolError(f"a user of TCP for {proxy.name!r}, which is UDP")
    began_s = time.monotonic()
    emit(UserCame, Side.CLIENT, proxy.name, user)
    live = proxy.meter.connection(user, conn.abort)
    reason = ""
    try:
        local = proxy.dial()
        emit(UserConnected, Side.CLIENT, proxy.name, user, time.monotonic() - began_s)
        with live:
            stream(conn, local, live.up, live.down)
    except DialError as exc:
        reason = str(exc)
        conn.abort()
    except ConnError as exc:
        reason = str(exc)
    except BaseException:
        reason = "ended by the client"
        conn.abort()
        raise
    finally:
        lasted_s = time.monotonic() - began_s
        emit(UserLeft, Side.CLIENT, proxy.name, user, live.up.bytes, live.down.bytes, lasted_s, reason)
