"""A session: opens and accepts streams over one conn, sends keep-alives, and decides how the session ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import DeadlineError, GnarError, MuxError, ProtocolError
from gnar_lib.net import Crew, EventedConn, Sockaddr, wait_for
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
from gnar_lib.yamux.receiver import Receiver
from gnar_lib.yamux.sender import Sender
from gnar_lib.yamux.stream import Stream
from gnar_lib.yamux.window import Path

ACCEPT_BACKLOG = 256  # streams that an end has opened and the other has not accepted; hashicorp's number
MAX_HANDLED = 16 * 1024  # streams of the peer whose handlers run, those included that the peer has reset
MAX_STORED_BYTES = 256 << 20  # unread in all streams together; past that, the stream with most is reset
KEEPALIVE_S = 30.0
KEEPALIVE_TIMEOUT_S = 10.0
_GO_AWAY_REASONS = {PROTOCOL_ERROR: "a protocol error", INTERNAL_ERROR: "an internal error"}


@dataclass(frozen=True, slots=True)
class _Handler:
    """What `serve` was given: `handle` runs in a greenlet of `crew` for each stream of the peer."""

    crew: Crew
    handle: Callable[[Stream], None]


class Session:
    """One end of a multiplexed session over a conn, which the session closes.

    If `receives` is false, the session reads nothing until `receive` is called. Streams of the peer wait for
    `serve` or `accept`; while `ACCEPT_BACKLOG` of them wait, further ones are refused.
    """

    def __init__(self, conn: EventedConn, *, is_client: bool, receives: bool = True) -> None:
        self.closed = False  # the session has ended, for whatever reason
        self.error: GnarError | None = None  # why the session ended; None if this end closed it
        self.path = Path()  # what the windows of all streams share
        self.stored_bytes = 0  # received and unread, in all streams
        self.sender = Sender(conn, self._end)  # sends the frames of the session and of all streams
        self._conn = conn  # closed by `_end`
        self._name = str(conn)  # how errors and log lines name this session
        self._loop = get_hub().loop
        self._next_id = 1 if is_client else 2  # the id of the next stream that this end opens
        self._peer_parity = 0 if is_client else 1  # the ids of the peer's streams are even (0) or odd (1)
        self._streams: dict[int, Stream] = {}  # by id; without those that both ends have ended
        self._peer_gone_away = False  # the peer takes no further streams
        self._gone_away = False  # this end takes no further streams
        self._handler: _Handler | None = None  # None until `serve` is called
        self._handled = 0  # streams of the peer whose handlers run
        self._held: deque[Stream] = deque()  # opened and not announced, since the peer's backlog may be full
        self._announced = 0  # streams of this end that the peer knows and has not accepted yet
        self._arrived: list[Stream] = []  # streams of the peer that the present read has opened
        self._backlog: deque[Stream] = deque()  # streams of the peer that wait for `serve` or `accept`
        self._acceptors: deque[greenlet] = deque()  # greenlets that wait in `accept`
        # By number: when the ping was sent, and who waits for the answer.
        self._pings: dict[int, tuple[float, greenlet | None]] = {}
        self._next_ping = 0  # the number of the next ping
        self._is_measuring = False  # a ping is on the way to measure the round trip
        self._ended = Event()  # set when everybody who waits on the session or on a stream was woken
        self._receiver = Receiver(conn, self)
        self._keepalive = self._loop.timer(KEEPALIVE_S, KEEPALIVE_S)
        self._keepalive.start(self._keep_alive)
        # Ends the session of a silent peer. The timer repeats, since `again` does not start others.
        self._deadline = self._loop.timer(KEEPALIVE_TIMEOUT_S, KEEPALIVE_TIMEOUT_S)
        if receives:
            self.receive()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._streams)} streams"
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

    def open(self) -> Stream:
        """Return a new stream without waiting for the peer, which may still refuse it by a reset.

        The caller closes the stream. Raises `MuxError` if the session has ended, if the peer takes no further
        streams, or if all ids have been used.
        """
        if self.closed:
            raise MuxError(f"{self}: {self.why_closed}")
        if self._peer_gone_away:
            raise MuxError(f"{self}: the peer takes no further streams")
        if self._next_id > MAX_STREAM_ID:
            raise MuxError(f"{self}: all stream ids of this session are used up")
        stream = self._streams[self._next_id] = Stream(self, self._next_id, SYN)
        self._next_id += 2
        self._held.append(stream)
        self._announce()
        return stream

    def serve(self, crew: Crew, handle: Callable[[Stream], None]) -> None:
        """Accept from now on; `handle(stream)` runs in a greenlet of `crew` and closes the stream."""
        self._handler = _Handler(crew, handle)
        self._arrived, self._backlog = [*self._backlog, *self._arrived], deque()
        if self._arrived:
            self._loop.run_callback(self._hand_over)

    def accept(self) -> Stream:
        """Wait for a stream of the peer and return it; raises `MuxError` if the session has ended."""
        current = getcurrent()
        while not self._backlog:
            if self.closed:
                raise MuxError(f"{self}: {self.why_closed}")
            self._acceptors.append(current)
            try:
                wait_for(self)
            finally:
                if current in self._acceptors:
                    self._acceptors.remove(current)
        stream = self._backlog.popleft()
        self.sender.send_flags_soon(stream)
        return stream

    def go_away(self) -> None:
        """Take no further streams from the peer; those that are open go on."""
        if not (self.closed or self._gone_away):
            self._gone_away = True
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, NORMAL))

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

    def _keep_alive(self) -> None:
        self._receiver.has_heard = False
        self._pings = {number: ping for number, ping in self._pings.items() if ping[1] is not None}
        self._send_ping(None)
        if not self.closed:  # sending the ping may have failed, which ends the session
            self._deadline.again(self._check_alive)

    def _check_alive(self) -> None:
        self._deadline.stop()
        if not self._receiver.has_heard:
            self._end(DeadlineError(f"the peer has not been heard from for {KEEPALIVE_TIMEOUT_S:g} s"))

    # ---- ending --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Tell the peer, and end the session with all its streams; in any state and more than once."""
        if not self.closed:
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, NORMAL))
            self._end(None)

    def abort(self) -> None:
        """End the session with all its streams without telling the peer."""
        self._end(None)

    def wait_end(self) -> None:
        """Wait until the session has ended, for whatever reason."""
        self._ended.wait()

    def _end(self, error: GnarError | None) -> None:
        if self.closed:
            return
        self.closed, self.error = True, error
        self.sender.close()
        self._conn.close()
        for timer in (self._keepalive, self._deadline):
            timer.stop()
            timer.close()
        self._loop.run_callback(self._tell_end)

    def _tell_end(self) -> None:
        """Wake everybody who waits for the session; runs in the hub."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.wake()
        for number in [*self._pings]:
            self._wake_pinger(number)
        while self._acceptors:
            self._acceptors.popleft().switch(self)
        self._ended.set()

    # ---- for the streams -----------------------------------------------------------------------------------

    def forget(self, stream_id: int) -> None:
        """Ignore frames for a stream that has ended."""
        self._streams.pop(stream_id, None)

    def on_accepted(self) -> None:
        """The peer has accepted a stream that this end opened, or the stream has ended before."""
        self._announced -= 1
        self._announce()

    def _announce(self) -> None:
        """Tell the peer of streams that this end has opened, as many as the peer's backlog holds."""
        while self._held and self._announced < ACCEPT_BACKLOG:
            stream = self._held.popleft()
            if stream.announce():
                self._announced += 1
                self.sender.send_flags_soon(stream)
                if stream.has_writer:
                    self.call_soon(stream.wake)

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

    def stream_for(self, stream_id: int, flags: int) -> Stream | None:
        """Return the stream to which a frame belongs, a new one for SYN; None to ignore the frame."""
        if not flags & SYN:
            return self._streams.get(stream_id)
        if stream_id & 1 != self._peer_parity or stream_id == SESSION_ID:
            raise ProtocolError(f"SYN for stream {stream_id}, which is not the peer's to open")
        if stream_id in self._streams:
            raise ProtocolError(f"SYN for stream {stream_id}, which exists")
        waiting = len(self._backlog) + len(self._arrived)
        is_full = self._handled + waiting >= MAX_HANDLED if self._handler else waiting >= ACCEPT_BACKLOG
        if self._gone_away or is_full:
            self.sender.send(pack(WINDOW_UPDATE, RST, stream_id, 0))
            return None
        stream = self._streams[stream_id] = Stream(self, stream_id, ACK)
        self._arrived.append(stream)
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
            stream.wake()
        if self._arrived:
            self._hand_over()
        if self.stored_bytes > MAX_STORED_BYTES:
            self._reset_fullest()

    def _reset_fullest(self) -> None:
        """Reset the stream with the most unread bytes, so that the process does not run out of memory."""
        fullest = max(self._streams.values(), key=lambda stream: stream.stored_bytes, default=None)
        if fullest is None or not fullest.stored_bytes:  # all bytes are in streams that both ends have ended
            self._end(MuxError(f"{self.stored_bytes} bytes of ended streams are still unread"))
        else:
            fullest.abort()

    def on_error(self, error: GnarError) -> None:
        """End the session, since the conn broke or ended, or since the peer broke the protocol."""
        if isinstance(error, ProtocolError) and not self.closed:
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, PROTOCOL_ERROR))
        self._end(error)

    def _hand_over(self) -> None:
        """Give the streams that have arrived to whoever accepts them; runs in the hub."""
        arrived, self._arrived = self._arrived, []
        handler = self._handler
        if handler is None:
            self._backlog += arrived
            while self._acceptors and self._backlog:
                self._acceptors.popleft().switch(self)
            return
        for stream in arrived:
            if stream.is_reset:  # the read that opened the stream has reset it, too
                continue
            self.sender.send_flags_soon(stream)
            self._handled += 1
            handler.crew.enter(self._run, handler.handle, stream)

    def _run(self, handle: Callable[[Stream], None], stream: Stream) -> None:
        try:
            handle(stream)
        finally:
            self._handled -= 1
