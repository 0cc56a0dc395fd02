"""The streams that the peer has opened, from their first frame until whoever serves them has claimed them.

Opening costs a peer twelve bytes. So a stream costs this end little more before its first bytes have come:
no greenlet and no timer. A stream that is not claimed in time is reset, as is one too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import MuxError
from gnar_lib.net import Crew, wait_for
from gnar_lib.yamux.holdings import holdings
from gnar_lib.yamux.stream import Stream

MAX_UNCLAIMED = 256  # the backlog of hashicorp/yamux has the same size
MAX_HANDLED = 16 * 1024  # streams whose handlers run, those included that the peer has reset
# Within which a stream is acknowledged: mostly its first answer comes before, and needs no frame beside it.
ACK_AFTER_S = 0.04
MAX_UNACKNOWLEDGED = 64  # a peer may have 256 in its backlog, and open no more until some are acknowledged


class Host(Protocol):
    """What the arrivals need of their session."""

    closed: bool  # the session has ended

    @property
    def why_closed(self) -> str:
        """Why the session has ended, in words."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the hub."""


@dataclass(frozen=True, slots=True)
class _Handler:
    """What `serve` was given: `handle` runs in a greenlet of `crew` for each stream."""

    crew: Crew
    handle: Callable[[Stream], None]


class Arrivals:
    """The peer's streams of one session that nobody has claimed, in the order in which they came."""

    def __init__(self, session: Host) -> None:
        self._session = session
        self._unclaimed: dict[int, Stream] = {}  # by id; the oldest first
        self._handled = 0  # streams whose handlers run
        self._handler: _Handler | None = None  # None until `serve` is called
        self._acceptors: deque[greenlet] = deque()  # greenlets that wait in `accept`
        self._unacknowledged: list[Stream] = []  # those that the peer may not know to be taken
        self._acknowledger: Any = None  # the timer that calls `_acknowledge`

    def __len__(self) -> int:
        return len(self._unclaimed)

    @property
    def is_full(self) -> bool:
        """Whether one more stream of the peer has to be refused."""
        too_many = len(self._unclaimed) >= MAX_UNCLAIMED or self._handled >= MAX_HANDLED
        return too_many or not holdings.takes_streams

    # ---- for the receiver, in the hub ----------------------------------------------------------------------

    def add(self, stream: Stream) -> None:
        """Keep a stream whose first frame has begun to come."""
        stream.is_new = True
        self._unclaimed[stream.id] = stream
        holdings.streams += 1

    def advance(self, stream: Stream) -> None:
        """Frames have come for a stream that nobody serves yet: hand it over if it has brought anything."""
        if self._handler is None:
            if self._acceptors:
                self._acceptors.popleft().switch(self)
        elif stream.is_readable:
            self._start(self._handler, stream)

    def forget(self, stream_id: int) -> None:
        """A stream has ended: if nobody serves it yet, nobody will."""
        stream = self._unclaimed.get(stream_id)
        if stream is not None and stream.is_new:
            self._take(stream)
            stream.abort()  # which forgets what the peer has sent on it

    def _take(self, stream: Stream) -> None:
        """Remove a stream that nobody serves yet."""
        stream.is_new = False
        holdings.streams -= 1
        del self._unclaimed[stream.id]

    def expire(self, before_s: float) -> None:
        """Reset the streams that came before that time (`time.monotonic`) and are unclaimed."""
        late = [*takewhile(lambda stream: stream.since_s < before_s, self._unclaimed.values())]
        for stream in late:
            stream.break_off("the first message of the stream took too long")
            self._unclaimed.pop(stream.id, None)

    def end(self) -> None:
        """The session has ended: wake all who wait for a stream, and forget those that nobody serves."""
        for stream_id in [*self._unclaimed]:
            self.forget(stream_id)
        while self._acceptors:
            self._acceptors.popleft().switch(self)
        self._unacknowledged.clear()
        if self._acknowledger is not None:
            self._acknowledger.close()
            self._acknowledger = None

    # ---- for whoever serves the streams --------------------------------------------------------------------

    def serve(self, crew: Crew, handle: Callable[[Stream], None]) -> None:
        """Have `handle(stream)` run in a greenlet of `crew` once the first bytes of a stream are there."""
        self._handler = _Handler(crew, handle)
        self._session.call_soon(self._advance_all)

    def _advance_all(self) -> None:
        for stream in [*self._unclaimed.values()]:
            if stream.is_new:  # the end of one may have ended all
                self.advance(stream)

    def _start(self, handler: _Handler, stream: Stream) -> None:
        stream.is_new = False
        self._acknowledge_soon(stream)
        self._handled += 1
        handler.crew.enter(self._run, handler.handle, stream)

    def _run(self, handle: Callable[[Stream], None], stream: Stream) -> None:
        try:
            handle(stream)
        finally:
            self._handled -= 1
            holdings.streams -= 1
            self._unclaimed.pop(stream.id, None)

    def claim(self, stream_id: int) -> None:
        """Take note that a stream has said what it is for."""
        self._unclaimed.pop(stream_id, None)

    def accept(self) -> Stream:
        """Wait for a stream and claim it; raises `MuxError` if the session has ended. In place of `serve`."""
        session, current = self._session, getcurrent()
        while not self._unclaimed:
            if session.closed:
                raise MuxError(f"{session}: {session.why_closed}")
            self._acceptors.append(current)
            try:
                wait_for(self)
            finally:
                if current in self._acceptors:
                    self._acceptors.remove(current)
        stream = next(iter(self._unclaimed.values()))
        self._take(stream)
        self._acknowledge_soon(stream)
        return stream

    def _acknowledge_soon(self, stream: Stream) -> None:
        """Tell the peer in a while that the stream has been taken, unless a frame has said so before."""
        self._unacknowledged.append(stream)
        if len(self._unacknowledged) >= MAX_UNACKNOWLEDGED:
            self._acknowledge()
        elif self._acknowledger is None:
            self._acknowledger = get_hub().loop.timer(ACK_AFTER_S)
            self._acknowledger.start(self._acknowledge)

    def _acknowledge(self) -> None:
        streams, self._unacknowledged = self._unacknowledged, []
        for stream in streams:
            stream.send_flags()
        if self._acknowledger is not None:
            self._acknowledger.close()
            self._acknowledger = None
