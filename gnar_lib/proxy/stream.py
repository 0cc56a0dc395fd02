"""`stream(a, b)` joins two conns: it carries bytes both ways until both have ended.

Knows neither server nor client, and not how bytes are copied (`ways.py`).
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from itertools import islice
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnClosed, ConnError, WriteError
from gnar_lib.net import LENT, LENT_BYTES, Conn, Crew, SocketConn, wait_for
from gnar_lib.net.options import half_close_timeout_s
from gnar_lib.pio.flow import Flow
from gnar_lib.proxy.buffer import send_counted
from gnar_lib.proxy.watch import watch
from gnar_lib.proxy.ways import copy_to_end
from gnar_lib.yamux import Stream

IDLE_CHECK_S = 0.5  # between two looks for directions on which nothing comes
PARK_AT_ONCE = 64  # pairs in one turn of the loop
LOOK_AT = 32  # pairs, when asked whether one has moved bytes

_backs = Crew("stream")  # the greenlets of the ways back; the first greenlet of a pair ends the second


def busy_pairs() -> int:
    """Return how many joined pairs of this process have moved bytes on their ways back lately."""
    return len(_awake)


def any_has_moved() -> bool:
    """Tell whether one of some busy pairs has moved bytes since it was last looked at.

    Each call looks at the next few, so that the time that it takes does not grow with the pairs.
    """
    return _awake.any_has_moved()


def stream(
    a: Conn, b: Conn, up: Flow | None = None, down: Flow | None = None, idle_timeout_s: float = 0.0
) -> None:
    """Carry bytes both ways until both directions have ended, then close both conns.

    `up` counts and limits the bytes from `a` to `b`, `down` those from `b` to `a`. When one conn ends, the
    other is half-closed. After an error, both conns are reset behind what was sent before, and the error is
    raised. If a conn takes no more bytes, what its other end has sent is carried first. When the calling
    greenlet is ended, both conns are reset, too, and when no byte has come for `idle_timeout_s`, unless that
    is 0. `on_first` of each flow is called when its first byte has come, and must not wait.
    """
    _Pair(a, b, up or Flow(), down or Flow(), idle_timeout_s).run()


class _Idle(BaseException):
    """Ends the wait of a greenlet to read a conn on which nothing has come for a while."""


class _Pair:
    """Two conns and what copies between them.

    The caller's greenlet copies one direction. The other one, the way back, is parked at first, and when
    nothing has come for a while: no greenlet waits for bytes, since most connections are idle most of the
    time, and a greenlet costs memory. Once there are bytes, a greenlet copies them. What comes from a socket
    needs no greenlet, either, as long as nothing has to wait: a callback of the hub passes it on, which costs
    less. So the way back is the one from a socket, if only one of the two conns is a socket.
    """

    __slots__ = (
        "_a",
        "_b",
        "_back",
        "_error",
        "_forth",
        "_idle_timeout_s",
        "_is_parked",
        "_is_turned",
        "_moved",
        "_moved_s",
        "_running",
        "_waiter",
    )

    def __init__(self, a: Conn, b: Conn, up: Flow, down: Flow, idle_timeout_s: float) -> None:
        # The way back is the one from `a`, as the caller calls it.
        self._is_turned = isinstance(a, SocketConn) and not isinstance(b, SocketConn)
        if self._is_turned:
            a, b, up, down = b, a, down, up
        self._a = a
        self._b = b
        self._forth = up  # from `_a` to `_b`, in the caller's greenlet
        self._back = down  # from `_b` to `_a`
        self._idle_timeout_s = idle_timeout_s  # for which nothing may come; 0: for ever
        self._error: ConnError | None = None  # the first error of either direction
        self._running = 2  # directions that have not ended
        self._moved = -1  # bytes of both directions at the last look
        self._moved_s = 0.0  # when a look last found more of them, or that a direction had just ended
        self._is_parked = False  # the way back has no greenlet, and waits for bytes
        self._waiter: greenlet | None = None  # the caller's greenlet, while it waits for the way back to end

    def run(self) -> None:
        """Copy both ways until both have ended; raises the first error."""
        watch.add(self)
        try:
            if self._park() and self._is_turned:
                self._pass_back()  # mostly, a user's first bytes are there, and leave with the announcement
            self._copy(self._a, self._b, self._forth)
            if self._running:
                self._wait_for_other()
            if self._error is not None:
                self._abort()
        except BaseException:
            self._abort()
            raise
        finally:
            watch.discard(self)
            self._a.close()
            self._b.close()
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The error refers to this pair. If the pair also referred to the error, only the garbage
                # collector would free both conns.
                self._error = None

    def _wait_for_other(self) -> None:
        """Wait until the way back has ended."""
        self._waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._waiter = None

    # ---- the way back --------------------------------------------------------------------------------------

    def _park(self) -> bool:
        """Let the way back go without a greenlet until there is something to copy.

        Tell whether `_pass_back` will be called then.
        """
        self._is_parked = True
        src = self._b
        if isinstance(src, SocketConn) and self._back.limit is None and not (src.has_unread or src.closed):
            src.call_when_readable_or_closed(self._pass_back)
            return True
        src.call_once_readable(self._unpark)
        return False

    def _pass_back(self) -> None:
        """Pass on what has come on the way back, without waiting."""
        src, dst, flow = self._b, self._a, self._back
        assert isinstance(src, SocketConn)  # noqa: S101  (for the type checker: `_park` has looked)
        rest = b""
        try:
            if not self._is_parked or (count := src.recv_into_now(LENT)) is None:
                return  # this pair itself has closed `src`, or nothing has come
            if count and not flow.bytes and not self._is_turned and isinstance(dst, Stream):
                count = self._pass_whole(src, dst, count)
            if count:
                flow.bytes += count
                sent = dst.send_now(LENT[:count])
                if flow.on_first is not None:
                    flow.tell_first()
                if sent == count < LENT_BYTES:
                    if not src.was_read:
                        src.was_read = True
                        _awake.add(self)
                    return
                rest = bytes(LENT[sent:count])
        except ConnError as exc:
            self._stop_passing(src)
            self._failed(exc)
        else:
            self._stop_passing(src)
            if count:  # much has come, or more than `dst` takes at once
                _backs.spawn(self._copy_back, rest)
                return
            self._end_of(dst)
        _awake.discard(self)
        self._running -= 1
        self._wake()

    def _pass_whole(self, src: SocketConn, dst: Stream, count: int) -> int:
        """Pass on a short answer and its end in one frame, if the end has come right behind it.

        `count` bytes have been read. Returns how many bytes have been read and not passed on. If a reset has
        come behind the bytes, raises the `ConnClosed` once they are passed on.
        """
        try:
            more = src.recv_into_now(LENT[count:]) if count < LENT_BYTES else None
        except ConnClosed:
            self._back.bytes += dst.send_now(LENT[:count])
            self._back.tell_first()
            raise
        if more != 0 or not dst.send_last(LENT[:count]):
            return count + (more or 0)
        self._back.bytes += count
        self._back.tell_first()
        return 0

    def _stop_passing(self, src: SocketConn) -> None:
        self._is_parked = False
        src.call_when_readable(None)

    def _unpark(self) -> None:
        if self._is_parked:  # else it was aborted meanwhile
            self._is_parked = False
            _backs.enter(self._copy_back)

    def _copy_back(self, rest: bytes = b"") -> None:
        """Send `rest`, then copy, in a greenlet of its own."""
        _awake.add(self)
        try:
            self._copy(self._b, self._a, self._back, rest)
        except _Idle:
            self._park()
        finally:
            _awake.discard(self)

    def park_if_idle(self) -> None:
        """Park the way back if nothing has come on it since this was last called; runs in the hub."""
        if self._b.was_read:
            self._b.was_read = False
        elif self._is_parked:
            _awake.discard(self)
        else:
            self._b.interrupt(_Idle())

    # ---- now and then --------------------------------------------------------------------------------------

    @property
    def moved(self) -> int:
        """How many bytes both directions have carried."""
        return self._forth.bytes + self._back.bytes

    def look(self, now_s: float) -> None:
        """End the pair if one end has gone without a word, or if both are silent for too long."""
        moved = self.moved
        if moved != self._moved:
            self._moved, self._moved_s = moved, now_s
        silent_s = now_s - self._moved_s
        reason = self._a.why_gone(now_s) or self._b.why_gone(now_s)
        if not reason and self._running == 1 and silent_s > half_close_timeout_s():
            reason = f"half-closed, and silent for {half_close_timeout_s():g} s"
        if not reason and self._idle_timeout_s and silent_s > self._idle_timeout_s:
            reason = f"idle for {self._idle_timeout_s:g} s"
        if reason:
            self._error = self._error or ConnClosed(reason)
            self._abort()

    # ---- either way ----------------------------------------------------------------------------------------

    def _copy(self, src: Conn, dst: Conn, flow: Flow, rest: bytes = b"") -> None:
        """Copy one direction to its end, and half-close `dst`; an error aborts both conns."""
        try:
            if rest:
                dst.sendall(rest)
            if flow.on_first is not None and (first := src.borrow()):
                flow.tell_first()
                send_counted(first, dst, flow)
            copy_to_end(src, dst, flow)
            self._end_of(dst)
        except _Idle:
            raise
        except ConnError as exc:
            self._failed(exc)
        except BaseException:
            self._abort()
            self._one_ended()
            raise
        self._one_ended()

    def _end_of(self, dst: Conn) -> None:
        """Half-close `dst`, to which nothing more comes."""
        if self._running > 1:  # else both have ended, and `run` closes both conns
            dst.shutdown(socket.SHUT_WR)
            self._moved = -1  # the silence that half-closed conns may have begins now

    def _failed(self, exc: ConnError) -> None:
        """Take note that one direction has ended with an error."""
        self._error = self._error or exc
        if not isinstance(exc, WriteError):
            self._abort()
        # Else the other direction ends by itself, once it has carried what the conn that takes no more has
        # sent.

    def _one_ended(self) -> None:
        self._running -= 1
        if self._waiter is not None:
            get_hub().loop.run_callback(self._wake)

    def _wake(self) -> None:
        """Go on in the caller's greenlet; runs in the hub."""
        if self._waiter is not None:  # else it copies, or was ended meanwhile
            self._waiter.switch(self)

    def _abort(self) -> None:
        """Reset both conns, which ends the other direction with an error, too."""
        self._a.abort()
        self._b.abort()
        if self._is_parked:  # there is no greenlet that would end
            self._is_parked = False
            _awake.discard(self)
            self._one_ended()


class _Sweep:
    """The pairs on whose ways back something has come lately; parks those that have become idle."""

    def __init__(self) -> None:
        # On whose way back something has come lately, with the bytes at the last look; the next to look at is
        # the first.
        self._pairs: OrderedDict[_Pair, int] = OrderedDict()
        self._timer: Any = None
        self._due: list[_Pair] = []  # still to be looked at in this round
        self._next: Any = None  # the timer for the next turn of a round

    def add(self, pair: _Pair) -> None:
        """Watch this pair from now on."""
        if self._timer is None:
            self._timer = get_hub().loop.timer(IDLE_CHECK_S, IDLE_CHECK_S)
            self._timer.start(self._look)
        self._pairs[pair] = pair.moved

    def discard(self, pair: _Pair) -> None:
        """Watch this pair no longer."""
        self._pairs.pop(pair, None)

    def __len__(self) -> int:
        return len(self._pairs)

    def any_has_moved(self) -> bool:
        """Look at the next few pairs; tell whether one has moved bytes since the last look at it."""
        found = False
        for pair in [*islice(self._pairs, LOOK_AT)]:
            moved = pair.moved
            found = found or moved != self._pairs[pair]
            self._pairs[pair] = moved
            self._pairs.move_to_end(pair)
        return found

    def _look(self) -> None:
        """Begin to look at all pairs, some in each turn of the loop, unless the last round goes on."""
        if self._due:
            return
        self._due = [*self._pairs]
        self._look_at_some()
        if not self._pairs:
            self._timer.stop()
            self._timer = None

    def _look_at_some(self) -> None:
        for _ in range(min(PARK_AT_ONCE, len(self._due))):
            pair = self._due.pop()
            if pair in self._pairs:  # else it has ended meanwhile
                pair.park_if_idle()
        if self._due:
            self._next = get_hub().loop.timer(0.0)
            self._next.start(self._look_at_some)


_awake = _Sweep()
