"""What a client opens beside the multiplexed session of its control connection, once users need it.

On a long path that is a few further sessions, over which the server spreads its users: a lost packet holds up
the users of one session. On any path it is a connection for each stream whose bytes have become many. Knows
neither proxies nor links.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from gnar_lib.client.connect import ControlConn
from gnar_lib.client.turns import Turns
from gnar_lib.errors import ConnError, DialError
from gnar_lib.net import Crew, EventedConn, descriptors
from gnar_lib.net.descriptors import USER_COSTS
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

LONG_PATH_S = 0.005  # a round trip from which on lost packets are found too late for one session to be enough
MAX_CARRIERS = 4  # sessions on a long path, the first included
READY_S = 10.0  # after which a connection beside a stream is given up if the server has closed it


class Carriers:
    """The further sessions of one control connection, and the connections beside streams of all sessions.

    `serve(stream)` serves the user for whom the server has opened a stream, in a greenlet of `users`.
    """

    def __init__(
        self, control: ControlConn, crew: Crew, users: Crew, turns: Turns, serve: Callable[[Stream], None]
    ) -> None:
        self._control = control
        self._crew = crew  # dials, and waits for the end of the further sessions
        self._users = users
        self._turns = turns
        self._serve = serve
        self._further: dict[Mux, float] = {}  # and since when nothing has come; 0.0: something has
        self._opening = 0  # further sessions that are not there yet
        self._number = 0  # of the last further session that was opened
        self._is_over = False  # `drain` or `close` was called
        self._besides: dict[tuple[int, int], tuple[Stream, float]] = {}  # by carrier and stream: since when
        self._bringing = 0  # of those that are not there yet
        self._wanted = 0  # further sessions
        rtt_s = control.round_trip_s
        if control.moves and (rtt_s is None or rtt_s >= LONG_PATH_S):
            self._wanted = MAX_CARRIERS - 1

    def start(self) -> None:
        """Serve streams from now on; without multiplexing there are none."""
        mux = self._control.mux
        if mux is not None:
            self._use(mux, 0)

    def _use(self, mux: Mux, number: int) -> None:
        mux.joins_end = not self._control.is_go
        if self._control.moves:
            mux.moves = True
            mux.bring = partial(self._bring, number)
        mux.serve(self._users, self._on_stream if self._wanted else self._serve)

    # ---- further sessions ----------------------------------------------------------------------------------

    def _on_stream(self, stream: Stream) -> None:
        """A user has come: see to it that there are sessions for others, and serve."""
        while len(self._further) + self._opening < self._wanted and self._may_dial(1):
            self._opening += 1
            self._crew.spawn(self._open)
        self._serve(stream)

    def _may_dial(self, count: int) -> bool:
        room = descriptors.has_room(count + self._opening + self._bringing)
        return room and not self._is_over and self._turns.take() is not None

    def _open(self) -> None:
        """Open one further session, and wait until it ends."""
        self._number += 1
        number = self._number
        try:
            conn = self._dial(lambda: self._control.open_carrier(number))
        finally:
            self._opening -= 1
        mux = Mux(conn, is_client=True)
        self._further[mux] = mux.heard_s
        try:
            if not self._is_over:
                self._use(mux, number)
                mux.wait_end()
        finally:
            since_s = self._further.pop(mux)
            if mux.heard_s == since_s and not self._is_over:
                self._note_failure(since_s)
            mux.close()

    # ---- whether connections are of use --------------------------------------------------------------------

    def _dial(self, dial: Callable[[], EventedConn]) -> EventedConn:
        """Return what `dial` opens; a failure slows further tries down.

        A success does not tell that the server has the connection: a firewall may be in between.
        """
        began_s = time.monotonic()
        try:
            return dial()
        except ConnError as exc:
            self._turns.note_failure(began_s, exc)
            raise

    def _note_failure(self, since_s: float) -> None:
        """The server has not taken a connection that was opened then."""
        self._turns.note_failure(since_s, DialError("the server did not take a data connection"))

    # ---- connections beside streams ------------------------------------------------------------------------

    def _bring(self, carrier: int, stream: Stream) -> None:
        """Begin to bring a connection beside a stream, unless that is under way."""
        key = carrier, stream.id
        if key not in self._besides and self._may_dial(USER_COSTS):
            self._besides[key] = stream, time.monotonic()
            self._bringing += 1
            self._crew.spawn(self._open_beside, *key, stream)

    def _open_beside(self, carrier: int, stream_id: int, stream: Stream) -> None:
        try:
            conn = self._dial(lambda: self._control.open_beside(f"{carrier}:{stream_id}"))
        finally:
            self._bringing -= 1
        # Else the stream has ended meanwhile, or `tend` would not give the connection up any more.
        if (carrier, stream_id) not in self._besides or not stream.attach(conn, is_ready=False):
            conn.close()

    def tend(self) -> None:
        """See which connections the server has taken, and give others up; to be called once a second."""
        now_s = time.monotonic()
        for key, (stream, since_s) in [*self._besides.items()]:
            if stream.beside is not None and stream.beside.is_ready:
                del self._besides[key]
                self._turns.note_success()
            elif now_s - since_s > READY_S or stream.closed:
                del self._besides[key]
                if stream.detach():
                    self._note_failure(since_s)
        for mux, since_s in self._further.items():
            if since_s and mux.heard_s > since_s:
                self._further[mux] = 0.0
                self._turns.note_success()

    @property
    def are_there(self) -> bool:
        """Whether there are further sessions."""
        return bool(self._further)

    # ---- the end -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let the further sessions end with their last streams, whose users stay."""
        self._is_over = True
        for mux in [*self._further]:
            mux.drain()

    def close(self) -> None:
        """End the further sessions with their streams."""
        self._is_over = True
        for mux in [*self._further]:
            mux.close()
