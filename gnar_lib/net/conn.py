"""Conns over stream sockets: the standard library's own socket behind the usual blocking methods.

The hot path does not use gevent's socket class. How a conn waits is in `switching.py`.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable

from gevent import monkey

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, WriteError
from gnar_lib.net.address import Sockaddr, format_address
from gnar_lib.net.contract import Conn, Counter
from gnar_lib.net.lingering import is_owed, linger
from gnar_lib.net.options import dead_after_s, set_user_timeout, try_option
from gnar_lib.net.progress import has_hung_up, has_unreceived, tcp_progress, unacknowledged
from gnar_lib.net.switching import CLOSED, LENT, WaitingSocket

# In a patched process `socket.socket` is gevent's class; the hot path wants the original one.
socket_class: type[socket.socket] = monkey.get_original("socket", "socket")

IOV_MAX = 1024  # buffers that one `sendmsg` takes, on every system that has it

# SO_LINGER with no time: `close` sends a reset. The two numbers are short ones on Windows.
_LINGER = "hh" if sys.platform == "win32" else "ii"
_LINGER_RESET, _LINGER_NOT = struct.pack(_LINGER, 1, 0), struct.pack(_LINGER, 0, 0)

_log = logger.get("net")


class SocketConn(WaitingSocket):
    """A conn over a stream socket, which `close` closes. Fulfils `EventedConn`, which describes its methods.

    `peer` is the address of the other end, if it is known already.
    """

    __slots__ = ("_peer", "_stuck_s", "_unread")

    def __init__(self, sock: socket.socket, peer: Sockaddr | None = None) -> None:
        super().__init__(sock)
        self._peer = peer
        self._unread = b""  # bytes that were put back
        self._stuck_s = 0.0  # since when the peer has acknowledged nothing of what it is owed; 0: it is not

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self.fileno()}"
        return f"<SocketConn {self} {state}>"

    def __str__(self) -> str:
        return format_address(self._peer)

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        if self._drained:
            self.wait_readable()
        while True:
            try:
                data = self.sock.recv(size)
            except BlockingIOError:
                self.wait_readable()
            except OSError as exc:
                raise self._failed(exc) from exc
            else:
                self._drained = len(data) < size
                return data

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; return the count, 0 at the end of the stream."""
        if self._unread:
            data = self.recv(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        if self._drained:
            self.wait_readable()
        while True:
            try:
                count = self.sock.recv_into(buffer)
            except BlockingIOError:
                self.wait_readable()
            except OSError as exc:
                raise self._failed(exc) from exc
            else:
                self._drained = count < len(buffer)
                return count

    def borrow(self) -> memoryview:
        """Wait for up to 64 KiB and return them; the memory is reused as soon as any greenlet waits."""
        return LENT[: self.recv_into(LENT)]

    def pass_on(self, dst: SocketConn, counter: Counter) -> tuple[memoryview, int]:
        """Copy to `dst`, for as long as nothing but reading has to wait. For a conn with `keep_reading`.

        Returns what was read last, and how many bytes of it were sent: when nothing was read (the end of the
        stream), when a read was full (`LENT_BYTES`), or when `dst` does not take all. `counter` counts what
        is read. The memory is reused as soon as any greenlet waits. Raises `ConnClosed`.
        """
        lent = self.borrow()
        counter.bytes += len(lent)
        return self._pass_on(lent, dst, counter)

    def recv_now(self, size: int) -> bytes | None:
        """Return at most `size` bytes without waiting: None if there are none, `b""` at the end."""
        if self._unread:
            return self.recv(size)
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    def recv_into_now(self, buffer: memoryview) -> int | None:
        """Read into `buffer` without waiting: None if there is nothing, 0 at the end of the stream."""
        if self._unread:
            return self.recv_into(buffer)
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    def unread(self, data: bytes) -> None:
        """Put bytes back: the next read returns them first."""
        self._unread = data + self._unread

    @property
    def has_unread(self) -> bool:
        """Whether `unread` has put bytes back that no read has returned yet: no event tells of those."""
        return bool(self._unread)

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the hub when a read would not wait; never, if this end closes before."""
        if self._unread:
            self._hub.loop.run_callback(self._call_unless_closed, callback)
        else:
            self._call_once_readable(callback)

    def _call_unless_closed(self, callback: Callable[[], None]) -> None:
        if not self.closed:
            callback()

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as fit without waiting, and return how many that were."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._failed(exc, WriteError) from exc

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""
        sent = self.send_now(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            self.wait_writable()
            rest = rest[self.send_now(rest) :]

    def sendmsg_now(self, buffers: list[bytes | bytearray | memoryview]) -> int:
        """Send as many bytes of all `buffers`, in order, as fit without waiting; return how many."""
        try:
            if sys.platform == "win32":  # which has no sendmsg
                sent = self.sock.send(b"".join(buffers))
            else:
                sent = self.sock.sendmsg(buffers[:IOV_MAX])
            return sent
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._failed(exc, WriteError) from exc

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction (half-close); no error if the peer has gone, or if this end is closed."""
        try:
            self.sock.shutdown(how)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN and exc.errno not in CLOSED:
                raise self._failed(exc) from exc

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it received for the whole.

        The reset comes behind what was sent before, which a peer that is still there gets.
        """
        if not self.closed:
            self.reset_if_killed(wanted=True)  # `close` resets as well
            if is_owed(self.sock):
                linger(self.sock)
        self.close()

    # ---- the kernel's side of the conn ---------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self.sock.fileno()

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end; `ConnClosed` if nobody asked before the peer left."""
        if self._peer is None:
            try:
                self._peer = self.sock.getpeername()
            except OSError as exc:
                raise self._failed(exc) from exc
        return self._peer

    def name_peer(self, peer: Sockaddr) -> None:
        """Let the other end have this address from now on: a proxy has connected this conn to it."""
        self._peer = peer

    @property
    def has_hung_up(self) -> bool:
        """Whether the other end sends no more, or has gone, also while bytes are unread (TCP on Linux)."""
        return has_hung_up(self.sock)

    @property
    def has_unreceived(self) -> bool:
        """Whether the kernel has bytes for this end, so that `close` may throw away what was sent."""
        return has_unreceived(self.sock)

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come any more, if the other end has gone without a word; else empty."""
        progress = tcp_progress(self.sock)
        if progress is None:
            return ""
        if progress.has_failed:
            return f"{self}: the other end has gone"
        if not progress.is_owed:
            self._stuck_s = 0.0
        else:
            self._stuck_s = max(self._stuck_s or now_s, now_s - progress.silent_s)
            if now_s - self._stuck_s > dead_after_s():
                return f"{self}: nothing acknowledged for {now_s - self._stuck_s:.0f} s"
        return ""

    def limit_unsent(self, limit_bytes: int) -> None:
        """Let at most about `limit_bytes` wait unsent in the socket, so that what follows is soon sent.

        Only TCP on Linux and macOS can do that; elsewhere nothing happens.
        """
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and self.sock.family in (socket.AF_INET, socket.AF_INET6):
            try_option(self.sock, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit_bytes)

    def set_user_timeout(self, seconds: float) -> None:
        """Give the conn up when sent bytes stay unacknowledged for so long (TCP on Linux alone)."""
        set_user_timeout(self.sock, seconds)

    def reset_if_killed(self, *, wanted: bool) -> None:
        """Have the peer get a reset, and no end, if this process is killed, or if it closes the conn."""
        try:
            option = _LINGER_RESET if wanted else _LINGER_NOT
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        except OSError:
            _log.debug("%r: no linger", self)

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer's kernel has not acknowledged; 0 where nobody can tell.

        Raises `ConnClosed`.
        """
        self._refuse_closed()
        try:
            return unacknowledged(self.sock)
        except OSError as exc:
            raise self._failed(exc) from exc


def recv_exactly(conn: Conn, size: int) -> bytes:
    """Return `size` bytes of a conn; raises `ConnClosed` if the conn ends before that."""
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        if not more:
            raise ConnClosed("the connection ended")
        data += more
    return data
