"""The sessions of UDP users with a service: a socket for each user; knows neither server nor client.

Nothing here waits for a slow receiver: datagrams that cannot be sent at once are dropped and counted.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.errors import DialError
from gnar_lib.events import DescriptorsShort, emit
from gnar_lib.net import Datagram, DatagramConn
from gnar_lib.net.datagram import BATCH, is_out_of_files
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.share import share

MAX_SESSIONS = 4096  # of one proxy; past that, the session that was idle longest is evicted
MIN_SWEEP_S = 0.01  # between two looks for idle sessions


@dataclass(frozen=True, slots=True)
class Limits:
    """A session ends `timeout_s` after its last datagram, or when there are more than `sessions`."""

    timeout_s: float
    sessions: int = MAX_SESSIONS


class OpensSockets(Protocol):
    """The service to which users' datagrams go."""

    def open(self) -> DatagramConn:
        """Return a new socket that is connected to the service; the caller closes it. Raises `DialError`."""

    def refused(self, conn: DatagramConn) -> bool:
        """Nobody receives where `conn` is connected to; tell whether a new socket is better."""


class Sessions:
    """The sessions of one proxy: a socket for each user, so that the service can tell the users apart.

    A session begins with the first datagram of a user, and ends when the limits say so. `answer` is called in
    the hub with the datagrams that the service has sent to one user in one turn of the loop.
    """

    def __init__(
        self,
        target: OpensSockets,
        answer: Callable[[list[Datagram]], None],
        meter: Meter,
        limits: Limits,
        log: logger.Logger,
    ) -> None:
        self._target = target
        self._answer = answer
        self._meter = meter
        self._limits = limits
        self._log = log
        self._failures = logger.Burst()  # warnings about sessions that could not begin
        # By the user's packed address; the session that was idle longest is the first.
        self._conns: OrderedDict[bytes, DatagramConn] = OrderedDict()
        self._sweeper: Any = None  # the timer for the first session to become idle

    def __len__(self) -> int:
        return len(self._conns)

    def send(self, datagrams: list[Datagram]) -> None:
        """Send datagrams to the service, each from the socket of its user."""
        find, now_s = self._conns.get, time.monotonic()
        for user, payload in datagrams:
            conn = find(user)
            if conn is None or conn.is_refused:
                conn = self._begin(user) if conn is None else self._go_on(user, conn)
                if conn is None:
                    self._meter.dropped += 1
                    continue
            self._conns.move_to_end(user)
            conn.used_s = now_s
            if not conn.send(payload):
                self._meter.dropped += 1

    def _on_answers(self, datagrams: list[Datagram]) -> None:
        user = datagrams[0][0]
        conn = self._conns[user]
        self._conns.move_to_end(user)
        self._answer(datagrams)
        pause_s = share.pause_after(conn.used_s)
        if pause_s and len(datagrams) == BATCH:  # so that what users send has its turn
            conn.pause(pause_s)

    def close(self) -> None:
        """End all sessions."""
        while self._conns:
            self._end_first()

    # ---- beginning and ending ------------------------------------------------------------------------------

    def _begin(self, user: bytes) -> DatagramConn | None:
        if len(self._conns) >= self._limits.sessions:
            self._end_first()
        try:
            conn = self._open()
        except DialError as exc:
            self._failures.warning(self._log, "no session with the local service: %s", exc)
            return None
        self._failures.end(self._log)
        self._conns[user] = conn
        conn.serve(self._on_answers, user)
        self._meter.begin_session()
        if self._sweeper is None:
            self._sweep_in(self._limits.timeout_s)
        return conn

    def _open(self) -> DatagramConn:
        """Return a new socket; if there are too many files, the session that was idle longest is evicted."""
        try:
            return self._target.open()
        except DialError as exc:
            if not self._conns or not is_out_of_files(exc):
                raise
            emit(DescriptorsShort, "the UDP session that was idle longest ends", str(exc))
        self._end_first()
        return self._target.open()

    def _go_on(self, user: bytes, conn: DatagramConn) -> DatagramConn | None:
        """Nobody has received the last datagram: return the same socket, or a better one."""
        conn.is_refused = False
        if not self._target.refused(conn):
            return conn
        self._end(user)
        return self._begin(user)

    def _end_first(self) -> None:
        self._end(next(iter(self._conns)))

    def _end(self, user: bytes) -> None:
        self._conns.pop(user).close()
        self._meter.end_session()
        if not self._conns and self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper = None

    def _sweep_in(self, seconds: float) -> None:
        self._sweeper = get_hub().loop.timer(max(seconds, MIN_SWEEP_S))
        self._sweeper.start(self._sweep)

    def _sweep(self) -> None:
        """End the idle sessions, and set the timer to when the next session would become idle."""
        now_s = time.monotonic()
        while self._conns:
            left_s = next(iter(self._conns.values())).used_s + self._limits.timeout_s - now_s
            if left_s > 0:
                self._sweep_in(left_s)
                return
            self._end_first()
