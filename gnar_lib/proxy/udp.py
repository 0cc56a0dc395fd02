"""Carries the datagrams of a proxy over a data connection, and limits them.

Knows neither server nor client. Nothing here waits for a slow receiver: datagrams that cannot be sent at
once, or kept in a bounded queue, are dropped and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, ConnError, MessageTooLongError
from gnar_lib.net import Conn, Crew, Datagram, SocketConn, wait_for
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
    for _, payload in datagrams:
        flow.bytes += len(payload)
    return datagrams


class Carrier:
    """A data connection that carries the datagrams of one proxy; `run` closes the conn.

    The hub receives and sends: a switch to a greenlet and back would be a quarter of what a datagram costs.
    The datagrams of one turn of the loop are sent together, a batch at a time. While the conn takes no more,
    a greenlet waits to send what is queued; past `MAX_QUEUED_BYTES`, further datagrams are dropped.
    """

    def __init__(self, conn: Conn, framing: Framing, meter: Meter, log: logger.Logger) -> None:
        self.conn = conn
        self._meter = meter
        self._log = log
        self._frame = framing.frame
        self._parse = framing.parse
        self._loop: Any = get_hub().loop
        self._batch: list[Datagram] = []  # to be sent in this turn of the loop
        self._is_flushing = False  # `_flush_at_last` will be called in this turn of the loop
        self._is_writing = False  # a greenlet sends
        self._queued: list[bytes] = []  # frames that the greenlet is to send next
        self._queued_bytes = 0  # of these, and of what the greenlet is sending
        self._has_warned = False  # of a datagram that is too large
        self._deliver: Callable[[list[Datagram]], None]  # takes what comes; from `run`
        self._runner: greenlet | None = None  # the greenlet of `run`
        self._rest = b""  # what has come and is not delivered yet
        self._is_listening = False  # the hub calls `_on_readable` for all that comes, not just for the next
        self._pause: Any = None  # the timer for the next batch
        # The hub must not wait, should it be called in vain.
        self._recv: Callable[[int], bytes | None] = getattr(conn, "recv_now", conn.recv)
        if isinstance(conn, SocketConn):  # a stream has limits of its own
            conn.limit_unsent(MAX_UNSENT_BYTES)
            conn.set_user_timeout(DEAD_AFTER_S)

    def send(self, datagrams: list[Datagram]) -> None:
        """Send datagrams with those of others in this turn of the loop; never waits, but may drop some."""
        self._batch += datagrams
        if not self._loop.pendingcnt or len(self._batch) >= BATCH:  # there are no others, or enough
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.run_callback(self._flush_at_last)

    def _flush_at_last(self) -> None:
        self._is_flushing = False
        self._flush()

    def _flush(self) -> None:
        """Send the batch; a greenlet sends later what does not fit now."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self._meter.dropped += len(batch)
            return
        data = self._framed(batch)
        if self._is_writing:
            self._queued.append(data)
            self._queued_bytes += len(data)
            return
        try:
            sent = self.conn.send_now(data)
        except ConnError as exc:
            self._log.debug("the data connection broke: %s", exc)
            self.abort()
            return
        if sent < len(data):
            self._is_writing = True
            self._queued_bytes = len(data) - sent
            _writers.spawn(self._write, data[sent:])

    def _framed(self, datagrams: list[Datagram]) -> bytes:
        """Return the frames of those datagrams that are not too large."""
        try:
            return self._frame(datagrams)
        except MessageTooLongError:
            return b"".join(self._frames_that_fit(datagrams))

    def _frames_that_fit(self, datagrams: list[Datagram]) -> Iterator[bytes]:
        for datagram in datagrams:
            try:
                yield self._frame([datagram])
            except MessageTooLongError as exc:
                self._meter.dropped += 1
                if not self._has_warned:
                    self._has_warned = True
                    self._log.warning("dropped: %s (told once)", exc)

    def run(self, deliver: Callable[[list[Datagram]], None]) -> None:
        """Have the hub call `deliver` with each batch that comes, until the conn ends, and close the conn.

        `deliver` must not wait. Raises `ConnError` or `ProtocolError`.
        """
        self._deliver, self._runner = deliver, getcurrent()
        try:
            self.conn.call_once_readable(self._on_readable)
            wait_for(self)
        finally:
            self._runner = None
            if self._pause is not None:
                self._pause.stop()
            self.conn.close()

    def close(self) -> None:
        """Close the conn, which ends `run`."""
        self.conn.close()
        self._loop.run_callback(self._end, ConnClosed(f"{self.conn}: closed"))

    def abort(self) -> None:
        """Close the conn with a reset, which ends `run`."""
        self.conn.abort()
        self.close()

    # ---- in the hub ----------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            data = self._recv(READ_BYTES)
            if data:
                self._rest += data
                self._deliver_batch()
            elif data is None:  # there was nothing
                self._listen()
            else:
                self._end()
        except Exception as exc:  # noqa: BLE001  (`run` raises it)
            self._end(exc)

    def _deliver_batch(self) -> None:
        """Deliver the first batch of what has come; others have their turn before the next."""
        began_s = time.monotonic()
        datagrams, used = self._parse(self._rest)
        self._rest = self._rest[used:]
        if datagrams:
            self._deliver(datagrams)
        pause_s = share.pause_after(began_s)
        if pause_s or (self._rest and len(datagrams) == BATCH):
            self._go_on_after(pause_s)
        elif not self._is_listening:
            self._listen()

    def _listen(self) -> None:
        """Go on as soon as something comes. Raises `ConnClosed`."""
        if isinstance(self.conn, SocketConn) and not self.conn.has_unread:
            self._is_listening = True
            self.conn.call_when_readable(self._on_readable)
        else:
            self.conn.call_once_readable(self._on_readable)

    def _go_on_after(self, seconds: float) -> None:
        """Go on with what has come after some seconds, or in the next turn of the loop."""
        if isinstance(self.conn, SocketConn):
            self.conn.call_when_readable(None)
        self._is_listening = False
        self._pause = self._loop.timer(seconds)
        self._pause.start(self._on_pause_over)

    def _on_pause_over(self) -> None:
        self._pause = None
        try:
            self._deliver_batch()
        except Exception as exc:  # noqa: BLE001  (`run` raises it)
            self._end(exc)

    def _end(self, error: Exception | None = None) -> None:
        """Have `run` return, or raise an error."""
        runner, self._runner = self._runner, None
        if runner is None:  # it has ended already
            return
        if error is None:
            runner.switch(self)
        else:
            runner.throw(error)

    # ---- what the conn does not take at once ---------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        """Send `data` and what is queued meanwhile, waiting for room."""
        try:
            while data:
                self.conn.sendall(data)
                self._queued_bytes -= len(data)
                data = b"".join(self._queued)
                self._queued.clear()
        except ConnError:
            self.abort()
            raise
        finally:
            self._is_writing = False
