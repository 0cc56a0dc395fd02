"""Copies one direction of bulk between two plain sockets through a pipe: no byte enters Python (Linux)."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from typing import ClassVar

from gevent import monkey

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, WriteError
from gnar_lib.net import SocketConn, descriptors, give_way
from gnar_lib.pio.flow import Flow

PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)
# Past a user's share of pipe memory Linux gives 8 KiB. Copying through memory is faster than so small a pipe.
MIN_PIPE_BYTES = 256 * 1024
SPARE_PIPES = 16  # that are kept for the next bulk transfers
SMALL_BYTES = 16 * 1024
SMALL_IN_A_ROW = 64  # after so many small moves the bulk is over, and others need the pipe more

if sys.platform != "linux":
    raise ImportError("only Linux has splice")

_FLAGS: int = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if hasattr(os, "splice") else 0
# How gVisor, old kernels and filters for system calls refuse; a conn that broke has other errors.
_REFUSALS = {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP}

_close = monkey.get_original("os", "close")  # the patched one of gevent closes in the loop's next turn

_log = logger.get("proxy")
_spare: list[Pipe] = []


class Pipe:
    """An empty, enlarged, non-blocking pipe; whoever takes one calls `keep`, or `discard` after an error."""

    __slots__ = ("reader", "size", "writer")
    can_splice: ClassVar[bool] = hasattr(os, "splice")  # no longer once the system has refused to

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.size = 0
        descriptors.taken += 2

    @classmethod
    def take(cls) -> Pipe | None:
        """Return an empty pipe; None if the system gives none of a useful size, or cannot splice."""
        if not cls.can_splice:
            return None
        if _spare:
            return _spare.pop()
        if not descriptors.has_room(2):
            return None
        try:
            pipe = cls()
        except OSError:  # no descriptors left
            return None
        if pipe.size >= MIN_PIPE_BYTES:
            return pipe
        pipe.discard()
        return None

    def keep(self) -> None:
        """Give an empty pipe back, for the next transfer."""
        if self.can_splice and len(_spare) < SPARE_PIPES:
            _spare.append(self)
        else:
            self.discard()

    def discard(self) -> None:
        """Close both ends."""
        _close(self.reader)
        _close(self.writer)
        descriptors.taken -= 2


def copy_spliced(src: SocketConn, dst: SocketConn, flow: Flow, pipe: Pipe) -> bool:
    """Copy through `pipe` until `src` has ended (returns True), or until the bulk is over (returns False).

    Returns False, too, when the system refuses to splice, from which on `Pipe.take` returns none. The pipe is
    empty afterwards, but not after an error. Raises `ConnError`.
    """
    small = 0
    while small < SMALL_IN_A_ROW:
        count = _fill(src, pipe, pipe.size)
        if count is None:
            return False
        if not count:
            return True
        flow.bytes += count
        small = small + 1 if count < SMALL_BYTES else 0
        _drain(dst, flow, pipe, count)
        if count >= SMALL_BYTES:
            give_way()  # nothing here ever waits while both ends keep up
    return False


def splice_length(src: SocketConn, dst: SocketConn, count: int, flow: Flow, pipe: Pipe) -> int:
    """Copy `count` bytes through `pipe`, and return how many are left: some if the bulk is over before.

    So it is, too, when the system refuses to splice. Raises `ConnClosed` if `src` ends before, or another
    `ConnError`. The pipe is empty afterwards, but not after an error.
    """
    small = 0
    while count and small < SMALL_IN_A_ROW:
        moved = _fill(src, pipe, min(pipe.size, count))
        if moved is None:
            break
        if not moved:
            raise ConnClosed(f"{src}: ended within a body")
        count -= moved
        flow.bytes += moved
        small = small + 1 if moved < SMALL_BYTES else 0
        _drain(dst, flow, pipe, moved)
        if moved >= SMALL_BYTES:
            give_way()  # as above
    return count


def _fill(src: SocketConn, pipe: Pipe, size: int) -> int | None:
    """Move at most `size` bytes from the socket into the empty pipe; return how many, 0 at the end.

    Returns None, and has moved nothing, when the system refuses to splice.
    """
    while Pipe.can_splice:
        try:
            return os.splice(src.fileno(), pipe.writer, size, flags=_FLAGS)
        except BlockingIOError:
            src.wait_readable()
        except OSError as exc:
            if not _is_refused(exc):
                raise ConnClosed(_why_failed(src, exc)) from exc
    return None


def _drain(dst: SocketConn, flow: Flow, pipe: Pipe, count: int) -> None:
    """Move the `count` bytes in the pipe into the socket, as fast as the socket and the limit allow."""
    limit = flow.limit
    while count:
        granted = count if limit is None else limit.take(count)
        count -= granted
        while granted:
            move = _empty if Pipe.can_splice else _empty_by_copying
            granted -= move(dst, pipe, granted)


def _empty(dst: SocketConn, pipe: Pipe, count: int) -> int:
    """Move at most `count` bytes from the pipe into the socket; return how many, 0 if the system refuses."""
    while True:
        try:
            return os.splice(pipe.reader, dst.fileno(), count, flags=_FLAGS)
        except BlockingIOError:
            dst.wait_writable()
        except OSError as exc:
            if not _is_refused(exc):
                raise WriteError(_why_failed(dst, exc)) from exc
            return 0


def _empty_by_copying(dst: SocketConn, pipe: Pipe, count: int) -> int:
    """Copy at most `count` bytes, which are in the pipe, to the socket; return how many."""
    data = os.read(pipe.reader, count)
    dst.sendall(data)
    return len(data)


def _is_refused(exc: OSError) -> bool:
    """Tell whether this error is the system's, not the conn's. Then no more is spliced from now on."""
    if exc.errno not in _REFUSALS:
        return False
    if Pipe.can_splice:
        Pipe.can_splice = False
        _log.info("the system refuses splice (%s): bulk takes more time from now on", exc.strerror)
        while _spare:
            _spare.pop().discard()
    return True


def _why_failed(conn: SocketConn, exc: OSError) -> str:
    """Return what the error of `splice` means for a conn; one that is closed has the descriptor -1."""
    return f"{conn}: {'closed' if conn.closed else exc.strerror}"
