"""The pool of data connections that wait for their user: how many, how fresh, and which is next.

A user who finds a waiting data connection costs one round trip. The server sees users come and tells the
client how many data connections are to wait; the client replaces each that a user got. Only the server closes
a waiting one, so that no user can be on the way to one that has just been closed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from gnar_lib import auth
from gnar_lib.errors import ConnError
from gnar_lib.net import EventedConn, descriptors
from gnar_lib.proto import Login
from gnar_lib.proto.msg import HEARTBEAT_FRAME
from gnar_lib.proto.numbers import MAX_WAITING, waiting_heartbeat_s

MIN_WAITING = 2  # while no user has come of late
BUSY_WAITING = 20  # beyond the users of the busiest second of late: browsers open six connections at a time
DEMAND_WINDOW_S = 60  # a second counts as "of late" for so long
MAX_AGE_S = 600.0
SPARE_AGE_S = 2.0  # the same, while users wait for descriptors


class _Waiting:
    """One data connection of the pool."""

    __slots__ = ("conn", "is_proven", "since_s", "written_s")

    def __init__(self, conn: EventedConn, now_s: float) -> None:
        self.conn = conn
        self.since_s = now_s  # when it came
        self.written_s = now_s  # when the last heartbeat was written
        self.is_proven = True  # the peer has acknowledged all that was written: its login has just come

    def is_alive(self) -> bool:
        """Tell whether the conn is open; notes whether the peer has acknowledged the last heartbeat."""
        try:
            if self.conn.recv_now(1) is not None:  # the end, or bytes that a client must not send here
                return False
            if not self.is_proven:
                self.is_proven = self.conn.unacknowledged() == 0
        except ConnError:
            return False
        return True

    def write_heartbeat(self, now_s: float, every_s: float) -> bool:
        """Write a heartbeat if one is due; False if the one before has not arrived in all that time."""
        if now_s - self.written_s < every_s:
            return True
        was_proven, self.is_proven, self.written_s = self.is_proven, False, now_s
        try:
            return was_proven and self.conn.send_now(HEARTBEAT_FRAME) == len(HEARTBEAT_FRAME)
        except ConnError:
            return False


class WaitingPool:
    """The data connections of one client that have no user yet.

    The pool closes them; one that `take` has returned is closed by whoever took it. `ask_for(n)` tells the
    client that `n` data connections are to wait, and is called whenever that number changes.
    """

    def __init__(
        self,
        session: auth.Session,
        ask_for: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session  # whose key signs the logins of these data connections
        self._ask_for = ask_for
        self._heartbeat_s = waiting_heartbeat_s(session.heartbeat_s)  # between two on each data connection
        self._clock = clock
        self._numbers = auth.ReplayWindow()  # of the logins by which data connections came
        self._conns: deque[_Waiting] = deque()  # the youngest last
        self._asked_for = 0  # the number that the client was told last
        self._users_this_second = 0
        self._recent: deque[int] = deque(maxlen=DEMAND_WINDOW_S)  # users of each of the recent seconds
        self._busiest = 0  # the most users in one of the recent seconds
        self._is_open = False

    def __len__(self) -> int:
        return len(self._conns)

    def open(self) -> None:
        """Have data connections wait from now on."""
        self._is_open = True
        self._update_demand()

    def close(self) -> None:
        """Close the data connections that wait, and those that still come, until `open` is called again."""
        self._is_open = False
        self._update_demand()
        while self._conns:
            self._conns.pop().conn.close()

    def admit(self, conn: EventedConn, login: Login) -> bool:
        """Take a conn whose login is signed for this session and is no replay; False if it is not.

        A conn for which there is no room is closed, and counts as admitted.
        """
        is_signed = self._session.is_signed(auth.waiting_id(login.waiting), login.proof)
        if not (is_signed and self._numbers.accept(login.waiting)):
            return False
        if self._is_open and len(self._conns) < (1 if descriptors.is_tight else MAX_WAITING):
            self._conns.append(_Waiting(conn, self._clock()))
        else:
            conn.close()
        return True

    def take(self) -> EventedConn | None:
        """Return a conn for a user who has just come, which the caller closes; None if there is none."""
        self._users_this_second += 1
        if self._users_this_second > self._busiest:
            self._busiest = self._users_this_second
            self._update_demand()
        for _ in range(len(self._conns)):
            waiting = self._conns.pop()  # the youngest: the oldest are replaced for their age anyway
            if not waiting.is_alive():
                waiting.conn.close()
            elif waiting.is_proven:
                return waiting.conn
            else:
                self._conns.appendleft(waiting)
        return None

    def tend(self) -> None:
        """Once a second: drop the conns that are dead or too old, and write heartbeats that are due."""
        self._recent.append(self._users_this_second)
        self._users_this_second = 0
        self._busiest = max(self._recent)
        now = self._clock()
        for waiting in [*self._conns]:
            # A client would take one that is closed as soon as it has come for one that cannot be opened.
            max_age_s = SPARE_AGE_S if descriptors.is_short else MAX_AGE_S
            is_fresh = waiting.is_alive() and now - waiting.since_s <= max_age_s
            if not (is_fresh and waiting.write_heartbeat(now, self._heartbeat_s)):
                self._conns.remove(waiting)
                waiting.conn.close()
        self._update_demand()

    def _update_demand(self) -> None:
        """Tell the client how many are to wait: few at rest, enough for a busy second otherwise.

        One, when users need the descriptors more: a client takes 0 for no news.
        """
        wanted = min(BUSY_WAITING + self._busiest, MAX_WAITING) if self._busiest else MIN_WAITING
        wanted = wanted if self._is_open else 0
        if wanted and descriptors.is_tight:
            wanted = 1
        if wanted != self._asked_for:
            self._asked_for = wanted
            self._ask_for(wanted)
