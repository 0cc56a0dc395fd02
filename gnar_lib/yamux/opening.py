"""The streams that this end has opened, until the peer has accepted them.

A peer holds a limited number of streams that it has not accepted. Further ones are held here, without a word
to the peer. A stream that is not accepted in time is reset, so that nobody waits on it for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import takewhile

from gnar_lib.yamux.sender import Sender
from gnar_lib.yamux.stream import Stream

ACCEPT_BACKLOG = 256  # streams that the peer knows and has not accepted; hashicorp's number


class Opening:
    """The streams that this end of one session has opened and the peer has not accepted, the oldest first."""

    def __init__(self, sender: Sender, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._sender = sender
        self._call_soon = call_soon  # calls a function in the hub
        self._held: deque[Stream] = deque()  # opened and not announced, since the peer's backlog may be full
        self._announced: dict[int, Stream] = {}  # by id: those that the peer knows and has not accepted

    def __len__(self) -> int:
        return len(self._held) + len(self._announced)

    def add(self, stream: Stream) -> None:
        """Tell the peer of a new stream, now or as soon as its backlog has room."""
        if self._held or len(self._announced) >= ACCEPT_BACKLOG:
            self._held.append(stream)
        else:
            self._announce(stream)

    def accepted(self, stream_id: int) -> None:
        """The peer has accepted a stream, or the stream has ended before."""
        del self._announced[stream_id]
        while self._held and len(self._announced) < ACCEPT_BACKLOG:
            self._announce(self._held.popleft())

    def expire(self, before_s: float) -> None:
        """Reset the streams that were opened before that time (`time.monotonic`) and are not accepted."""
        for streams in (self._held, self._announced.values()):  # those that the peer need not hear of first
            for stream in [*takewhile(lambda stream: stream.since_s < before_s, streams)]:
                stream.break_off("the peer has not accepted the stream in time")

    def _announce(self, stream: Stream) -> None:
        """Tell the peer of a stream that has not ended meanwhile."""
        if stream.announce():
            self._announced[stream.id] = stream
            self._sender.send_flags_soon(stream)
            if stream.has_writer:
                self._call_soon(stream.wake)
