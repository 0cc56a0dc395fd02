"""Sends the messages of many greenlets on one conn, in order, so that no caller waits and no two mix."""

from __future__ import annotations

import gevent.event

from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, Crew, deadline
from gnar_lib.proto.msg import Message, to_frame

WRITE_DEADLINE_S = 10.0  # for a peer that stops reading its control connection
MAX_QUEUED_BYTES = 1 << 20


class Outbox:
    """The writing half of a control connection; what is posted in one turn of the loop leaves in one send.

    A conn that cannot be written to any more is aborted, which whoever reads it notices.
    """

    def __init__(self, conn: Conn, crew: Crew) -> None:
        self._conn = conn
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._posted = gevent.event.Event()
        self._is_closed = False
        crew.spawn(self._run)

    def post(self, message: Message) -> None:
        """Queue one message; on an outbox that was closed or is overfull it is lost with the conn."""
        if self._is_closed:
            return
        frame = to_frame(message)
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self._give_up()
        self._posted.set()

    def close(self) -> None:
        """Send nothing more; the greenlet ends. The conn stays its owner's to close."""
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
                with deadline(WRITE_DEADLINE_S, "writing to the control connection"):
                    self._conn.sendall(b"".join(frames))
            except ConnError:
                self._give_up()
                raise
