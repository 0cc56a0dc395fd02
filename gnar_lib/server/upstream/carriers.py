"""The multiplexed sessions of one client: which of them carries the next user, and which are not needed.

The first one has the control connection. A client on a long path opens further ones once users come, so that
a lost packet holds up the users of one session, and not all. Only this end opens streams for users, so only
this end closes a session that has none: no user can be on the way there.
"""

from __future__ import annotations

import time

from gnar_lib.auth import ReplayWindow, Session, beside_id, carrier_id
from gnar_lib.errors import MuxError
from gnar_lib.net import EventedConn, descriptors
from gnar_lib.net.options import dead_after_s
from gnar_lib.proto import Login
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

MAX_FURTHER = 8  # sessions of one client beside the first: own clients open 3
IDLE_S = 60.0  # without a user, after which the further sessions are closed


class Carriers:
    """The multiplexed sessions of one client, of which `first` has the control connection.

    `session` is the login session; None for a Go client, which has one multiplexed session.
    """

    def __init__(self, first: Mux, session: Session | None) -> None:
        self.first = first
        self._session = session
        self._further: dict[int, Mux] = {}  # by number
        self._numbers = ReplayWindow()  # of those that have come
        self._turn = 0  # counts users, who take turns
        self._used_s = 0.0  # when a user last came

    @property
    def heard_s(self) -> float:
        """When any byte last came from the client on one of them, as `time.monotonic` says."""
        heard_s = self.first.heard_s
        for mux in self._further.values():
            heard_s = max(heard_s, mux.heard_s)
        return heard_s

    def open(self, first: bytes) -> Stream:
        """Return a new stream for a user, who closes it, with its first bytes; raises `MuxError`."""
        if not self._further:
            return self.first.open(first)
        self._used_s = time.monotonic()
        self._turn += 1
        sessions = [self.first, *self._further.values()]
        at = self._turn % len(sessions)
        for mux in sessions[at:] + sessions[:at]:
            try:
                return mux.open(first)
            except MuxError:  # it is ending
                continue
        raise MuxError("all multiplexed sessions have ended")

    def admit(self, conn: EventedConn, login: Login) -> Mux | None:
        """Make a further session of a conn whose login proves to be this client's; None if it does not.

        The session closes the conn, and whoever serves the session calls `forget` in the end.
        """
        number, session = login.carrier, self._session
        if session is None or self.first.closed or len(self._further) >= MAX_FURTHER:
            return None
        if not (session.is_signed(carrier_id(number), login.proof) and self._numbers.accept(number)):
            return None
        conn.set_user_timeout(dead_after_s())
        mux = Mux(conn, is_client=False)
        mux.moves = mux.joins_end = True
        self._further[number] = mux
        self._used_s = time.monotonic()
        return mux

    def forget(self, mux: Mux) -> None:
        """Take note that one of the further sessions has ended."""
        self._further = {number: each for number, each in self._further.items() if each is not mux}

    def attach(self, conn: EventedConn, login: Login) -> bool:
        """Keep a conn beside the stream that its login names; False if the login proves nothing.

        So it is if there is no use for the conn, or if its descriptor is one of those that users do not get.
        The stream closes a conn that it keeps.
        """
        stream = self._stream(login.beside)
        if stream is None or self._session is None or not descriptors.has_room(0):
            return False
        return self._session.is_signed(beside_id(login.beside), login.proof) and stream.attach(
            conn, is_ready=True
        )

    def _stream(self, name: str) -> Stream | None:
        """Return the stream of a user whose name is such as "0:12"; None if there is none."""
        carrier, _, stream_id = name.partition(":")
        if not (carrier.isdecimal() and stream_id.isdecimal()):
            return None
        mux = self._further.get(int(carrier)) if int(carrier) else self.first
        if mux is None or not mux.moves or int(stream_id) % 2:  # the client has opened the odd ones
            return None
        return mux.stream(int(stream_id))

    def tend(self) -> None:
        """Close further sessions without users, if none has come for a while; to be called once a second."""
        if self._further and time.monotonic() - self._used_s > IDLE_S:
            for mux in [*self._further.values()]:
                if not mux.streams:
                    self.forget(mux)
                    mux.close()

    def drain(self) -> None:
        """Take no further streams; each session ends with its last one."""
        for mux in (self.first, *self._further.values()):
            mux.drain()

    def close(self) -> None:
        """End all sessions with their streams."""
        for mux in (self.first, *self._further.values()):
            mux.close()
