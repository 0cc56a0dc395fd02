"""One proxied port: accepts its users and hands each to a data connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.net import Conn, Listener, SocketConn, format_address
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import Exchange, to_frame
from gnar_lib.proxy.stream import stream

if TYPE_CHECKING:
    from gnar_lib.server.control import Control


class User:
    """A user who waits in the conn map for a data connection."""

    def __init__(self, proxy: Proxy, conn: SocketConn) -> None:
        self.proxy = proxy
        self.control = proxy.control
        self.conn = conn

    def join(self, conn: Conn) -> None:
        """Carry the user's bytes over the data connection that claimed them."""
        self.proxy.log.debug("user %s has data connection %s", self.conn, conn)
        self.control.server.users.spawn(self.proxy.carry, self.conn, conn)

    def expire(self) -> None:
        """No data connection came, or the client has gone."""
        self.proxy.log.debug("user %s found no data connection", self.conn)
        self.conn.close()


class Proxy:
    """A port that a client has; it ends with its control connection, its users' connections when they end."""

    type = "tcp"

    def __init__(self, control: Control, name: str, listener: Listener) -> None:
        self.control = control
        self.name = name
        self.listener = listener
        self.port = listener.port
        self.log = logger.get(f"TCP [{name}]")
        self._meter = Meter(control.server.meter, control.server.config.max_speed)

    def start(self) -> None:
        """Take users from now on."""
        self.listener.serve(self.control.server.users, self.serve_user)

    def serve_user(self, user: SocketConn) -> None:
        """Carry one user's bytes over a waiting data connection, or have the client bring one."""
        try:
            data = self.control.take_data_conn(self, user)
            if data is None:
                # The old way: the user waits in the conn map, for the data connection that claims it.
                conn_id = self.control.server.connmap.put(User(self, user))
                self.control.post(self.exchange_for(conn_id, user))
                return
        except BaseException:
            user.abort()
            raise
        self.carry(user, data)

    def carry(self, user: SocketConn, data: Conn) -> None:
        """Join a user with a data connection, until both are closed."""
        with self._meter.connection(user.getpeername(), user.abort) as live:
            stream(user, data, live.up, live.down)

    def exchange_for(self, conn_id: str, user: SocketConn) -> Exchange:
        """Return the message that tells the client of a user."""
        if self.control.session is None:
            return Exchange(conn_id=conn_id, proxy_type="tcp")
        address = format_address(user.getpeername())
        return Exchange(conn_id=conn_id, proxy_type="tcp", proxy_name=self.name, user=address)

    def frame_for(self, conn_id: str, user: SocketConn) -> bytes:
        """Return the same as the bytes that go first on a waiting data connection."""
        return to_frame(self.exchange_for(conn_id, user))

    def close(self) -> None:
        """Take no more users."""
        self.listener.close()
        self._meter.end()
        self.control.server.connmap.drop(lambda entry: entry.proxy is self)
