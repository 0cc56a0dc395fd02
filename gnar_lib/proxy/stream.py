"""`stream(a, b)` joins two conns, one greenlet per direction; knows neither server nor client.

Each direction starts with small reads through a shared buffer, since most connections are short. When a read
shows that bulk has begun and both ends are plain sockets, it goes on in the kernel (`splice.py`) and comes
back when the bulk is over.
"""

from __future__ import annotations

import socket

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, Crew, SocketConn
from gnar_lib.proxy.buffer import copy_buffered
from gnar_lib.proxy.flow import Flow
from gnar_lib.proxy.splice import CAN_SPLICE, Pipe, copy_spliced

_backs = Crew("stream")  # the second greenlets; the first of each pair ends its second


def stream(a: Conn, b: Conn, up: Flow | None = None, down: Flow | None = None) -> None:
    """Carry bytes both ways until both directions have ended, then close both conns.

    `up` counts and limits a to b, `down` b to a. The end of the stream on one side shuts down writing on the
    other. An error, or the end of the calling greenlet, resets both, and is raised when they are closed.
    """
    _Pair(a, b).run(up or Flow(), down or Flow())


class _Pair:
    """Two conns and the two greenlets between them; ends when the second of the two does."""

    __slots__ = ("_a", "_b", "_error", "_running", "_waiter")

    def __init__(self, a: Conn, b: Conn) -> None:
        self._a = a
        self._b = b
        self._error: ConnError | None = None
        self._running = 2
        self._waiter: greenlet | None = None

    def run(self, up: Flow, down: Flow) -> None:
        """Copy a to b in this greenlet, b to a in another."""
        _backs.spawn(self._copy, self._b, self._a, down)
        try:
            self._copy(self._a, self._b, up)
        finally:
            if self._running:
                self._wait_for_other()
            self._a.close()
            self._b.close()
        if self._error is not None:
            raise self._error

    def _wait_for_other(self) -> None:
        """Wait until the other direction has ended; a read watcher of ours may still be started."""
        self._waiter = getcurrent()
        switch = get_hub().switch
        try:
            while (woken := switch()) is not self:
                woken.stop()
        except BaseException:
            self._waiter = None
            self._abort()
            raise

    def _copy(self, src: Conn, dst: Conn, flow: Flow) -> None:
        """Copy one direction to its end, whichever that is."""
        try:
            _copy(src, dst, flow)
            if self._running > 1:  # the second direction to end closes both at once
                dst.shutdown(socket.SHUT_WR)
        except ConnError as exc:
            self._error = self._error or exc
            self._abort()
        except BaseException:
            self._abort()
            raise
        finally:
            self._running -= 1
            if self._waiter is not None:
                get_hub().loop.run_callback(self._waiter.switch, self)

    def _abort(self) -> None:
        """Reset both conns; the other direction wakes with an error and ends as well."""
        self._a.abort()
        self._b.abort()


def _copy(src: Conn, dst: Conn, flow: Flow) -> None:
    """Copy until the end of the stream, by the fastest way that the two conns allow at the time."""
    if isinstance(src, SocketConn):
        src.keep_reading = True  # this greenlet waits on conns alone from here on
    if not (CAN_SPLICE and isinstance(src, SocketConn) and isinstance(dst, SocketConn)):
        copy_buffered(src, dst, flow)
        return
    while not copy_buffered(src, dst, flow, until_bulk=True):
        pipe = Pipe.take()
        if pipe is None:
            copy_buffered(src, dst, flow)
            return
        try:
            ended = copy_spliced(src, dst, flow, pipe)
        except BaseException:
            pipe.discard()
            raise
        pipe.keep()
        if ended:
            return
