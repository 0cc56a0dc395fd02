"""Sends the messages of many greenlets on one conn, in order; no caller has to wait."""

from __future__ import annotations

import gevent.event

from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, Crew, deadline
from gnar_lib.net.options import dead_after_s
from gnar_lib.proto.msg import Message, to_frame

MAX_QUEUED_BYTES = 256 << 10  # the answers to a thousand requests


class Outbox:
    """The writing half of a control connection, with a greenlet of `crew`.

    The messages that are posted in one turn of the loop are sent together. If writing fails, or if too many
    bytes are queued, the conn is aborted, so that whoever reads the conn gets an error.
    """

    def __init__(self, conn: Conn, crew: Crew) -> None:
        self._conn = conn
        self._queue: list[bytes] = []  # whole frames
        self._queued_bytes = 0
        self._posted = gevent.event.Event()
        self._is_closed = False
        crew.spawn(self._run)

    def post(self, message: Message) -> None:
        """Queue a message; never waits. The message is lost if the outbox is closed."""
        if self._is_closed:
            return
        frame = to_frame(message)
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self._give_up()
        self._posted.set()

    def close(self) -> None:
        """Send nothing more, and end the greenlet; the owner of the conn closes the conn."""
        self._is_closed = True
        self._posted.set()

    def _give_up(self) -> None:
        self._is_closed = True
        self._conn.abort()

    def _run(self) -> None:
        while True:
            self._posted.wait()
            self._posted.clear()
            if self._is_closed:
                return
            frames, self._queue, self._queued_bytes = self._queue, [], 0
            try:
                with deadline(dead_after_s(), "writing to the control connection"):
                    self._conn.sendall(b"".join(frames))
            except ConnError:
                self._give_up()
                raise
