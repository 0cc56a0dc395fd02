"""A proxy of TCP at the server: gets each user a data connection and joins the two; knows no port."""

from __future__ import annotations

import time

from gnar_lib.auth import Rights
from gnar_lib.errors import ConnError
from gnar_lib.events import Side, UserCame, UserConnected, UserLeft, emit
from gnar_lib.net import Conn
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.stream import stream
from gnar_lib.server.upstream import Upstream


class Proxy:
    """What one client has asked for: a name, limits and counts of its users, and the way to the client.

    A proxy that was closed goes on for the users who have a data connection.
    """

    kind = "tcp"

    def __init__(self, name: str, upstream: Upstream, rights: Rights, total: Meter) -> None:
        self.name = name
        self.meter = Meter(total, rights.speed)
        self._upstream = upstream

    def serve(self, user: Conn) -> None:
        """Carry one user's bytes to the client and back until both ends are closed; closes `user`."""
        address, began_s = user.getpeername(), time.monotonic()
        emit(UserCame, Side.SERVER, self.name, address)
        live = self.meter.connection(address, user.abort)
        reason = ""
        try:
            data = self._upstream.take(user, self.name)
            if data is None:
                reason = "no data connection came"
                return
            emit(UserConnected, Side.SERVER, self.name, address, time.monotonic() - began_s)
            with live:
                stream(user, data, live.up, live.down)
        except ConnError as exc:
            reason = str(exc)
        except BaseException:
            reason = "ended by the server"
            user.abort()
            raise
        finally:
            user.close()
            lasted_s = time.monotonic() - began_s
            emit(UserLeft, Side.SERVER, self.name, address, live.up.bytes, live.down.bytes, lasted_s, reason)

    def close(self) -> None:
        """Let no user wait for a data connection any longer; those who have one stay."""
        self._upstream.give_up(self.kind, self.name)
        self.meter.end()
