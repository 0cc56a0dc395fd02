"""The upstream of one client: how the server gets a data connection to the client for a user."""

from __future__ import annotations

from collections.abc import Callable

from gnar_lib.auth import Session
from gnar_lib.errors import ConnError, MuxError
from gnar_lib.net import Conn, EventedConn, Sockaddr, format_address
from gnar_lib.proto import Exchange, Heartbeat, Login, Message, announcement
from gnar_lib.proto.numbers import FEATURE_MUX, FEATURE_UDP, FEATURE_WAIT
from gnar_lib.server.connmap import ConnMap
from gnar_lib.server.upstream.carriers import Carriers
from gnar_lib.server.upstream.ondemand import OnDemand
from gnar_lib.server.upstream.waiting import WaitingPool
from gnar_lib.yamux import Session as Mux

ANY_GO_CLIENT = "a Go client"  # the key of all Go clients: they log in by the token, and know the `conn_id`


def key_of(session: Session | None, mux: Mux | None) -> object:
    """Return the key by which data connections of a client claim users; `mux` is its multiplexed session."""
    if session is not None:
        return session.id
    return ANY_GO_CLIENT if mux is None else mux


class Upstream:
    """Gets data connections to one client, in the way that is fastest with that client.

    With one of gnar's own clients, that is a data connection that has been waiting, or a new stream of the
    multiplexed session. Otherwise, and when none waits, the client is asked for one.

    `post` sends a message on the client's control connection and never waits. `session` is None for a Go
    client, `carriers` is None unless the client multiplexes. While `is_silent` says that nothing has come
    from the client for a while, users wait until the client has been heard.
    """

    def __init__(
        self,
        conn_map: ConnMap,
        post: Callable[[Message], None],
        session: Session | None,
        carriers: Carriers | None,
        is_silent: Callable[[], bool],
    ) -> None:
        self._session = session
        self._is_silent = is_silent
        self._carriers: Carriers | None = None  # on which the server may open streams: a Go client takes none
        if session is not None and FEATURE_MUX in session.features:
            self._carriers = carriers
        self._on_demand = OnDemand(
            conn_map, key_of(session, None if carriers is None else carriers.first), post
        )
        self._pool: WaitingPool | None = None  # unless data connections of this client do not wait
        if carriers is None and session is not None and FEATURE_WAIT in session.features:
            self._pool = WaitingPool(session, lambda count: post(Heartbeat(waiting=count)))

    @classmethod
    def of_nobody(cls, conn_map: ConnMap) -> Upstream:
        """Return the upstream of proxies whose client is away: who takes from it waits, and gets None."""
        upstream = cls(conn_map, lambda _: None, None, None, lambda: False)
        upstream._on_demand = OnDemand(conn_map, object(), lambda _: None)  # with a key that nobody has
        return upstream

    @property
    def takes_binary_datagrams(self) -> bool:
        """Whether the client takes datagrams in binary; a Go client takes them as JSON."""
        return self._session is not None and FEATURE_UDP in self._session.features

    @property
    def waiting(self) -> int:
        """How many data connections wait for a user."""
        return 0 if self._pool is None else len(self._pool)

    @property
    def users_waiting(self) -> int:
        """How many users of TCP proxies wait for a data connection on demand."""
        return self._on_demand.users_waiting

    def take(self, user: Conn, proxy: str, owner: object, address: Sockaddr | None = None) -> Conn | None:
        """Return a data connection for a user of a TCP proxy, ready for the user's bytes.

        The client has been told of the user, by the `address`, or else by that of the conn. `proxy` is the
        name of the proxy, `owner` the proxy itself, for `give_up`: while a client changes a proxy, it can
        have two of one name. Returns None if the client brings no data connection within ten seconds, or if
        its control connection ends before. The caller closes what is returned.
        """
        shown = format_address(user.getpeername() if address is None else address)
        conn = self._take_ready(proxy, shown)
        if conn is not None:
            return conn
        return self._on_demand.take(lambda conn_id: self._exchange(conn_id, proxy, shown), owner, user)

    def take_for_datagrams(self, proxy: str, owner: object) -> Conn | None:
        """Return a data connection that carries the datagrams of a UDP proxy; all else is as with `take`."""
        name = proxy if self._session is not None else ""
        return self._on_demand.take(
            lambda conn_id: Exchange(conn_id=conn_id, proxy_type="udp", proxy_name=name), owner
        )

    def _take_ready(self, proxy: str, address: str) -> Conn | None:
        """Return a data connection that is there already, or a new stream; None if there is neither.

        Exchange is the first that is sent on it. None also if the client is silent: a user on such a data
        connection could not be given another.
        """
        if (self._carriers is None and self._pool is None) or self._is_silent():
            return None
        announced = announcement(proxy, address)
        if self._carriers is not None:
            try:
                return self._carriers.open(announced)
            except MuxError:  # the session is ending, and with it the control connection
                return None
        while self._pool is not None and (conn := self._pool.take()) is not None:
            try:
                conn.sendall(announced)
            except ConnError:
                conn.close()
            except BaseException:
                conn.abort()
                raise
            else:
                return conn
        return None

    def _exchange(self, conn_id: str, proxy: str, address: str) -> Exchange:
        """Return the message that tells the client of a user; a Go client is told the `conn_id` alone."""
        if self._session is None:
            return Exchange(conn_id=conn_id, proxy_type="tcp")
        return Exchange(conn_id=conn_id, proxy_type="tcp", proxy_name=proxy, user=address)

    # ---- for the control connection ------------------------------------------------------------------------

    def expect_users(self) -> None:
        """Have data connections wait from now on: there is a proxy to which users may come."""
        if self._pool is not None:
            self._pool.open()

    def expect_no_users(self) -> None:
        """Have no data connections wait: there is no proxy any more."""
        if self._pool is not None:
            self._pool.close()

    def admit(self, conn: EventedConn, login: Login) -> bool:
        """Keep a data connection that is to wait, if it proves to be this client's; False if it does not.

        The upstream closes the conn if it was admitted, otherwise the caller does.
        """
        return self._pool is not None and self._pool.admit(conn, login)

    def tend(self) -> None:
        """Look after the data connections that wait, and the users who do; to be called once a second."""
        self._on_demand.tend()
        if self._pool is not None:
            self._pool.tend()
        if self._carriers is not None:
            self._carriers.tend()

    def give_up(self, owner: object) -> None:
        """Let no user of this proxy wait for a data connection any longer."""
        self._on_demand.give_up(owner)

    def close(self) -> None:
        """Close what waits: `take` brings nothing any more."""
        self.expect_no_users()
        self._on_demand.close()
        self._is_silent = _has_gone  # which lets go of the control connection


def _has_gone() -> bool:
    """Stand for a client whose control connection has ended: it says nothing."""
    return True
