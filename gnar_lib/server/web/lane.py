"""A lane: the way of one user's connection to the service of one proxy, for one request after the other.

A lane belongs to one connection of a user and is never shared: so nobody gets an answer for somebody else,
whatever a service does. It counts as one user of the proxy.
"""

from __future__ import annotations

import time

from gnar_lib.errors import ConnError
from gnar_lib.events import Side, UserAnswered, UserCame, UserConnected, UserLeft, UserRefused, emit
from gnar_lib.http.heads import ResponseToPass
from gnar_lib.http.message import HTTPError
from gnar_lib.net import Conn, Sockaddr, SocketConn
from gnar_lib.server.proxies import Proxy
from gnar_lib.yamux import Stream


class Lane:
    """Opened by `open`; `close` has to be called whatever happened."""

    def __init__(self, proxy: Proxy, user: Conn, address: Sockaddr, *, counts_address: bool) -> None:
        self.proxy = proxy
        self.is_used = False  # a request has been answered on it: the next may find it closed
        self.address = address  # of the user, behind whoever passes requests on
        self._user = user
        self._began_s = time.monotonic()
        self._network = proxy.places.network_of(address) if counts_address else ""
        self._has_place = self._is_open = False
        self._conn: Conn | None = None
        self._reach = proxy.reach
        self._reason = ""
        self.has_answered = False  # a byte of an answer has come
        # The last request and answer, since the next ones are often the same.
        self.sent_for: object = None
        self.sent_head = self.received_head = b""
        self.received = ResponseToPass()
        self.was_to_head = False
        self._live = proxy.meter.connection(address, self._end)
        self.up, self.down = self._live.up, self._live.down
        self.idle_timeout_s = proxy.idle_timeout_s

    @property
    def conn(self) -> Conn:
        """The conn to the service; raises `ConnError` before `open` and after `close`."""
        if self._conn is None:
            raise ConnError("the lane is not open")
        return self._conn

    def open(self) -> None:
        """Get a conn to the service. Raises `HTTPError` 503 if there is no place, 502 if there is no way."""
        proxy = self.proxy
        if reason := proxy.places.enter(self._network):
            emit(UserRefused, proxy.name, proxy.kind, self.address, reason)
            raise HTTPError(503, "there are too many users at the moment", [("Retry-After", "5")])
        self._has_place = True
        emit(UserCame, Side.SERVER, proxy.name, self.address)
        self._is_open = True
        # If the service is told once for each conn, that is the user's own address. Otherwise the conn may
        # carry requests of further users, so the address is that of whoever passes the requests on.
        shown = self.address if proxy.web.tells_address else self._user.getpeername()
        conn = proxy.connect(self._user, shown)
        if conn is None:
            self._reason = "nothing to connect to"
            raise HTTPError(503, f"{proxy.name} cannot be reached at the moment", [("Retry-After", "5")])
        self._conn, self._reach = conn, proxy.reach
        emit(UserConnected, Side.SERVER, proxy.name, self.address, time.monotonic() - self._began_s)
        self._live.__enter__()
        if isinstance(conn, SocketConn):
            conn.keep_reading = True

    def may_carry(self, address: Sockaddr) -> bool:
        """Tell whether a further request, from `address`, may go this way, as far as is known without asking.

        One from another address may not, if the service has been told that of the first.
        A service that has sent something meanwhile, such as a body behind an answer to HEAD, or more than it
        has told of, would have that taken for its next answer. One that has ended the conn takes no request.
        """
        conn = self._conn
        if conn is None or self._reach is not self.proxy.reach:  # the client has come back since
            return False
        if self.proxy.web.tells_address and address != self.address:
            return False
        if not isinstance(conn, SocketConn | Stream):
            return not conn.has_hung_up
        try:
            return conn.recv_now(1) is None
        except ConnError:
            return False

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come from the service any more; empty if something can."""
        return "" if self._conn is None else self._conn.why_gone(now_s)

    def note_answer(self) -> None:
        """Take note that the first answer has begun."""
        self.has_answered = True
        after_s = time.monotonic() - self._began_s
        emit(UserAnswered, Side.SERVER, self.proxy.name, self.address, after_s)

    def forget_request(self) -> None:
        """Let go of the last request, which is large."""
        self.sent_for, self.sent_head = None, b""

    def stop_reading(self) -> None:
        """Have nothing wake the greenlet of the user for this lane, until it waits for the lane again."""
        if isinstance(self._conn, SocketConn):
            self._conn.stop_reading()

    def _end(self) -> None:
        """End the lane and the user at once: somebody wants that."""
        self._user.abort()
        if self._conn is not None:
            self._conn.abort()

    def abort(self, reason: str) -> None:
        """Close the conn with a reset: the service does not take what it got for the whole."""
        self._reason = self._reason or reason
        if self._conn is not None:
            self._conn.abort()

    def close(self) -> None:
        """Close the conn, and tell of the end; more than once does no harm."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None
            self._live.__exit__()
        if self._has_place:
            self._has_place = False
            self.proxy.places.leave(self._network)
        if self._is_open:
            self._is_open = False
            lasted_s = time.monotonic() - self._began_s
            reason = self._live.ended_by or self._reason
            emit(
                UserLeft,
                Side.SERVER,
                self.proxy.name,
                self.address,
                self.up.bytes,
                self.down.bytes,
                lasted_s,
                reason,
            )
