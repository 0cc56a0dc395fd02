"""Sends what a layer has made, also what does not fit into the conn below at once; knows no layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnError, WriteError
from gnar_lib.net import EventedConn, wait_for
from gnar_lib.net.options import dead_after_s
from gnar_lib.transport.contract import Made

MAX_LINGERING: Final = 128  # conns, each with about 64 KiB; past that, the oldest is given up
LOOK_EVERY_S: Final = 1.0

_NOTHING = memoryview(b"")


class Outgoing:
    """The bytes of one layer on their way into the conn below.

    A writer takes bytes for sent as soon as they are in a frame, such as an encrypted record, since they
    cannot be taken back. So what does not fit is kept here, and the hub sends it as soon as there is room.
    """

    __slots__ = ("_conn", "_made", "_on_room", "_rest", "_then", "_writer", "why_failed")

    def __init__(self, conn: EventedConn, made: Made) -> None:
        self.why_failed = ""  # why nothing can be sent any more
        self._conn = conn
        self._made = made
        self._rest = _NOTHING  # bytes that did not fit; those behind them are still in `made`
        self._writer: greenlet | None = None  # which waits until everything is sent
        self._on_room: Callable[[], None] | None = None
        self._then: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether bytes wait for room."""
        return bool(self._rest)

    @property
    def has_writer(self) -> bool:
        """Whether a greenlet waits until everything is sent."""
        return self._writer is not None

    @property
    def count(self) -> int:
        """How many bytes wait for room."""
        return len(self._rest) + (self._made.pending if self._rest else 0)

    def flush(self) -> None:
        """Send what has been made as far as it fits; the rest follows by itself. Raises `WriteError`."""
        while not self._rest and self._made.pending:
            data = self._made.read()
            try:
                sent = self._conn.send_now(data)
            except WriteError as exc:
                self.why_failed = str(exc)
                raise
            if sent < len(data):
                self._rest = memoryview(data)[sent:]
                self._conn.call_when_writable(self._on_writable)

    def wait_sent(self) -> None:
        """Wait until everything is sent, or `wake` was called."""
        self._writer = getcurrent()
        try:
            wait_for(self)
        finally:
            self._writer = None

    def wake(self) -> None:
        """Wake the greenlet that waits until everything is sent; runs in the hub."""
        if self._writer is not None:
            self._writer.switch(self)

    def call_when_room(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` in the hub whenever there is room; None ends that."""
        self._on_room = callback
        self._conn.call_when_writable(self._on_writable if callback or self._rest else None)

    def stop_telling(self) -> None:
        """Call nobody any more when there is room."""
        self._on_room = None

    def then(self, call: Callable[[], None]) -> None:
        """Call something once everything is sent, or nothing can be sent any more: now, or in the hub."""
        if self._rest:
            self._then = call
        else:
            call()

    def _on_writable(self) -> None:
        try:
            while self._rest or self._made.pending:
                rest = self._rest or memoryview(self._made.read())
                sent = self._conn.send_now(rest)
                self._rest = rest[sent:] if sent < len(rest) else _NOTHING  # which frees the memory
                if self._rest:
                    return
        except ConnError as exc:
            self.why_failed, self._rest = str(exc), _NOTHING
        if self._on_room is None:
            self._conn.call_when_writable(None)
        if self._then is not None:
            call, self._then = self._then, None
            call()
        self.wake()
        if self._on_room is not None:
            self._on_room()

    # ---- without an owner ----------------------------------------------------------------------------------

    def linger(self, then: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Send what waits for room for an owner that has closed, and call `then`.

        `then` closes the conn below. If sending takes too long, `give_up` is called instead.
        """
        lingering.add(self, give_up)
        self._then = lambda: lingering.leave(self, then)

    def drop(self) -> None:
        """Forget what waits for room, and whoever is to be called then."""
        self._rest, self._then = _NOTHING, None

    def has_gone(self, now_s: float) -> bool:
        """Tell whether the peer has gone without a word, or the conn below was closed."""
        return self._conn.closed or bool(self._conn.why_gone(now_s))


class _Lingering:
    """What has no owner any more in this process, and something to send."""

    def __init__(self) -> None:
        # With the time at which patience ends, and what is called then.
        self._waiting: OrderedDict[Outgoing, tuple[float, Callable[[], None]]] = OrderedDict()
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, outgoing: Outgoing, give_up: Callable[[], None]) -> None:
        """Give this one time to send."""
        if len(self._waiting) >= MAX_LINGERING:
            self._give_up(next(iter(self._waiting)))
        self._waiting[outgoing] = monotonic() + dead_after_s(), give_up
        if self._timer is None:
            self._timer = get_hub().loop.timer(LOOK_EVERY_S, LOOK_EVERY_S)
            self._timer.start(self._look)

    def leave(self, outgoing: Outgoing, then: Callable[[], None]) -> None:
        """This one has sent everything, or never will."""
        self._discard(outgoing)
        then()

    def _give_up(self, outgoing: Outgoing) -> None:
        give_up = self._waiting[outgoing][1]
        self._discard(outgoing)
        outgoing.drop()
        give_up()

    def _discard(self, outgoing: Outgoing) -> None:
        self._waiting.pop(outgoing, None)
        if not self._waiting and self._timer is not None:
            self._timer.stop()
            self._timer = None

    def _look(self) -> None:
        now_s = monotonic()
        for outgoing, (until_s, _) in [*self._waiting.items()]:
            if now_s > until_s or outgoing.has_gone(now_s):
                self._give_up(outgoing)


lingering = _Lingering()
