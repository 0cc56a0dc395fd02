"""The sending half of a session: sends a few frames of one turn of the loop in one system call.

The sender does not know what a frame means, and never waits. Bytes that the conn does not take stay in one
queue, in order. Streams with much to send wait in line while the conn is full, so that the frame of another
stream is not behind megabytes of a download.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from gevent.hub import get_hub

from gnar_lib.errors import ConnError, GnarError, MuxError
from gnar_lib.net import EventedConn

UNSENT_BYTES = 128 * 1024  # that may wait in the socket itself (TCP_NOTSENT_LOWAT)
COPY_BYTES = 16 * 1024  # up to this size, copying a payload into the queue costs less than a system call
SMALL_BYTES = 4 * 1024  # up to this size, a Data frame may overtake the streams that wait in line
FULL_BYTES = 64 * 1024  # a queue of this size is sent at once, and not at the end of the turn
# So many frames leave together. With more of them the peer would have nothing to do until the end of the
# turn, and this end nothing while the peer works: both would take turns on two processors.
FRAMES_AT_ONCE = 4
SMALL_FULL_BYTES = 256 * 1024  # behind a queue of this size even small frames wait in line
BULK_BYTES = 128 * 1024  # after so much payload in one turn, streams wait in line even if the conn has room
# Frames without data are always queued. A peer that causes so many of them and reads none is hostile.
MAX_QUEUE_BYTES = 1 << 20


class Writer(Protocol):
    """What the sender needs of a stream."""

    def send_flags(self) -> None:
        """Send the flags of this stream that no frame has carried yet."""

    def on_first_in_line(self) -> None:
        """The stream is the first in line: it may send one Data frame now. Runs in the hub."""


class Sender:
    """Sends the frames of one session. Calls `fail` when a write fails: half a frame may have been sent."""

    __slots__ = (
        "_bulk",
        "_conn",
        "_fail",
        "_frames",
        "_is_full",
        "_line",
        "_loop",
        "_owing_flags",
        "_queue",
        "_send_now",
        "_turn",
        "_was_lone",
        "_will_flush",
        "corked",
        "epoch",
    )

    def __init__(self, conn: EventedConn, fail: Callable[[GnarError], None]) -> None:
        conn.limit_unsent(UNSENT_BYTES)
        self.corked = False  # True while more frames are to come, with a `flush` behind them
        self.epoch = 0  # how often the conn has had room again after it was full
        self._conn = conn  # belongs to the session, which closes it
        self._fail = fail  # ends the session
        self._send_now = conn.send_now  # looked up once: every frame passes here
        self._loop = get_hub().loop
        self._queue = bytearray()  # frames in order; a part of the first may have been sent
        self._is_full = False  # the conn took fewer bytes than it was given, and is not writable yet
        self._will_flush = False  # `flush` is going to be called at the end of this turn
        self._line: deque[Writer] = deque()  # streams that wait to send, first come first served
        self._owing_flags: list[Writer] = []  # streams with flags that no frame has carried yet
        self._turn = 0.0  # the loop's time, which differs from turn to turn
        self._frames = 0  # sent in this turn
        self._bulk = 0  # bytes of payload sent in this turn
        self._was_lone = True  # the turn before had at most one frame, so this turn probably has one, too

    @property
    def queued_bytes(self) -> int:
        """How many bytes of frames the conn has not taken."""
        return len(self._queue)

    def send(self, frame: bytes) -> None:
        """Send a whole frame, in this turn or as soon as the conn takes it."""
        queue = self._queue
        if not self.corked:
            if self._loop.now() != self._turn:
                self._begin_turn()
            self._frames += 1
            if self._frames == 1 and self._was_lone and not queue and not self._is_full:
                self._send_lone(frame)
                return
        queue += frame
        if self._is_full:
            if len(queue) > MAX_QUEUE_BYTES:
                self._fail(MuxError(f"{len(queue)} bytes wait for a peer that does not read"))
        elif len(queue) >= FULL_BYTES or not (self.corked or self._frames % FRAMES_AT_ONCE):
            self.flush()
        elif not (self.corked or self._will_flush):
            self.flush_soon()

    def _send_lone(self, frame: bytes) -> None:
        """Send the only frame of this turn, as it seems, without delay."""
        try:
            sent = self._send_now(frame)
        except ConnError as exc:
            self._fail(exc)
            return
        if sent < len(frame):
            self._queue += frame[sent:]
            self._wait_writable()

    def send_data(self, header: bytes, payload: bytes | bytearray | memoryview) -> None:
        """Send a Data frame; of a large payload, only what the conn does not take now is copied."""
        size = len(payload)
        self._bulk += size
        if size <= COPY_BYTES:
            self.send(b"".join((header, payload)))
            return
        queue = self._queue
        if self._is_full:
            queue += header
            queue += payload
            return
        try:
            sent = self._conn.sendmsg_now([queue, header, payload] if queue else [header, payload])
        except ConnError as exc:
            self._fail(exc)
            return
        waited = len(queue)
        if sent == waited + len(header) + len(payload):
            queue.clear()
            return
        if sent < waited + len(header):
            queue += header
            queue += payload
            del queue[:sent]
        else:
            queue.clear()
            queue += memoryview(payload)[sent - waited - len(header) :]
        self._wait_writable()

    def has_room(self) -> bool:
        """Tell whether a Data frame may be sent now; otherwise the stream has to wait in line."""
        if self._loop.now() != self._turn:
            self._begin_turn()
        return not (self._is_full or self._line or self._bulk >= BULK_BYTES)

    def may_overtake(self, count: int) -> bool:
        """Tell whether a Data frame with `count` bytes is small enough to overtake the streams in line.

        A stream may overtake once in each `epoch`: bulk in small pieces must not keep the others waiting.
        """
        return count <= SMALL_BYTES and len(self._queue) < SMALL_FULL_BYTES

    def wait_in_line(self, writer: Writer) -> None:
        """Put `writer` at the end of the line; `writer.on_first_in_line` is called in the hub."""
        self._line.append(writer)
        self._wait_writable()

    def send_flags_soon(self, writer: Writer) -> None:
        """Have `writer.send_flags` called at the end of this turn, unless a frame carries them before."""
        self._owing_flags.append(writer)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Flush at the end of this turn of the loop."""
        if not self._will_flush:
            self._will_flush = True
            self._loop.run_callback(self._flush_at_end_of_turn)

    def flush(self) -> None:
        """Send what is queued, as far as the conn takes it."""
        writers, self._owing_flags = self._owing_flags, []
        for writer in writers:
            writer.send_flags()
        queue = self._queue
        if not queue or self._is_full:
            return
        try:
            sent = self._send_now(queue)
        except ConnError as exc:
            self._fail(exc)
            return
        if sent == len(queue):
            queue.clear()
        else:
            del queue[:sent]
            self._wait_writable()

    def close(self) -> bytes:
        """Try once to send what is queued, and nothing after that; return what the conn does not take."""
        if self._queue and not self._conn.closed:
            with suppress(ConnError):  # the peer may have gone already
                del self._queue[: self._send_now(self._queue)]
        rest = bytes(self._queue)
        self._fail = _ignore
        self._is_full, self._send_now = True, _take_nothing  # the conn gets nothing more from here
        self._queue.clear()
        self._line.clear()
        self._owing_flags.clear()
        return rest

    def _flush_at_end_of_turn(self) -> None:
        self._will_flush = False
        if not self._conn.closed:
            self.flush()

    def _begin_turn(self) -> None:
        self._was_lone = self._frames <= 1
        self._turn = self._loop.now()
        self._frames = self._bulk = 0

    def _wait_writable(self) -> None:
        if not self._is_full:
            self._is_full = True
            self._conn.call_when_writable(self._on_writable)

    def _on_writable(self) -> None:
        """Send what is queued, then let the streams in line send while the conn has room; runs in the hub."""
        self._is_full = False
        self.epoch += 1
        self.flush()
        if not (self._is_full or self._conn.closed):
            self._conn.call_when_writable(None)
        # The first stream in line sends in any case: small frames of others must not hold it up for ever.
        line = self._line
        self._begin_turn()
        if line and len(self._queue) < SMALL_FULL_BYTES:
            line.popleft().on_first_in_line()
        while line and not self._is_full and self._bulk < BULK_BYTES:
            line.popleft().on_first_in_line()
        if line:
            self._wait_writable()


def _take_nothing(data: bytes | bytearray | memoryview) -> int:  # noqa: ARG001
    """Stand for a conn that takes no byte."""
    return 0


def _ignore(_: GnarError) -> None:
    """Ignore a failed write: the session has ended already."""
