"""Data connections that wait, proven, before their user comes: how many, how fresh, and who is next.

A user who finds one costs one round trip. The server sees the users come and tells the client how many are to
wait; the client replaces each that a user got. Only the server closes one, so that none can be closed while a
user is on the way to it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from gnar_lib.errors import ConnError
from gnar_lib.net import SocketConn
from gnar_lib.proto import Heartbeat, to_frame

MIN_WAITING = 2  # at rest
BUSY_WAITING = 20  # of a client that has had a user of late: browsers open six at a time
MAX_WAITING = 64
DEMAND_WINDOW_S = 60  # for how long a busy second is remembered
MAX_AGE_S = 60.0  # well under the five minutes and more after which NATs forget a silent connection
HEARTBEAT_EVERY_S = 10.0  # from the server alone: a frame from the client could meet a user on the way

_HEARTBEAT = to_frame(Heartbeat())


class _Waiting:
    """One conn, when it came, when it was last written to, and whether all of that has arrived."""

    __slots__ = ("born_s", "conn", "proven", "written_s")

    def __init__(self, conn: SocketConn, now_s: float) -> None:
        self.conn = conn
        self.born_s = self.written_s = now_s
        self.proven = True  # its login has just come from the other end

    def is_alive(self) -> bool:
        """Tell whether the conn is open and the peer has acknowledged the last heartbeat."""
        try:
            if self.conn.recv_now(1) is not None:  # its end, or bytes that have no business here
                return False
            if not self.proven:
                self.proven = self.conn.unacknowledged() == 0
        except ConnError:
            return False
        return True

    def beat(self, now_s: float) -> bool:
        """Write a heartbeat when one is due; False when the one before has not arrived in all that time."""
        if now_s - self.written_s < HEARTBEAT_EVERY_S:
            return True
        was_proven, self.proven, self.written_s = self.proven, False, now_s
        try:
            return was_proven and self.conn.send_now(_HEARTBEAT) == len(_HEARTBEAT)
        except ConnError:
            return False


class WaitingConns:
    """The data connections of one control connection that have no user yet.

    `tell(n)` is called whenever another number of them is to wait.
    """

    def __init__(self, tell: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._told = 0
        self._clock = clock
        self._conns: deque[_Waiting] = deque()
        self._users_this_second = 0
        self._recent: deque[int] = deque(maxlen=DEMAND_WINDOW_S)
        self._busiest = 0  # of the recent seconds
        self._is_open = False

    def __len__(self) -> int:
        return len(self._conns)

    def open(self) -> None:
        """There is a proxy that users may come to."""
        self._is_open = True
        self._announce()

    def close(self) -> None:
        """There is none any more: close those that wait, and those that still come."""
        self._is_open = False
        self._announce()
        while self._conns:
            self._conns.pop().conn.close()

    def add(self, conn: SocketConn) -> None:
        """Take a conn that has proven itself."""
        if self._is_open and len(self._conns) < MAX_WAITING:
            self._conns.append(_Waiting(conn, self._clock()))
        else:
            conn.close()

    def take(self) -> SocketConn | None:
        """Return a conn for a user who has just come, None when there is none."""
        self._users_this_second += 1
        if self._users_this_second > self._busiest:
            self._busiest = self._users_this_second
            self._announce()
        for _ in range(len(self._conns)):
            waiting = self._conns.pop()  # the youngest: the old ones may age
            if not waiting.is_alive():
                waiting.conn.close()
            elif waiting.proven:
                return waiting.conn
            else:
                self._conns.appendleft(waiting)
        return None

    def tend(self) -> None:
        """Once a second: forget the dead and the old, write to those that are due."""
        self._recent.append(self._users_this_second)
        self._users_this_second = 0
        self._busiest = max(self._recent)
        now = self._clock()
        for waiting in [*self._conns]:
            if not waiting.is_alive() or now - waiting.born_s > MAX_AGE_S or not waiting.beat(now):
                self._conns.remove(waiting)
                waiting.conn.close()
        self._announce()

    def _announce(self) -> None:
        """Tell how many should wait: few at rest, else what the busiest second took and a reserve."""
        wanted = min(BUSY_WAITING + self._busiest, MAX_WAITING) if self._busiest else MIN_WAITING
        wanted = wanted if self._is_open else 0
        if wanted != self._told:
            self._told = wanted
            self._tell(wanted)
