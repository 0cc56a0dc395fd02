"""A conn wrapped in another: the smallest thing that TLS or WebSocket will be as a transport."""

from __future__ import annotations

from collections.abc import Callable

from gevent.hub import get_hub

from gnar_lib.net import EventedConn, Sockaddr

KEY = 0x55
LENT_BYTES = 64 * 1024

_TABLE = bytes(each ^ KEY for each in range(256))


class WrappedConn:
    """Fulfils `EventedConn` over another conn, which `close` closes, and knows nothing else of that conn.

    Each byte is changed on its way, so that whoever reaches past the wrapper is found out.
    """

    def __init__(self, inner: EventedConn) -> None:
        self._inner = inner
        self._unread = b""  # bytes that were put back, as they come out of the wrapper

    @property
    def was_read(self) -> bool:
        return self._inner.was_read

    @was_read.setter
    def was_read(self, value: bool) -> None:
        self._inner.was_read = value

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        return self._take_unread(size) or self._inner.recv(size).translate(_TABLE)

    def recv_into(self, buffer: memoryview) -> int:
        return self._put_into(buffer, self.recv(len(buffer)))

    def borrow(self) -> bytes:
        return self.recv(LENT_BYTES)

    def recv_now(self, size: int) -> bytes | None:
        if self._unread:
            return self._take_unread(size)
        data = self._inner.recv_now(size)
        return data if data is None else data.translate(_TABLE)

    def recv_into_now(self, buffer: memoryview) -> int | None:
        data = self.recv_now(len(buffer))
        return data if data is None else self._put_into(buffer, data)

    def _take_unread(self, size: int) -> bytes:
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    @staticmethod
    def _put_into(buffer: memoryview, data: bytes) -> int:
        buffer[: len(data)] = data
        return len(data)

    def unread(self, data: bytes) -> None:
        self._unread = data + self._unread

    @property
    def has_unread(self) -> bool:
        return bool(self._unread) or self._inner.has_unread

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        if self._unread:
            get_hub().loop.run_callback(self._call_unless_closed, callback)
        else:
            self._inner.call_once_readable(callback)

    def _call_unless_closed(self, callback: Callable[[], None]) -> None:
        if not self.closed:
            callback()

    def call_when_readable(self, callback: Callable[[], None] | None) -> None:
        self._inner.call_when_readable(callback)

    def interrupt(self, error: BaseException) -> None:
        self._inner.interrupt(error)

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        return self._inner.send_now(bytes(data).translate(_TABLE))

    def sendall(self, data: bytes | memoryview) -> None:
        self._inner.sendall(bytes(data).translate(_TABLE))

    def sendmsg_now(self, buffers: list[bytes | bytearray | memoryview]) -> int:
        return self._inner.sendmsg_now([bytes(each).translate(_TABLE) for each in buffers])

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        self._inner.call_when_writable(callback)

    def limit_unsent(self, limit_bytes: int) -> None:
        self._inner.limit_unsent(limit_bytes)

    def unacknowledged(self) -> int:
        return self._inner.unacknowledged()

    def reset_if_killed(self, *, wanted: bool) -> None:
        self._inner.reset_if_killed(wanted=wanted)

    def set_user_timeout(self, seconds: float) -> None:
        self._inner.set_user_timeout(seconds)

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        self._inner.shutdown(how)

    def abort(self) -> None:
        self._inner.abort()

    def close(self) -> None:
        self._inner.close()

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def getpeername(self) -> Sockaddr:
        return self._inner.getpeername()

    @property
    def has_hung_up(self) -> bool:
        return self._inner.has_hung_up

    def why_gone(self, now_s: float) -> str:
        return self._inner.why_gone(now_s)
