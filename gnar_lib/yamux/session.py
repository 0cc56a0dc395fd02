"""A session: opens and accepts streams over one conn, sends keep-alives, and decides how the session ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from time import monotonic
from typing import Any

from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import DeadlineError, GnarError, MuxError, ProtocolError
from gnar_lib.net import Crew, EventedConn, Sockaddr, wait_for
from gnar_lib.net.options import dead_after_s
from gnar_lib.net.rota import Rota
from gnar_lib.yamux.arrivals import Arrivals
from gnar_lib.yamux.frame import (
    ACK,
    GO_AWAY,
    INTERNAL_ERROR,
    MAX_STREAM_ID,
    NORMAL,
    PING,
    PROTOCOL_ERROR,
    RST,
    SESSION_ID,
    SYN,
    WINDOW_UPDATE,
    pack,
)
from gnar_lib.yamux.holdings import LOOK_EVERY_BYTES, holdings
from gnar_lib.yamux.opening import Opening
from gnar_lib.yamux.parting import part
from gnar_lib.yamux.receiver import Receiver
from gnar_lib.yamux.sender import Sender
from gnar_lib.yamux.stream import Stream
from gnar_lib.yamux.window import Path

MAX_HALF_GONE = 256  # streams that this end has closed and the peer has not ended; then the oldest is reset
MAX_STORED_BYTES = 256 << 20  # unread in all streams together; past that, the stream with most is reset
KEEPALIVE_S = 30.0  # between two looks; a peer that was silent for half of it is asked for an answer
SETTLE_S = 10.0  # within which a stream has to be claimed, or accepted by the peer
HALF_GONE_S = 60.0  # within which a peer has to end a stream that this end has closed
LOOK_EVERY_S = 1.0  # between two looks for streams that are late
WAKE_AT_ONCE = 64  # streams that are told of the end of the session in one turn
_GO_AWAY_REASONS = {PROTOCOL_ERROR: "a protocol error", INTERNAL_ERROR: "an internal error"}


def _ask_after_s() -> float:
    """Return the seconds between two looks at a session."""
    return min(KEEPALIVE_S, dead_after_s() / 4)


_rota = Rota(_ask_after_s)  # of all sessions: the process has one loop


class Session:
    """One end of a multiplexed session over a conn, which the session closes.

    If `receives` is false, the session reads nothing until `receive` is called. Streams of the peer wait for
    `serve` or `accept`, and have to be claimed by whoever serves them.
    """

    def __init__(self, conn: EventedConn, *, is_client: bool, receives: bool = True) -> None:
        self.closed = False  # the session has ended, for whatever reason
        self.error: GnarError | None = None  # why the session ended; None if this end closed it
        self.path = Path()  # what the windows of all streams share
        self.stored_bytes = 0  # received and unread, in all streams
        # hashicorp/yamux lets go of a reader at FIN before it keeps the bytes of the same frame.
        self.joins_end = False  # the peer is another: it takes FIN in one frame with bytes
        self.moves = False  # both ends have agreed that streams may go on over conns beside them
        self.bring: Callable[[Stream], None] | None = None  # begins to bring one, if this end can do that
        self.sender = Sender(conn, self._end)  # sends the frames of the session and of all streams
        self._conn = conn  # closed by `_end`
        self._name = str(conn)  # how errors and log lines name this session
        self._loop = get_hub().loop
        self._next_id = 1 if is_client else 2  # the id of the next stream that this end opens
        self._peer_parity = 0 if is_client else 1  # the ids of the peer's streams are even (0) or odd (1)
        self.streams: dict[int, Stream] = {}  # by id; without those that both ends have ended
        self._peer_gone_away = False  # the peer takes no further streams
        self._gone_away = False  # this end takes no further streams
        self._is_draining = False  # the session closes when its last stream ends
        self._arrivals = Arrivals(self)  # the peer's streams that nobody has claimed
        self._opening = Opening(self.sender, self.call_soon)  # those of this end, until they are accepted
        self._half_gone: dict[int, float] = {}  # closed by this end alone: id and time, the oldest first
        self._held_seen = 0  # what was held when all sessions were last counted
        # By number: when the ping was sent, and who waits for the answer.
        self._pings: dict[int, tuple[float, greenlet | None]] = {}
        self._next_ping = 0  # the number of the next ping
        self._is_measuring = False  # a ping is on the way to measure the round trip
        self.on_end: Callable[[], None] | None = None  # called in the hub when `wait_end` would return
        self._ended = Event()  # set when everybody who waits on the session or on a stream was woken
        self._receiver = Receiver(conn, self)
        _rota.add(self)
        # Calls `_settle`, while streams are unclaimed, wait to be accepted, or are half gone; else None.
        self._settler: Any = None
        self._teller: Any = None  # the timer for the next turn of `_tell_end`
        holdings.holders.add(self)
        if receives:
            self.receive()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.streams)} streams"
        return f"<Session {self} {state}>"

    def __str__(self) -> str:
        return self._name

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end."""
        return self._conn.getpeername()

    @property
    def why_closed(self) -> str:
        """Why the session has ended, in words."""
        return str(self.error).removeprefix(f"{self}: ") if self.error else "the session was closed"

    def receive(self) -> None:
        """Begin to receive: before that, whoever made the session may read its conn."""
        self._receiver.start()

    # ---- streams -------------------------------------------------------------------------------------------

    def open(self, first: bytes = b"") -> Stream:
        """Return a new stream without waiting for the peer, which may still refuse it by a reset.

        The `first` bytes leave with what is sent in the same turn of the loop, or at its end: they must not
        be more than a few.
        The caller closes the stream. Raises `MuxError` if the session has ended, if the peer takes no further
        streams, or if all ids have been used.
        """
        if self.closed:
            raise MuxError(f"{self}: {self.why_closed}")
        if self._peer_gone_away:
            raise MuxError(f"{self}: the peer takes no further streams")
        if self._next_id > MAX_STREAM_ID:
            raise MuxError(f"{self}: all stream ids of this session are used up")
        stream = self.streams[self._next_id] = Stream(self, self._next_id, SYN, first)
        self._next_id += 2
        self._opening.add(stream)
        self._settle_soon()
        return stream

    def stream(self, stream_id: int) -> Stream | None:
        """Return a stream that has not ended; None if there is none of that id."""
        return self.streams.get(stream_id)

    def serve(self, crew: Crew, handle: Callable[[Stream], None]) -> None:
        """Accept from now on.

        `handle(stream)` runs in a greenlet of `crew` once the first bytes of a stream are there. It claims
        the stream when it knows what the stream is for, and closes it.
        """
        self._arrivals.serve(crew, handle)

    def accept(self) -> Stream:
        """Wait for a stream of the peer and claim it; raises `MuxError` if the session has ended."""
        return self._arrivals.accept()

    def go_away(self) -> None:
        """Take no further streams from the peer; those that are open go on."""
        if not (self.closed or self._gone_away):
            self._gone_away = True
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, NORMAL))

    def drain(self) -> None:
        """Take no further streams, and close the session when the last one has ended."""
        self.go_away()
        self._is_draining = True
        if not self.streams:
            self.close()

    # ---- round trips ---------------------------------------------------------------------------------------

    def ping(self) -> float:
        """Measure the round trip time and return it in seconds; raises `MuxError` if the session ends."""
        if self.closed:
            raise MuxError(f"{self}: {self.why_closed}")
        number = self._send_ping(getcurrent())
        try:
            wait_for(self)
        finally:
            self._pings.pop(number, None)
        if self.closed:
            raise MuxError(f"{self}: {self.why_closed}")
        return self.path.rtt_s

    def _send_ping(self, waiter: greenlet | None) -> int:
        number = self._next_ping
        self._next_ping = (number + 1) & 0xFFFFFFFF
        self._pings[number] = monotonic(), waiter
        self.sender.send(pack(PING, SYN, SESSION_ID, number))
        return number

    @property
    def heard_s(self) -> float:
        """When any byte last came from the peer, as `time.monotonic` says."""
        return self._receiver.heard_s

    def tick(self, now_s: float) -> None:
        """Ask a peer that has been silent for an answer, and give up one that is silent for too long."""
        self._pings = {number: ping for number, ping in self._pings.items() if ping[1] is not None}
        self._is_measuring = False
        silent_s = now_s - max(self.heard_s, _rota.resumed_s)
        if silent_s > dead_after_s():
            self._end(DeadlineError(f"the peer has not been heard from for {silent_s:.0f} s"))
        elif silent_s > _ask_after_s() / 2:
            self._send_ping(None)

    # ---- ending --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Tell the peer, and end the session with all its streams; in any state and more than once."""
        if not self.closed:
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, NORMAL))
            self._end(None, is_orderly=monotonic() - self.heard_s < _ask_after_s())

    def abort(self) -> None:
        """End the session with all its streams without telling the peer."""
        self._end(None)

    def wait_end(self) -> None:
        """Wait until the session has ended, for whatever reason."""
        self._ended.wait()

    def _end(self, error: GnarError | None, *, is_orderly: bool = False) -> None:
        """End the session; `is_orderly`: a peer that is there gets all that was sent."""
        if self.closed:
            return
        self.closed, self.error = True, error
        rest = self.sender.close()
        if is_orderly and not self._conn.closed:
            part(self._conn, rest)
        else:
            self._conn.close()
        holdings.holders.discard(self)
        _rota.discard(self)
        self._stop_settling()
        self._loop.run_callback(self._tell_end)

    def _tell_end(self) -> None:
        """Wake everybody who waits for the session, some in each turn of the loop; runs in the hub."""
        for _ in range(min(WAKE_AT_ONCE, len(self.streams))):
            self.streams.popitem()[1].wake()
        if self.streams:
            self._teller = self._loop.timer(0.0)
            self._teller.start(self._tell_end)
            return
        self._teller = None
        self._half_gone.clear()
        for number in [*self._pings]:
            self._wake_pinger(number)
        self._arrivals.end()
        self.path.close()
        self._ended.set()
        if (on_end := self.on_end) is not None:
            self.on_end = None
            on_end()

    # ---- for the streams -----------------------------------------------------------------------------------

    def forget(self, stream_id: int, *, is_new: bool) -> None:
        """Ignore frames for a stream that has ended; `is_new` if nobody serves it yet."""
        self.streams.pop(stream_id, None)
        if self._half_gone:
            self._half_gone.pop(stream_id, None)
        if is_new:
            self._arrivals.forget(stream_id)
        if self._is_draining and not self.streams:
            self.call_soon(self.close)

    def on_accepted(self, stream_id: int) -> None:
        """The peer has accepted a stream that this end opened, or the stream has ended before."""
        self._opening.accepted(stream_id)

    def on_half_gone(self, stream_id: int) -> None:
        """This end has closed a stream that the peer has not ended."""
        if self.closed:
            return
        self._half_gone[stream_id] = monotonic()
        if len(self._half_gone) > MAX_HALF_GONE:
            self._reset_half_gone(next(iter(self._half_gone)))
        self._settle_soon()

    def _reset_half_gone(self, stream_id: int) -> None:
        self.streams[stream_id].break_off("the peer has not ended the stream")

    def on_claimed(self, stream_id: int) -> None:
        """A stream of the peer has said what it is for."""
        self._arrivals.claim(stream_id)

    def _settle_soon(self) -> None:
        """See to it that a stream is claimed, accepted or ended in time."""
        if self._settler is None:
            self._settler = self._loop.timer(LOOK_EVERY_S, LOOK_EVERY_S)
            self._settler.start(self._settle)

    def _settle(self) -> None:
        now_s = monotonic()
        self._arrivals.expire(now_s - SETTLE_S)
        self._opening.expire(now_s - SETTLE_S)
        for each in [*takewhile(lambda each: self._half_gone[each] < now_s - HALF_GONE_S, self._half_gone)]:
            self._reset_half_gone(each)
        if not (len(self._arrivals) or len(self._opening) or self._half_gone):
            self._stop_settling()

    def _stop_settling(self) -> None:
        if self._settler is not None:  # else the session has ended meanwhile
            self._settler.stop()
            self._settler = None

    def bring_beside(self, stream_id: int) -> bool:
        """Begin to bring a conn beside a stream; False if this end cannot bring any."""
        stream = self.streams.get(stream_id)
        if self.bring is None or stream is None:
            return False
        self.bring(stream)
        return True

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the hub."""
        self._loop.run_callback(callback)

    def send_window_update(self, frame: bytes) -> None:
        """Send a WindowUpdate `frame`; measure the round trip if no recent measurement is known."""
        if self.closed:
            return
        self.sender.send(frame)
        if self.path.is_stale and not self._is_measuring:
            self._is_measuring = True
            self._send_ping(None)

    # ---- for the receiver ----------------------------------------------------------------------------------

    def stream_for_syn(self, stream_id: int) -> Stream | None:
        """Return a new stream, which a frame with SYN opens; None to ignore the frame."""
        if stream_id & 1 != self._peer_parity or stream_id == SESSION_ID:
            raise ProtocolError(f"SYN for stream {stream_id}, which is not the peer's to open")
        if stream_id in self.streams:
            raise ProtocolError(f"SYN for stream {stream_id}, which exists")
        if self._gone_away or self._arrivals.is_full:
            self.sender.send(pack(WINDOW_UPDATE, RST, stream_id, 0))
            return None
        stream = self.streams[stream_id] = Stream(self, stream_id, ACK)
        self._arrivals.add(stream)
        self._settle_soon()
        return stream

    def on_ping(self, flags: int, number: int) -> None:
        """A Ping frame has come: answer the peer's question, or note the answer to a ping of this end."""
        if flags & SYN:
            self.sender.send(pack(PING, ACK, SESSION_ID, number))
            return
        if number in self._pings:
            began_s, waiter = self._pings[number]
            self._is_measuring = False
            self.path.set_rtt(monotonic() - began_s)
            if waiter is None:
                del self._pings[number]
            else:
                self._loop.run_callback(self._wake_pinger, number)

    def _wake_pinger(self, number: int) -> None:
        _, waiter = self._pings.pop(number, (0.0, None))
        if waiter is not None:  # the greenlet may have given up meanwhile
            waiter.switch(self)

    def on_go_away(self, reason: int) -> None:
        """A GoAway frame has come: open no further streams. Raises `MuxError` if the reason is an error."""
        if reason != NORMAL:
            raise MuxError(f"the peer ended the session: {_GO_AWAY_REASONS.get(reason, f'reason {reason}')}")
        self._peer_gone_away = True

    def after_frames(self, touched: list[Stream]) -> None:
        """All frames of one read have been handled: wake the greenlets that wait on the `touched` streams."""
        for stream in touched:
            stream.is_touched = False
            if stream.is_new:
                self._arrivals.advance(stream)
            else:
                stream.wake()
        if self.stored_bytes > MAX_STORED_BYTES:
            self._reset_fullest()
        held_bytes = self.held_bytes
        if held_bytes > self._held_seen + LOOK_EVERY_BYTES:
            self._held_seen = held_bytes
            holdings.look()
        elif held_bytes < self._held_seen:
            self._held_seen = held_bytes

    @property
    def held_bytes(self) -> int:
        """What is kept for the peer: bytes that nobody has read, and frames that the peer does not take."""
        return self.stored_bytes + self.sender.queued_bytes

    def shed(self) -> None:
        """Hold less, since all sessions together hold too much."""
        if self.sender.queued_bytes > self.stored_bytes:
            self._end(MuxError(f"{self.sender.queued_bytes} bytes wait for a peer that does not read"))
        else:
            self._reset_fullest()

    def _reset_fullest(self) -> None:
        """Reset the stream with the most unread bytes, so that the process does not run out of memory."""
        fullest = max(self.streams.values(), key=lambda stream: stream.stored_bytes, default=None)
        if fullest is None or not fullest.stored_bytes:  # all bytes are in streams that both ends have ended
            self._end(MuxError(f"{self.stored_bytes} bytes of ended streams are still unread"))
        else:
            fullest.break_off("this end runs out of memory")

    def on_error(self, error: GnarError) -> None:
        """End the session, since the conn broke or ended, or since the peer broke the protocol."""
        if isinstance(error, ProtocolError) and not self.closed:
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, PROTOCOL_ERROR))
        self._end(error)
