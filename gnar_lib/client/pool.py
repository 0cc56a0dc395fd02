"""The pool of data connections that wait at the server for a user; knows neither proxies nor links.

The server says how many are to wait, and writes to each of them now and then. A data connection on which a
user came leaves the pool, and the pool opens another in its place. While that fails, it tries less often.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gevent.event import Event

from gnar_lib.client.turns import Turns
from gnar_lib.errors import ConnClosed, ConnError, ProtocolError
from gnar_lib.net import Conn, Crew, descriptors
from gnar_lib.net.descriptors import USER_COSTS
from gnar_lib.proto import Exchange, Heartbeat, recv
from gnar_lib.proto.numbers import MAX_WAITING
from gnar_lib.proto.pace import MESSAGE_S, pace

AT_ONCE_S = 1.0  # a conn that ends within that time, before anything came on it, counts as not opened


class WaitingPool:
    """The waiting data connections of one control connection; a greenlet of `crew` waits on each.

    `open_one` returns a new data connection that waits. `on_user` serves a user and closes the data
    connection on which the user's Exchange came; it runs in the greenlet that has waited. A data connection
    on which nothing has come for `silence_s` is given up.
    """

    def __init__(
        self,
        crew: Crew,
        turns: Turns,
        open_one: Callable[[], Conn],
        on_user: Callable[[Conn, Exchange], None],
        silence_s: float,
    ) -> None:
        self._crew = crew
        self._turns = turns
        self._open_one = open_one
        self._on_user = on_user
        self._silence_s = silence_s
        self._heard_s: dict[Conn, float] = {}  # when something came on each conn that waits
        self._opening = 0  # greenlets whose conn is not there yet
        self._wanted = 0  # how many are to wait
        self._is_closed = False
        self._ended: Event = Event()  # set whenever one waits no longer

    def __len__(self) -> int:
        return len(self._heard_s)

    def want(self, count: int) -> None:
        """Have `count` data connections wait, but no more than `MAX_WAITING`."""
        self._wanted = min(count, MAX_WAITING)
        self._fill()

    def tend(self, *, refill: bool) -> None:
        """Give up the conns that are silent; to be called once a second.

        `refill`: open others in place of those that have ended. A conn that ends is not replaced before that,
        so that no loop can spin.
        """
        now = time.monotonic()
        for conn in [conn for conn, at_s in self._heard_s.items() if now - at_s > self._silence_s]:
            conn.abort()
        if refill:
            self._fill()

    def wait_empty(self, timeout_s: float) -> None:
        """Open no more, and wait until the server has closed, or used, those that wait.

        So no user can be on the way to one of them. Ends after `timeout_s`.
        """
        self._wanted = 0
        until_s = time.monotonic() + timeout_s
        while (self._heard_s or self._opening) and (left_s := until_s - time.monotonic()) > 0:
            self._ended.clear()
            self._ended.wait(left_s)

    def close(self) -> None:
        """Close all that wait, and open no more."""
        self._is_closed = True
        for conn in [*self._heard_s]:
            conn.close()

    def _fill(self) -> None:
        """Begin to open as many as are missing and have room, each for the service as well."""
        if self._is_closed:
            return
        for _ in range(self._wanted - len(self._heard_s) - self._opening):
            if not descriptors.has_room(USER_COSTS * (self._opening + 1) + len(self)):
                return
            if self._turns.take() is None:
                return
            self._opening += 1
            self._crew.spawn(self._wait)

    def _wait(self) -> None:
        """Open one data connection, wait until a user comes on it, and serve the user."""
        conn = self._open()
        opened_s = self._heard_s[conn]
        try:
            exchange = self._wait_for_user(conn)
        except BaseException as exc:
            if isinstance(exc, ConnError) and self._ended_at_once(opened_s):
                self._turns.note_failure(opened_s, exc)
            conn.close()
            raise
        finally:
            del self._heard_s[conn]
            self._ended.set()
        self._fill()
        self._on_user(conn, exchange)

    def _open(self) -> Conn:
        """Return a new data connection that waits; raises `ConnClosed` if the pool was closed meanwhile."""
        try:
            with self._turns.trying():
                conn = self._open_one()
        finally:
            self._opening -= 1
            self._ended.set()
        if self._is_closed:
            conn.close()
            raise ConnClosed("the control connection has ended")
        self._heard_s[conn] = time.monotonic()
        return conn

    def _ended_at_once(self, opened_s: float) -> bool:
        """Tell whether the other end has closed a conn as soon as it was there."""
        return time.monotonic() - opened_s < AT_ONCE_S and not self._is_closed

    def _wait_for_user(self, conn: Conn) -> Exchange:
        """Return the first message that is no heartbeat; raises `ProtocolError` unless it is an Exchange."""
        while not isinstance(message := recv(conn), Exchange):
            if not isinstance(message, Heartbeat):
                raise ProtocolError(f"{type(message).__name__} on a waiting connection")
            self._heard_s[conn] = time.monotonic()
            pace.take(MESSAGE_S)
        return message
