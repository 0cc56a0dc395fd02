"""Many streams over one conn: opens and accepts them, keeps the conn alive, and decides how it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import DeadlineError, GnarError, MuxError, ProtocolError
from gnar_lib.net import Crew, Sockaddr, SocketConn, wait_for
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

ACCEPT_BACKLOG = 256  # streams that nobody has accepted yet; hashicorp's number, for either end
MAX_HANDLED = 16 * 1024  # streams of the peer whose handlers run, also those that it has reset meanwhile
MAX_STORED_BYTES = 256 << 20  # in all streams, unread; past it, the one that holds the most is reset
KEEPALIVE_S = 30.0
KEEPALIVE_TIMEOUT_S = 10.0
_GO_AWAY_REASONS = {PROTOCOL_ERROR: "a protocol error", INTERNAL_ERROR: "an internal error"}


class Session:
    """Both roles of a session over a connected conn, which it owns from then on.

    It receives at once, unless `receives` is false: then from `receive` on. Streams of the peer wait for
    `serve` or `accept`, `ACCEPT_BACKLOG` of them; further ones are refused.
    """

    def __init__(self, conn: SocketConn, *, is_client: bool, receives: bool = True) -> None:
        self.closed = False
        self.error: GnarError | None = None  # why it ended; None too when we closed it
        self.path = Path()
        self.stored_bytes = 0  # of all streams, received and unread
        self.sender = Sender(conn, self._fail)
        self._conn = conn
        self._name = str(conn)
        self._loop = get_hub().loop
        self._next_id = 1 if is_client else 2
        self._peer_parity = 0 if is_client else 1
        self._streams: dict[int, Stream] = {}
        self._peer_gone_away = self._gone_away = False
        self._crew: Crew | None = None
        self._handle: Callable[[Stream], None] | None = None
        self._handled = 0
        self._held: deque[Stream] = deque()  # opened, and not announced: the peer's backlog could be full
        self._announced = 0  # opened and announced, but not accepted yet
        self._backlog: deque[Stream] = deque()
        self._acceptors: deque[greenlet] = deque()
        self._arrived: list[Stream] = []
        self._pings: dict[int, tuple[float, greenlet | None]] = {}
        self._next_ping = 0
        self._is_measuring = False
        self._enders: list[Callable[[], None]] = []
        self._receiver = Receiver(conn, self)
        self._keepalive = self._loop.timer(KEEPALIVE_S, KEEPALIVE_S)
        self._keepalive.start(self._keep_alive)
        # Repeating, since a timer of libev that does not is good for one start.
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
    def stream_count(self) -> int:
        """How many streams there are that either end has not ended."""
        return len(self._streams)

    @property
    def rtt_s(self) -> float:
        """The round trip time as it was last measured; 0 when it has not been yet."""
        return self.path.rtt_s

    @property
    def why_closed(self) -> str:
        """Why the session ended, in words."""
        return str(self.error).removeprefix(f"{self}: ") if self.error else "the session was closed"

    def receive(self) -> None:
        """Begin to receive: until then whoever made the session may read its conn."""
        self._receiver.start()

    # ---- streams -------------------------------------------------------------------------------------------

    def open(self) -> Stream:
        """Open a stream, without waiting for the peer: it may reset it.

        Raises `MuxError` when the session has ended, when the peer takes no more streams, or when all ids
        were used.
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
        """Accept from now on; `handle(stream)` runs in a greenlet of `crew`, owns it and may block."""
        self._crew, self._handle = crew, handle
        self._arrived, self._backlog = [*self._backlog, *self._arrived], deque()
        if self._arrived:
            self._loop.run_callback(self._hand_over)

    def accept(self) -> Stream:
        """Wait for a stream of the peer and return it; raises `MuxError` when the session has ended."""
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
        self.sender.say_soon(stream)
        return stream

    def go_away(self) -> None:
        """Take no further streams from the peer; those that are open go on."""
        if not (self.closed or self._gone_away):
            self._gone_away = True
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, NORMAL))

    # ---- round trips ---------------------------------------------------------------------------------------

    def ping(self) -> float:
        """Return the round trip time in seconds, once it is measured; `MuxError` when the session ends."""
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
        if not self.closed:  # by that very ping
            self._deadline.again(self._check_alive)

    def _check_alive(self) -> None:
        self._deadline.stop()
        if not self._receiver.has_heard:
            self._end(DeadlineError(f"the peer has not been heard from for {KEEPALIVE_TIMEOUT_S:g} s"))

    # ---- ending --------------------------------------------------------------------------------------------

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once in the hub when the session has ended, for whatever reason."""
        self._enders.append(callback)
        if self.closed:
            self._loop.run_callback(self._tell_end)

    def close(self) -> None:
        """Say that we go, and end the session with all its streams; in any state and more than once."""
        if not self.closed:
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, NORMAL))
            self._end(None)

    def abort(self) -> None:
        """End the session with all its streams, without a word."""
        self._end(None)

    def wait_end(self) -> None:
        """Wait until the session has ended."""
        if self.closed:
            return
        ended: Event = Event()
        self.on_end(ended.set)
        ended.wait()

    def _fail(self, exc: GnarError) -> None:
        """End the session for an error of the conn."""
        self._end(exc)

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
        """Wake everybody who waits for something that will not come."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.wake()
        for number in [*self._pings]:
            self._wake_pinger(number)
        while self._acceptors:
            self._acceptors.popleft().switch(self)
        enders, self._enders = self._enders, []
        for ender in enders:
            ender()

    # ---- for the streams -----------------------------------------------------------------------------------

    def forget(self, stream: Stream) -> None:
        """Forget a stream that has ended; frames that still come for it are ignored."""
        self._streams.pop(stream.id, None)

    def accepted(self) -> None:
        """Take note that a stream of ours does not wait in the peer's backlog any longer."""
        self._announced -= 1
        self._announce()

    def _announce(self) -> None:
        while self._held and self._announced < ACCEPT_BACKLOG:
            stream = self._held.popleft()
            if stream.announce():
                self._announced += 1
                self.sender.say_soon(stream)
                if stream.has_writer:
                    self.wake_soon(stream)

    def wake_soon(self, stream: Stream) -> None:
        """Wake whoever waits on a stream, in the hub."""
        self._loop.run_callback(stream.wake)

    def granted(self, update: bytes) -> None:
        """Send a window update, and measure the round trip again when the next one should rely on it."""
        if self.closed:
            return
        self.sender.send(update)
        if self.path.is_stale and not self._is_measuring:
            self._is_measuring = True
            self._send_ping(None)

    # ---- for the receiver ----------------------------------------------------------------------------------

    def stream_for(self, stream_id: int, flags: int) -> Stream | None:
        """Return the stream that a frame is for, a new one for SYN; None when the frame is to be ignored."""
        if not flags & SYN:
            return self._streams.get(stream_id)
        if stream_id & 1 != self._peer_parity or stream_id == SESSION_ID:
            raise ProtocolError(f"SYN for stream {stream_id}, which is not the peer's to open")
        if stream_id in self._streams:
            raise ProtocolError(f"SYN for stream {stream_id}, which exists")
        waiting = len(self._backlog) + len(self._arrived)
        is_full = self._handled + waiting >= MAX_HANDLED if self._handle else waiting >= ACCEPT_BACKLOG
        if self._gone_away or is_full:
            self.sender.send(pack(WINDOW_UPDATE, RST, stream_id, 0))
            return None
        stream = self._streams[stream_id] = Stream(self, stream_id, ACK)
        self._arrived.append(stream)
        return stream

    def get_ping(self, flags: int, number: int) -> None:
        """Answer a ping, or take the answer to one of ours."""
        if flags & SYN:
            self.sender.send(pack(PING, ACK, SESSION_ID, number))
            return
        if number in self._pings:
            began_s, waiter = self._pings[number]
            self._is_measuring = False
            self.path.measured(monotonic() - began_s)
            if waiter is None:
                del self._pings[number]
            else:
                self._loop.run_callback(self._wake_pinger, number)

    def _wake_pinger(self, number: int) -> None:
        _, waiter = self._pings.pop(number, (0.0, None))
        if waiter is not None:  # it may have given up since
            waiter.switch(self)

    def get_go_away(self, reason: int) -> None:
        """Open no more streams; a peer that goes because of an error ends the session."""
        if reason != NORMAL:
            raise MuxError(f"the peer ended the session: {_GO_AWAY_REASONS.get(reason, f'reason {reason}')}")
        self._peer_gone_away = True

    def after_frames(self, touched: list[Stream]) -> None:
        """Go through the streams for which frames came; runs in the hub."""
        for stream in touched:
            stream.is_touched = False
            stream.wake()
        if self._arrived:
            self._hand_over()
        if self.stored_bytes > MAX_STORED_BYTES:
            self._reset_fullest()

    def _reset_fullest(self) -> None:
        fullest = max(self._streams.values(), key=lambda stream: stream.stored_bytes, default=None)
        if fullest is None or not fullest.stored_bytes:  # it is in streams that both ends have ended
            self._end(MuxError(f"{self.stored_bytes} bytes of ended streams are still unread"))
        else:
            fullest.abort()

    def get_error(self, error: GnarError) -> None:
        """End the session for what the receiver came upon, and tell the peer when that is its fault."""
        if isinstance(error, ProtocolError) and not self.closed:
            self.sender.send(pack(GO_AWAY, 0, SESSION_ID, PROTOCOL_ERROR))
        self._end(error)

    def _hand_over(self) -> None:
        """Give new streams to those who take them; runs in the hub."""
        arrived, self._arrived = self._arrived, []
        if self._handle is None:
            self._backlog += arrived
            while self._acceptors and self._backlog:
                self._acceptors.popleft().switch(self)
            return
        assert self._crew is not None  # noqa: S101  (serve set both)
        for stream in arrived:
            if stream.is_reset:  # already, before anybody looked at it
                continue
            self.sender.say_soon(stream)
            self._handled += 1
            self._crew.enter(self._run, self._handle, stream)

    def _run(self, handle: Callable[[Stream], None], stream: Stream) -> None:
        try:
            handle(stream)
        finally:
            self._handled -= 1
