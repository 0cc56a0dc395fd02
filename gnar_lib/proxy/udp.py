"""Carries the datagrams of a proxy over a data connection, and limits them.

Knows neither server nor client. Nothing here waits for a slow receiver: datagrams that cannot be sent at
once, or kept in a bounded queue, are dropped and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.errors import ConnError, MessageTooLongError
from gnar_lib.net import Conn, Crew, Datagram, SocketConn, give_way
from gnar_lib.net.datagram import BATCH
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import Framing
from gnar_lib.proxy.share import share

MAX_QUEUED_BYTES = 1 << 20  # that wait for a slow data connection
MAX_UNSENT_BYTES = 128 << 10  # that wait in the kernel, where nothing can be dropped
DEAD_AFTER_S = 20.0  # without acknowledgement: both ends read all the time, so the peer has gone
READ_BYTES = 64 << 10


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
                rest = self._deliver_all(rest + data, deliver, has_more=len(data) == READ_BYTES)
        finally:
            self.conn.close()

    def _deliver_all(
        self, data: bytes, deliver: Callable[[list[Datagram]], None], *, has_more: bool
    ) -> bytes:
        """Deliver the datagrams in all whole frames of `data` batch by batch; return the bytes behind them.

        Others have their turn between two batches, and behind the last if the conn `has_more`.
        """
        used = len(data)
        while data and used:
            began_s = time.monotonic()
            datagrams, used = self._parse(data)
            data = data[used:]
            for start in range(0, len(datagrams), BATCH):
                deliver(datagrams[start : start + BATCH])
                pause_s = share.pause_after(began_s)
                if pause_s or has_more or len(datagrams) - start >= BATCH:
                    give_way(pause_s)
                began_s = time.monotonic()
        return data

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
