"""A conn to which nothing is written: for a pair that carries bytes in one direction alone."""

from __future__ import annotations

from collections.abc import Callable

from gnar_lib.net import Conn, Sockaddr


class Muted:
    """A conn that can be read as before, and throws away what is written. Fulfils `Conn`.

    The other end of a pair is read to its end, so that it is never held up and its end is noticed.
    """

    def __init__(self, conn: Conn) -> None:
        self._conn = conn

    def __str__(self) -> str:
        return str(self._conn)

    @property
    def was_read(self) -> bool:
        """See `Conn`."""
        return self._conn.was_read

    @was_read.setter
    def was_read(self, value: bool) -> None:
        self._conn.was_read = value

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Throw all bytes away."""
        return len(data)

    def sendall(self, data: bytes | memoryview) -> None:
        """Throw all bytes away."""

    def recv(self, size: int) -> bytes:
        """See `Conn`."""
        return self._conn.recv(size)

    def recv_into(self, buffer: memoryview) -> int:
        """See `Conn`."""
        return self._conn.recv_into(buffer)

    def borrow(self) -> memoryview | bytes:
        """See `Conn`."""
        return self._conn.borrow()

    def unread(self, data: bytes) -> None:
        """See `Conn`."""
        self._conn.unread(data)

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """See `Conn`."""
        self._conn.call_once_readable(callback)

    def interrupt(self, error: BaseException) -> None:
        """See `Conn`."""
        self._conn.interrupt(error)

    def shutdown(self, how: int) -> None:
        """See `Conn`."""
        self._conn.shutdown(how)

    def abort(self) -> None:
        """See `Conn`."""
        self._conn.abort()

    def close(self) -> None:
        """See `Conn`."""
        self._conn.close()

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
