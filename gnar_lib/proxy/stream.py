"""`stream(a, b)` joins two conns, one greenlet per direction that is busy; knows neither server nor client.

Each direction starts with small reads through a shared buffer, since most connections are short. When a read
shows that bulk has begun and both ends are plain sockets, it goes on in the kernel (`splice.py`) and comes
back when the bulk is over.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, Crew, SocketConn, wait_for
from gnar_lib.pio.flow import Flow
from gnar_lib.proxy.buffer import copy_buffered

if sys.platform == "linux":
    from gnar_lib.proxy.splice import CAN_SPLICE, Pipe, copy_spliced

IDLE_CHECK_S = 0.5  # how often those directions are looked for in which nothing comes

_backs = Crew("stream")  # the second greenlets; the first of each pair ends its second


def busy_pairs() -> int:
    """Return how many joined pairs of this process are not idle."""
    return len(_backs)


def stream(a: Conn, b: Conn, up: Flow | None = None, down: Flow | None = None) -> None:
    """Carry bytes both ways until both directions have ended, then close both conns.

    `up` counts and limits a to b, `down` b to a. The end of the stream on one side shuts down writing on the
    other. An error, or the end of the calling greenlet, resets both, and is raised when they are closed.
    """
    _Pair(a, b, up or Flow(), down or Flow()).run()


class _Idle(BaseException):
    """Takes a greenlet out of a read for which nothing has come for a while."""


class _Pair:
    """Two conns and the greenlets between them; ends when the second of the two directions does.

    The caller's greenlet copies a to b. The way back has a greenlet while there is something to copy, and a
    mere watcher before that and when nothing has come for a while: most connections are idle mostly.
    """

    __slots__ = ("_a", "_b", "_down", "_error", "_is_parked", "_running", "_up", "_waiter")

    def __init__(self, a: Conn, b: Conn, up: Flow, down: Flow) -> None:
        self._a = a
        self._b = b
        self._up = up
        self._down = down
        self._error: ConnError | None = None
        self._running = 2  # directions
        self._is_parked = False
        self._waiter: greenlet | None = None

    def run(self) -> None:
        """Copy both ways to the end."""
        try:
            self._park()
            self._copy(self._a, self._b, self._up)
            if self._running:
                self._wait_for_other()
        except BaseException:
            self._abort()
            raise
        finally:
            self._a.close()
            self._b.close()
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The error refers to us: with both ways, the conns would wait for the collector.
                self._error = None

    def _wait_for_other(self) -> None:
        """Wait until the other direction has ended; a read watcher of ours may still be started."""
        self._waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._waiter = None

    # ---- the way back --------------------------------------------------------------------------------------

    def _park(self) -> None:
        """Have no greenlet on the way back until there is something to copy."""
        self._is_parked = True
        self._b.call_once_readable(self._unpark)

    def _unpark(self) -> None:
        if self._is_parked:  # not aborted meanwhile
            self._is_parked = False
            _backs.enter(self._copy_back)

    def _copy_back(self) -> None:
        _awake.add(self)
        try:
            self._copy(self._b, self._a, self._down)
        except _Idle:
            self._park()
        finally:
            _awake.discard(self)

    def park_if_idle(self) -> None:
        """Give up the way back's greenlet, when it has been waiting to read since this was last called."""
        if self._b.was_read:
            self._b.was_read = False
        else:
            self._b.interrupt(_Idle())

    # ---- either way ----------------------------------------------------------------------------------------

    def _copy(self, src: Conn, dst: Conn, flow: Flow) -> None:
        """Copy one direction to its end, whichever that is."""
        try:
            _copy(src, dst, flow)
            if self._running > 1:  # the second direction to end closes both at once
                dst.shutdown(socket.SHUT_WR)
        except _Idle:
            raise
        except ConnError as exc:
            self._error = self._error or exc
            self._abort()
        except BaseException:
            self._abort()
            self._one_ended()
            raise
        self._one_ended()

    def _one_ended(self) -> None:
        self._running -= 1
        if self._waiter is not None:
            get_hub().loop.run_callback(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None:  # not ended meanwhile
            self._waiter.switch(self)

    def _abort(self) -> None:
        """Reset both conns; the other direction wakes with an error and ends as well."""
        self._a.abort()
        self._b.abort()
        if self._is_parked:  # nobody is there to wake
            self._is_parked = False
            self._one_ended()


class _Sweep:
    """Parks what is idle, among the pairs whose way back has a greenlet."""

    def __init__(self) -> None:
        self._pairs: set[_Pair] = set()
        self._timer: Any = None

    def add(self, pair: _Pair) -> None:
        """Look at this pair from now on."""
        if not self._pairs:
            if self._timer is None:
                self._timer = get_hub().loop.timer(IDLE_CHECK_S, IDLE_CHECK_S)
            self._timer.start(self._look)
        self._pairs.add(pair)

    def discard(self, pair: _Pair) -> None:
        """Look at it no more."""
        self._pairs.discard(pair)
        if not self._pairs:
            self._timer.stop()

    def _look(self) -> None:
        for pair in [*self._pairs]:
            pair.park_if_idle()


_awake = _Sweep()


def _copy(src: Conn, dst: Conn, flow: Flow) -> None:
    """Copy until the end of the stream."""
    if not isinstance(src, SocketConn):
        copy_buffered(src, dst, flow)
        return
    src.keep_reading = True  # this greenlet waits on conns alone from here on
    try:
        _copy_from_socket(src, dst, flow)
    finally:  # the end of a stream can be read for ever: the loop would spin while the other way goes on
        src.stop_reading()


def _copy_from_socket(src: SocketConn, dst: Conn, flow: Flow) -> None:
    """Copy until the end of the stream, by the fastest way that the two conns allow at the time."""
    if sys.platform == "linux" and CAN_SPLICE and isinstance(dst, SocketConn):
        _copy_between_sockets(src, dst, flow)
    else:
        copy_buffered(src, dst, flow)


if sys.platform == "linux":

    def _copy_between_sockets(src: SocketConn, dst: SocketConn, flow: Flow) -> None:
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
