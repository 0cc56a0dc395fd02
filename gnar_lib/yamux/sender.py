"""The sending half of a session: frames of one turn leave in one system call; knows not what they mean.

Nothing here waits. What the socket does not take stays in one queue, in order. Bulk stays outside of it while
the socket is full, so that a frame of another stream is not behind megabytes of a download.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from gevent.hub import get_hub

from gnar_lib.errors import ConnError, GnarError, MuxError
from gnar_lib.net import SocketConn

UNSENT_BYTES = 128 * 1024  # what may wait in the socket itself (TCP_NOTSENT_LOWAT)
COPY_BYTES = 16 * 1024  # up to here copying a payload into the queue costs less than a system call of its own
SMALL_BYTES = 4 * 1024  # a frame of no more may pass others that wait
FULL_BYTES = 64 * 1024  # a queue that long is sent now, whatever else the turn brings; bulk waits behind it
SMALL_FULL_BYTES = 256 * 1024  # behind a queue that long, no frame passes
BULK_BYTES = 128 * 1024  # of one turn; then bulk waits for the next even if the socket has room
# Control frames always get in. A peer that makes us send so many and reads none of them is up to no good.
MAX_QUEUE_BYTES = 1 << 20


class Writer(Protocol):
    """A stream, as far as this module knows it."""

    def say(self) -> None:
        """Send the flags that no frame has carried yet."""

    def take_turn(self) -> None:
        """Send one frame: it is this stream's turn; runs in the hub."""


class Sender:
    """Sends the frames of one session; calls `fail` once a write fails, since half a frame may have left."""

    __slots__ = (
        "_bulk",
        "_conn",
        "_fail",
        "_frames",
        "_is_full",
        "_line",
        "_loop",
        "_queue",
        "_scheduled",
        "_send_now",
        "_silent",
        "_turn",
        "_was_lone",
        "corked",
        "epoch",
    )

    def __init__(self, conn: SocketConn, fail: Callable[[GnarError], None]) -> None:
        conn.limit_unsent(UNSENT_BYTES)
        self.corked = False  # more frames come, and then a `flush`
        self.epoch = 0  # how often the socket has had room after it had none
        self._conn = conn
        self._fail = fail
        self._send_now = conn.send_now
        self._loop = get_hub().loop
        self._queue = bytearray()
        self._is_full = False  # the socket took less than it was given
        self._scheduled = False
        self._line: deque[Writer] = deque()  # first come first served
        self._silent: list[Writer] = []
        self._turn = 0.0  # the loop's time, which is another one in each of its turns
        self._frames = 0  # of this turn
        self._bulk = 0  # bytes of this turn
        self._was_lone = True  # the turn before had one frame alone: this one may well be so, too

    def send(self, frame: bytes) -> None:
        """Send a whole frame, in this turn or as soon as the socket takes it."""
        if self._loop.now() != self._turn:
            self._begin_turn()
        self._frames += 1
        queue = self._queue
        if not queue and self._frames == 1 and self._was_lone and not self.corked:
            try:
                sent = self._send_now(frame)
            except ConnError as exc:
                self._fail(exc)
                return
            if sent < len(frame):
                queue += frame[sent:]
                self._wait_writable()
            return
        queue += frame
        if self._is_full:
            if len(queue) > MAX_QUEUE_BYTES:
                self._fail(MuxError(f"{len(queue)} bytes wait for a peer that does not read"))
        elif len(queue) >= FULL_BYTES:
            self.flush()
        else:
            self.schedule()

    def send_data(self, header: bytes, payload: bytes | memoryview) -> None:
        """Send a Data frame; a large payload is copied only as far as the socket does not take it now."""
        self._bulk += len(payload)
        if len(payload) <= COPY_BYTES:
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
        """Whether a Data frame may be sent now, or has to wait in line."""
        if self._loop.now() != self._turn:
            self._begin_turn()
        return not (self._is_full or self._line or self._bulk >= BULK_BYTES)

    def may_pass(self, count: int) -> bool:
        """Whether a Data frame with `count` bytes is so small that it may pass those in line.

        A stream does so once in an `epoch`: else bulk in small pieces would have the socket to itself.
        """
        return count <= SMALL_BYTES and len(self._queue) < SMALL_FULL_BYTES

    def line_up(self, writer: Writer) -> None:
        """Have `writer.take_turn` called when it is its turn to send a frame."""
        self._line.append(writer)
        self._wait_writable()

    def say_soon(self, writer: Writer) -> None:
        """Have `writer.say` called at the end of this turn, so that it need not when a frame comes first."""
        self._silent.append(writer)
        self.schedule()

    def schedule(self) -> None:
        """Flush at the end of this turn."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._flush_scheduled)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        silent, self._silent = self._silent, []
        for writer in silent:
            writer.say()
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

    def close(self) -> None:
        """Try once to send what waits; nothing is sent after that."""
        if self._queue and not self._conn.closed:
            with suppress(ConnError):  # it may have gone before us
                self._send_now(self._queue)
        self._fail = _ignore
        self._queue.clear()
        self._line.clear()
        self._silent.clear()

    def _flush_scheduled(self) -> None:
        self._scheduled = False
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
        """Go on where the socket was full, and then with those in line."""
        self._is_full = False
        self.epoch += 1
        self.flush()
        if not (self._is_full or self._conn.closed):
            self._conn.call_when_writable(None)
        # One of them gets its turn in any case: else those who pass could hold it up for ever.
        line = self._line
        self._begin_turn()
        if line and len(self._queue) < SMALL_FULL_BYTES:
            line.popleft().take_turn()
        while line and not self._is_full and self._bulk < BULK_BYTES:
            line.popleft().take_turn()
        if line:
            self._wait_writable()


def _ignore(_: GnarError) -> None:
    """Let a failure pass: the session has ended already."""
