"""Data connections on demand: the client is asked for one, and whoever asked waits in the conn map."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.net import Conn, descriptors, wait_for
from gnar_lib.proto import Exchange, Message
from gnar_lib.server.connmap import ConnMap

HALF_CLOSED_WAIT_S = 2.0  # a user who may have left, or just sends no more, is waited for no longer than this


class _Ticket:
    """An entry of the conn map: one greenlet that waits for a data connection, and what the greenlet gets."""

    __slots__ = ("_conn", "_waiter", "began_s", "key", "user")

    def __init__(self, key: object, user: Conn | None) -> None:
        self.key = key  # which a data connection has to have
        self.user = user  # for whom the greenlet waits; None if it waits for datagrams
        self.began_s = time.monotonic()
        self._conn: Conn | None = None  # the data connection, once delivered
        self._waiter: greenlet | None = None  # the greenlet, while it waits

    def wait(self) -> Conn | None:
        """Return the data connection once it is delivered, or None once the ticket has expired."""
        self._waiter = getcurrent()
        try:
            wait_for(self)
        except BaseException:
            if self._conn is not None:  # delivered in the turn of the loop in which the greenlet was ended
                self._conn.abort()
            raise
        finally:
            self._waiter = None
        return self._conn

    def deliver(self, conn: Conn) -> None:
        """Wake the greenlet that waits, in the next turn of the loop, and give it the data connection."""
        self._conn = conn
        get_hub().loop.run_callback(self._wake)

    def expire(self) -> None:
        """Wake the greenlet that waits, in the next turn of the loop, and give it None."""
        get_hub().loop.run_callback(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None:  # else the greenlet was ended meanwhile
            self._waiter.switch(self)


class OnDemand:
    """Asks one client for data connections.

    `post` sends a message to the client and never waits. `key` is what the client's data connections have to
    have in order to claim a user.
    """

    def __init__(self, conn_map: ConnMap, key: object, post: Callable[[Message], None]) -> None:
        self._conn_map = conn_map
        self._key = key
        self._post = post
        # Those of this client, by the proxy that waits, and by `conn_id`: the oldest of each proxy first.
        self._tickets: defaultdict[object, dict[str, _Ticket]] = defaultdict(dict)
        self._is_closed = False  # the client has gone

    @property
    def users_waiting(self) -> int:
        """How many users wait for a data connection."""
        return sum(ticket.user is not None for each in self._tickets.values() for ticket in each.values())

    def take(
        self, exchange_for: Callable[[str], Exchange], owner: object, user: Conn | None = None
    ) -> Conn | None:
        """Ask for a data connection, wait until the client has brought it, and return it.

        `exchange_for` makes the message that asks, of a `conn_id`. `owner` is the proxy that needs the data
        connection, `user` the one for whom. Returns None if none came in time, if the user has left before,
        after `give_up` for that proxy, or after `close`. The caller closes what is returned.
        """
        if self._is_closed:
            return None
        ticket = _Ticket(self._key, user)
        conn_id = self._conn_map.put(ticket)
        self._tickets[owner][conn_id] = ticket
        try:
            with descriptors.promise():
                self._post(exchange_for(conn_id))
                return ticket.wait()
        finally:
            self._conn_map.remove(conn_id)
            self._forget(conn_id, owner)

    def _forget(self, conn_id: str, owner: object) -> None:
        tickets = self._tickets[owner]
        del tickets[conn_id]
        if not tickets:
            del self._tickets[owner]

    def give_up(self, owner: object) -> None:
        """Have `take` return None to all who wait for this proxy, but not for another of the same name."""
        for conn_id, ticket in self._tickets.get(owner, {}).items():
            self._expire(conn_id, ticket)

    def tend(self) -> None:
        """Once a second: have `take` return None to those whose users have left.

        A user who sends no more may be one who wants the answer, and is waited for a bit longer.
        """
        if not self._tickets:
            return
        before_s = time.monotonic() - (0.0 if descriptors.is_short else HALF_CLOSED_WAIT_S)
        for tickets in self._tickets.values():
            for conn_id, ticket in tickets.items():
                if ticket.began_s > before_s:
                    break
                if ticket.user is not None and ticket.user.has_hung_up:
                    self._expire(conn_id, ticket)

    def close(self) -> None:
        """Have `take` return None to all who wait, and to all who come later: the client has gone."""
        self._is_closed = True
        for tickets in self._tickets.values():
            for conn_id, ticket in tickets.items():
                self._expire(conn_id, ticket)

    def _expire(self, conn_id: str, ticket: _Ticket) -> None:
        self._conn_map.remove(conn_id)
        ticket.expire()
