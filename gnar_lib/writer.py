"""Writes text to a stream in a thread of its own, so that a reader who stops holds nobody up.

Knows nothing of what is written. A stream that cannot be waited for in gevent's loop is the reason for the
thread: a pipe or a terminal can only be made non-blocking for all programs that have it open.
"""

from __future__ import annotations

import os
import sys
import time
from _queue import SimpleQueue  # not from `queue`: that one becomes gevent's, which knows no threads
from _thread import LockType
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, TextIO

MAX_WAITING_BYTES = 1 << 20  # of text that waits for the reader; what comes then is lost
BATCH_BYTES = 4096  # written in one piece, even where other programs write to the same pipe (PIPE_BUF)
RETRY_S = 0.05  # pause when a stream that another program has made non-blocking takes nothing
CLOSE_S = 1.0  # how long the end of the process waits for readers


def _lost_line(count: int) -> str:
    return f"{count} lines lost: they were not read in time\n"


class Writer:
    """Writes to a stream what `put` was given, in this order, until `close`.

    The thread starts with the first text. Texts are whole lines: those that come while `MAX_WAITING_BYTES`
    wait are lost, and where they are missing there is a line that `lost_line` makes of their number.
    `put` is for one thread, whose greenlets may share the writer.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost_line: Callable[[int], str] = _lost_line  # called in the thread
        # Below the locks of Python's buffers: a thread that is stuck there would hold them as Python ends.
        # What is no file, as in a test, has none.
        buffer: Any = stream.buffer
        self._file = getattr(buffer, "raw", buffer)
        # Text and `_lost` before it; a lock that `flush` waits for; or None: the end.
        self._queue: SimpleQueue[tuple[bytes, int] | LockType | None] = SimpleQueue()
        self._ended: Any = None  # a lock that the thread holds until it has ended; None: it has not started
        # Each number is changed by one thread alone, those about the queue's other end by the writer's.
        self._put_bytes = 0
        self._lost = 0
        self._taken_bytes = 0
        self._told = 0

    def put(self, text: str) -> None:
        """Have text written soon; never waits."""
        if self._ended is None and not self._start():
            self._write(self._encode(text))
            return
        data = self._encode(text)
        waiting = self.waiting_bytes
        if waiting and waiting + len(data) > MAX_WAITING_BYTES:
            self._lost += 1
            return
        self._put_bytes += len(data)
        self._queue.put((data, self._lost))

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of text wait, of which the thread has not begun to write any."""
        return self._put_bytes - self._taken_bytes

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written, but no longer than `timeout_s`; tell whether it is."""
        if self._ended is None:
            return True
        written: LockType = _original("_thread", "allocate_lock")()
        written.acquire()
        self._queue.put(written)
        return written.acquire(timeout=max(timeout_s, 0))

    def close(self, timeout_s: float) -> None:
        """Wait until everything is written, but no longer than `timeout_s`; `put` must not follow."""
        if self._ended is not None:
            self._queue.put(None)
            self._ended.acquire(timeout=max(timeout_s, 0))

    def _encode(self, text: str) -> bytes:
        return text.encode(self.stream.encoding or "utf-8", "backslashreplace")

    def _start(self) -> bool:
        """Start the thread; tell whether the system allows another one."""
        ended = _original("_thread", "allocate_lock")()
        ended.acquire()
        try:
            _original("_thread", "start_new_thread")(self._run, (ended,))
        except RuntimeError:
            return False
        self._ended = ended
        return True

    # ---- in the thread: nothing of gevent may be used ------------------------------------------------------

    def _run(self, ended: Any) -> None:
        for batch in self._batches():
            self._write(batch)
        ended.release()

    def _batches(self) -> Iterator[bytes]:
        """Yield what is put into the queue, several lines at a time when they are short."""
        batch = b""
        while True:
            if self._queue.empty():
                batch += self._notice(self._lost)
                if batch:
                    yield batch
                    batch = b""
            item = self._queue.get()
            if item is None:
                yield batch + self._notice(self._lost)
                return
            if not isinstance(item, tuple):
                yield batch
                batch = b""
                item.release()
                continue
            data, lost = item
            self._taken_bytes += len(data)
            data = self._notice(lost) + data
            if batch and len(batch) + len(data) > BATCH_BYTES:
                yield batch
                batch = b""
            batch += data

    def _notice(self, lost: int) -> bytes:
        """Return the line about texts that were lost since the last such line, if there are any."""
        count, self._told = lost - self._told, lost
        return self._encode(self.lost_line(count)) if count else b""

    def _write(self, data: bytes) -> None:
        """Write all of `data`, or drop the rest after an error: the reader has gone, or a disk is full."""
        rest = memoryview(data)
        with suppress(OSError, ValueError):
            while rest:
                count = self._file.write(rest)
                if count is None:
                    _original("time", "sleep")(RETRY_S)
                else:
                    rest = rest[count:]


def _original(module: str, name: str) -> Any:
    """Return what the standard library has under this name, also if gevent has patched it."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(import_module(module), name)


# ---- the writers of this process ---------------------------------------------------------------------------

_writers: list[Writer] = []
if hasattr(os, "register_at_fork"):  # a child has none of the threads
    os.register_at_fork(after_in_child=_writers.clear)


def writer_to(stream: TextIO) -> Writer:
    """Return the writer to a stream; streams that are the same file share one, which keeps their order."""
    for writer in _writers:
        if writer.stream is stream or _is_same_file(writer.stream, stream):
            return writer
    writer = Writer(stream)
    _writers.append(writer)
    return writer


def _is_same_file(one: TextIO, other: TextIO) -> bool:
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):  # what is no file, or closed
        return False


def close_all(timeout_s: float = CLOSE_S) -> None:
    """Wait until all writers have written everything, but no longer than `timeout_s`, and end them."""
    until_s = time.monotonic() + timeout_s
    while _writers:
        _writers.pop().close(until_s - time.monotonic())
