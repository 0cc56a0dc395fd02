"""Carries datagrams: over a data connection, and to a service with a session for each user.

Knows neither server nor client. Nothing here waits for a slow receiver: datagrams that cannot be sent at
once, or kept in a bounded queue, are dropped and counted.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.errors import ConnError, DialError, MessageTooLongError
from gnar_lib.events import DescriptorsShort, emit
from gnar_lib.net import Conn, Crew, Datagram, DatagramConn, SocketConn, give_way
from gnar_lib.net.datagram import BATCH, is_out_of_files
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import Framing
from gnar_lib.proxy.share import share

MAX_SESSIONS = 4096  # of one proxy; past that, the session that was idle longest is evicted
MAX_QUEUED_BYTES = 1 << 20  # that wait for a slow data connection
MAX_UNSENT_BYTES = 128 << 10  # that wait in the kernel, where nothing can be dropped
DEAD_AFTER_S = 20.0  # without acknowledgement: both ends read all the time, so the peer has gone
READ_BYTES = 64 << 10
MIN_SWEEP_S = 0.01  # between two looks for idle sessions

_writers = Crew("udp")


def admit(datagrams: list[Datagram], flow: Flow, meter: Meter) -> list[Datagram]:
    """Count the datagrams that the limit of a direction lets pass, and return them; drop the others."""
    limit = flow.limit
    if limit is not None:
        before = len(datagrams)
        datagrams = [datagram for datagram in datagrams if limit.take_now(len(datagram[1]))]
        meter.dropped += before - len(datagrams)
    size = sum([len(payload) for _, payload in datagrams])
    flow.bytes += size
    return datagrams


# ---- sessions ----------------------------------------------------------------------------------------------


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


# ---- the data connection -----------------------------------------------------------------------------------


class Carrier:
    """A data connection that carries the datagrams of one proxy; `run` closes the conn.

    The datagrams that are posted in one turn of the loop are sent together. While the conn takes no more, a
    greenlet waits to send what is queued; past `MAX_QUEUED_BYTES`, further datagrams are dropped.
    """

    def __init__(self, conn: Conn, framing: Framing, meter: Meter, log: logger.Logger) -> None:
        self.conn = conn
        self._meter = meter
        self._log = log
        self._frame = framing.frame
        self._parse = framing.parse
        self._parts: list[bytes] = []  # frames, or parts of frames, that are queued
        self._queued_bytes = 0
        self._is_writing = False  # a greenlet waits to send
        self._is_flushing = False  # `flush` will be called in this turn of the loop
        self._has_warned = False  # of a datagram that is too large
        if isinstance(conn, SocketConn):  # a stream has limits of its own
            conn.keep_reading = True  # the greenlet of `run` waits only for this conn
            conn.limit_unsent(MAX_UNSENT_BYTES)
            conn.set_user_timeout(DEAD_AFTER_S)

    def post(self, datagrams: list[Datagram]) -> None:
        """Queue datagrams until `flush`; never waits."""
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self._meter.dropped += len(datagrams)
            return
        try:
            parts = self._frame(datagrams)
        except MessageTooLongError:
            parts = self._frames_that_fit(datagrams)
        self._parts += parts
        self._queued_bytes += sum(map(len, parts))

    def _frames_that_fit(self, datagrams: list[Datagram]) -> list[bytes]:
        parts = []
        for datagram in datagrams:
            try:
                parts += self._frame([datagram])
            except MessageTooLongError as exc:
                self._meter.dropped += 1
                if not self._has_warned:
                    self._has_warned = True
                    self._log.warning("dropped: %s (told once)", exc)
        return parts

    def flush(self) -> None:
        """Send what is queued; a greenlet sends later what does not fit now."""
        self._is_flushing = False
        if self._is_writing or not self._parts:
            return
        data = self._take()
        try:
            sent = self.conn.send_now(data)
        except ConnError as exc:
            self._log.debug("the data connection broke: %s", exc)
            self.conn.abort()  # which ends `run`
            return
        if sent < len(data):
            self._is_writing = True
            _writers.spawn(self._write, data[sent:])

    def flush_soon(self) -> None:
        """Flush at the end of this turn of the loop, together with what is posted until then."""
        if not self._is_flushing:
            self._is_flushing = True
            get_hub().loop.run_callback(self.flush)

    def run(self, deliver: Callable[[list[Datagram]], None]) -> None:
        """Call `deliver` with each batch of datagrams that comes, until the conn ends, and close the conn.

        Raises `ConnError` or `ProtocolError`.
        """
        rest = b""
        try:
            while data := self.conn.recv(READ_BYTES):
                waiting = rest + data
                datagrams, used = self._parse(waiting)
                for start in range(0, len(datagrams), BATCH):
                    began_s = time.monotonic()
                    deliver(datagrams[start : start + BATCH])
                    pause_s = share.pause_after(began_s)
                    if pause_s or len(datagrams) - start > BATCH or len(data) == READ_BYTES:
                        give_way(pause_s)
                rest = waiting[used:]
        finally:
            self.conn.close()

    def _take(self) -> bytes:
        parts, self._parts, self._queued_bytes = self._parts, [], 0
        return b"".join(parts)

    def _write(self, data: bytes) -> None:
        """Send `data` and what is queued meanwhile, waiting for room."""
        try:
            while data:
                self._queued_bytes += len(data)
                self.conn.sendall(data)
                self._queued_bytes -= len(data)
                data = self._take()
        except ConnError:
            self.conn.abort()
            raise
        finally:
            self._is_writing = False
