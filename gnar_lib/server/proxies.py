"""A proxy at the server, but for UDP: joins users with data connections to the client; knows no port."""

from __future__ import annotations

from gnar_lib.auth import Rights
from gnar_lib.events import Side, UserRefused, emit
from gnar_lib.net import Conn, Sockaddr
from gnar_lib.pio.meter import NO_LIMIT, Meter
from gnar_lib.proxy.joiner import Joiner
from gnar_lib.server.admission import ALL_MAY_COME
from gnar_lib.server.places import Places
from gnar_lib.server.upstream import Upstream
from gnar_lib.server.web.settings import NO_SETTINGS


class Proxy:
    """What one client has asked for: a name, limits and counts of its users, and the way to the client.

    A proxy that was closed goes on for the users who have a data connection.
    """

    def __init__(self, name: str, upstream: Upstream, rights: Rights, total: Meter, places: Places) -> None:
        self.name = name
        self.kind = "tcp"  # or "http", "https"
        self.rules = ALL_MAY_COME  # from where users may come
        self.web = NO_SETTINGS  # what is done with requests, if users come by name
        self.is_away = False  # the client is gone, and only the name of the proxy is held: nobody can come
        self.places = places
        self.meter = Meter(total, rights.speed)
        self.own_limit = NO_LIMIT  # to which the client keeps by itself, besides that of the meter
        self._upstream = upstream
        self.idle_timeout_s = rights.idle_timeout_s  # of a user without bytes in either direction; 0 is never
        self._joiner = Joiner(Side.SERVER, name, self.meter, rights.idle_timeout_s)

    def serve(self, user: Conn) -> None:
        """Carry one user's bytes to the client and back until both ends are closed; closes `user`.

        A user for whom there is no place is reset at once.
        """
        address = user.getpeername()
        network = self.places.network_of(address)
        if reason := self.rules.refusal(address) or self.places.enter(network):
            emit(UserRefused, self.name, self.kind, address, reason)
            user.abort()
            return
        try:
            self._joiner.join(user, address, lambda: self.connect(user, address))
        finally:
            self.places.leave(network)

    def connect(self, user: Conn, address: Sockaddr) -> Conn | None:
        """Return a data connection for a user, which the caller closes; None if the client brings none.

        The client is told the `address`. A user also gets a data connection if the client comes back while
        the user waits.
        """
        while True:
            upstream = self._upstream
            conn = upstream.take(user, self.name, self, address)
            if conn is not None or upstream is self._upstream:
                return conn

    @property
    def reach(self) -> object:
        """The way to the client: another one once the client has come back."""
        return self._upstream

    def move_to(self, upstream: Upstream) -> None:
        """Reach the client in another way from now on: it has come back. Users who wait go on waiting."""
        before, self._upstream = self._upstream, upstream
        before.give_up(self)

    def close(self) -> None:
        """Let no user wait for a data connection any longer; those who have one stay."""
        self._upstream.give_up(self)
        self.meter.end()
