"""Copies one direction of bulk between two plain sockets through a pipe: no byte enters Python (Linux)."""

from __future__ import annotations

import os
import sys

from gnar_lib.errors import ConnClosed
from gnar_lib.net import SocketConn, give_way
from gnar_lib.pio.flow import Flow

PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)
MIN_PIPE_BYTES = (
    256 * 1024
)  # past a user's share of pipe memory Linux gives 8 KiB, with which buffers are faster
SPARE_PIPES = 16  # kept for the next bulk transfer
SMALL_BYTES = 16 * 1024
SMALL_IN_A_ROW = 64  # after that many small moves the bulk is over, and the pipe is better used elsewhere

assert sys.platform == "linux"  # noqa: S101  (type checkers know by this what is at hand below)

if CAN_SPLICE := hasattr(os, "splice"):
    import fcntl

    _FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_spare: list[Pipe] = []


class Pipe:
    """An empty, enlarged, non-blocking pipe; `discard` it when bytes are left in it, else `keep` it."""

    __slots__ = ("reader", "size", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.size = 0

    @classmethod
    def take(cls) -> Pipe | None:
        """Return an empty pipe; None when no more of them are to be had in a useful size."""
        if _spare:
            return _spare.pop()
        try:
            pipe = cls()
        except OSError:  # no descriptors left
            return None
        if pipe.size >= MIN_PIPE_BYTES:
            return pipe
        pipe.discard()
        return None

    def keep(self) -> None:
        """Give an empty pipe back."""
        if len(_spare) < SPARE_PIPES:
            _spare.append(self)
        else:
            self.discard()

    def discard(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self.writer)


def copy_spliced(src: SocketConn, dst: SocketConn, flow: Flow, pipe: Pipe) -> bool:
    """Copy through `pipe` until the end of the stream (True), or until the bulk is over (False).

    The pipe is empty when this returns; after an error it is not.
    """
    small = 0
    while small < SMALL_IN_A_ROW:
        count = _fill(src, pipe)
        if not count:
            return True
        flow.bytes += count
        small = small + 1 if count < SMALL_BYTES else 0
        _drain(dst, flow, pipe, count)
        if count >= SMALL_BYTES:
            give_way()  # where both ends keep up nothing here would ever wait, and nobody else be served
    return False


def _fill(src: SocketConn, pipe: Pipe) -> int:
    """Move what the socket has into the empty pipe, waiting for the first byte; 0 at the end."""
    while True:
        try:
            return os.splice(src.fileno(), pipe.writer, pipe.size, flags=_FLAGS)
        except BlockingIOError:
            src.wait_readable()
        except OSError as exc:
            raise _failed(src, exc) from exc


def _drain(dst: SocketConn, flow: Flow, pipe: Pipe, count: int) -> None:
    """Move the `count` bytes that the pipe holds into the socket, as fast as socket and limit allow."""
    limit = flow.limit
    while count:
        granted = count if limit is None else limit.take(count)
        count -= granted
        while granted:
            try:
                granted -= os.splice(pipe.reader, dst.fileno(), granted, flags=_FLAGS)
            except BlockingIOError:
                dst.wait_writable()
            except OSError as exc:
                raise _failed(dst, exc) from exc


def _failed(conn: SocketConn, exc: OSError) -> ConnClosed:
    """Translate what `splice` raised; a closed conn shows as descriptor -1."""
    return ConnClosed(f"{conn}: {'closed' if conn.closed else exc.strerror}")
