"""A conn whose bytes are looked at on their way; whoever looks can neither change them nor stop them."""

from __future__ import annotations

import socket
from collections.abc import Callable

from gnar_lib import logger
from gnar_lib.errors import ProtocolError
from gnar_lib.inspect.conversation import Conversation
from gnar_lib.net import Conn, Sockaddr

_log = logger.get("inspect")


class Tapped:
    """A data connection, from which requests are read and to which answers are written. Fulfils `Conn`."""

    def __init__(self, conn: Conn, conversation: Conversation) -> None:
        self._conn = conn
        self._conversation: Conversation | None = conversation  # None: nobody looks any more
        self._unread_bytes = 0  # that were put back, and have been looked at

    def __str__(self) -> str:
        return str(self._conn)

    # ---- who looks -----------------------------------------------------------------------------------------

    def _look(self, act: Callable[[Conversation], None]) -> None:
        """Let the conversation know of something; if it makes nothing of that, it is not told any more."""
        conversation = self._conversation
        if conversation is None:
            return
        try:
            act(conversation)
        except ProtocolError as exc:
            self._give_up(f"what follows cannot be read: {exc}")
        except Exception:  # noqa: BLE001  (whatever it is, the user's connection goes on)
            _log.exception("a defect in the inspector; the connection goes on without it")
            self._give_up("a defect in the inspector")

    def _give_up(self, problem: str) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is None:
            return
        try:
            conversation.give_up(problem)
        except Exception:  # noqa: BLE001  (as above)
            _log.exception("a defect in the inspector")

    def _on_read(self, data: bytes | memoryview) -> None:
        if self._conversation is None:
            return
        seen = min(self._unread_bytes, len(data))
        self._unread_bytes -= seen
        fresh = bytes(data[seen:])
        if fresh:
            self._look(lambda conversation: conversation.requested(fresh))

    def _on_written(self, data: bytes | bytearray | memoryview) -> None:
        if self._conversation is not None and len(data):
            fresh = bytes(data)
            self._look(lambda conversation: conversation.answered(fresh))

    # ---- reading -------------------------------------------------------------------------------------------

    @property
    def was_read(self) -> bool:
        """See `Conn`."""
        return self._conn.was_read

    @was_read.setter
    def was_read(self, value: bool) -> None:
        self._conn.was_read = value

    def recv(self, size: int) -> bytes:
        """See `Conn`."""
        data = self._conn.recv(size)
        self._on_read(data)
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """See `Conn`."""
        count = self._conn.recv_into(buffer)
        self._on_read(buffer[:count])
        return count

    def borrow(self) -> memoryview | bytes:
        """See `Conn`."""
        lent = self._conn.borrow()
        self._on_read(lent)
        return lent

    def unread(self, data: bytes) -> None:
        """See `Conn`."""
        self._unread_bytes += len(data)
        self._conn.unread(data)

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """See `Conn`."""
        self._conn.call_once_readable(callback)

    def interrupt(self, error: BaseException) -> None:
        """See `Conn`."""
        self._conn.interrupt(error)

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """See `Conn`."""
        count = self._conn.send_now(data)
        self._on_written(data[:count])
        return count

    def sendall(self, data: bytes | memoryview) -> None:
        """See `Conn`."""
        self._conn.sendall(data)
        self._on_written(data)

    # ---- the end -------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """See `Conn`."""
        self._conn.shutdown(how)
        if how == socket.SHUT_WR:
            self._look(lambda conversation: conversation.answers_end())

    def abort(self) -> None:
        """See `Conn`."""
        self._conn.abort()
        self._give_up("the connection was reset")

    def close(self) -> None:
        """See `Conn`."""
        self._conn.close()
        self._give_up("")

    def getpeername(self) -> Sockaddr:
        """See `Conn`."""
        return self._conn.getpeername()

    @property
    def has_hung_up(self) -> bool:
        """See `Conn`."""
        return self._conn.has_hung_up

    def why_gone(self, now_s: float) -> str:
        """See `Conn`."""
        return self._conn.why_gone(now_s)
