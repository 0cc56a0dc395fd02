"""Conns: a standard-library socket with watchers of the hub's loop, behind the usual blocking methods.

The hot path does not use gevent's socket class. Two things make a `SocketConn` fast, and each is explained
where it happens: a read watcher that stays started, and no read that is bound to fail.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from gevent import monkey
from gevent.hub import Hub, get_hub
from greenlet import getcurrent, greenlet

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.net.address import Sockaddr, format_address
from gnar_lib.net.contract import Counter
from gnar_lib.net.options import set_user_timeout

# In a patched process `socket.socket` is gevent's class; the hot path wants the original one.
socket_class: type[socket.socket] = monkey.get_original("socket", "socket")

READ, WRITE = 1, 2  # the event bits of gevent's `loop.io`
IOV_MAX = 1024  # buffers that one `sendmsg` takes, on every system that has it
CLOSED = frozenset({errno.EBADF, errno.ENOTSOCK})  # what a closed socket answers; ENOTSOCK on Windows

# Large enough that a bulk transfer shows itself by a full read, and that a short send leaves little to keep.
LENT_BYTES = 64 * 1024
_lent = memoryview(bytearray(LENT_BYTES))

# SO_LINGER with no time: close sends a reset. Its two numbers are short ones on Windows.
_LINGER_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

if sys.platform == "linux":
    import fcntl
    import termios

    _OUTQ = termios.TIOCOUTQ  # of a socket: SIOCOUTQ, tcp(7)

_log = logger.get("net")


def read_watcher(loop: Any, sock: socket.socket) -> Any:
    """Return what tells when `sock` can be read.

    When the loop can watch no more of them (on Windows, 1,024), closes the socket and raises `OSError` with
    the number that says the same of descriptors.
    """
    try:
        return loop.io(sock.fileno(), READ)
    except OSError as exc:
        sock.close()
        raise OSError(errno.EMFILE, str(exc)) from exc


class SocketConn:
    """A conn over a stream socket.

    `keep_reading` leaves the read watcher started between two reads, which saves two calls into the loop for
    each. A greenlet sets it for the time in which it waits on conns alone: an event of a started watcher
    switches to the greenlet wherever it waits. The conns' own waits expect that: a switch that brings another
    watcher than theirs stops that watcher (the event is not lost, it stays in the socket) and waits on.
    """

    __slots__ = (
        "_drained",
        "_hub",
        "_peer",
        "_read_waiter",
        "_reader",
        "_switch",
        "_unread",
        "_write_waiter",
        "_writer",
        "keep_reading",
        "sock",
        "was_read",
    )

    def __init__(self, sock: socket.socket, peer: Sockaddr | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.keep_reading = False
        self.was_read = False
        self._peer = peer
        self._hub: Hub = get_hub()
        self._switch = self._hub.switch
        self._reader: Any = read_watcher(self._hub.loop, sock)
        self._writer: Any = None  # made when a write first has to wait: most conns never do
        self._read_waiter: greenlet | None = None
        self._write_waiter: greenlet | None = None
        self._unread = b""
        self._drained = False

    def __repr__(self) -> str:
        state = "closed" if self.sock.fileno() < 0 else f"fd={self.sock.fileno()}"
        return f"<SocketConn {self} {state}>"

    def __str__(self) -> str:
        return format_address(self._peer)

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        # A read that took less than it asked for emptied the socket: the next one would only fail, so wait.
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
        """Read into `buffer`, waiting for the first byte; 0 at the end of the stream."""
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
        """Read up to `LENT_BYTES` into memory that all conns share: good until anything waits."""
        return _lent[: self.recv_into(_lent)]

    def pass_on(self, dst: SocketConn, counter: Counter) -> tuple[memoryview, int]:
        """Copy to `dst` while only reading waits; return what was read last, and how much of it was sent.

        That is when it is the end (nothing), all that a read may bring, or more than `dst` takes. It does
        what `borrow` and `send_now` do in turn, with everything at hand, since most of what a busy process
        does is this. For a conn that keeps reading.
        """
        recv_into, send, switch, watcher = self.sock.recv_into, dst.sock.send, self._switch, self._reader
        conn, lent = self, self.borrow()  # also what was put back
        counter.bytes += len(lent)
        try:
            while True:
                conn, count = dst, len(lent)
                sent = send(lent) if count else 0
                if sent < count or not 0 < count < LENT_BYTES:
                    return lent, sent
                conn = self
                self._read_waiter = me = getcurrent()
                if not watcher.active:
                    self._start(watcher, me.switch, watcher)
                while (woken := switch()) is not watcher:
                    woken.stop()
                self.was_read = True
                count = recv_into(_lent)
                counter.bytes += count
                lent = _lent[:count]
        except BlockingIOError:
            return (lent, 0) if conn is dst else self.pass_on(dst, counter)
        except OSError as exc:
            raise conn._failed(exc) from exc
        except BaseException:
            watcher.stop()
            raise
        finally:
            self._read_waiter = None
            self._drained = len(lent) < LENT_BYTES

    def recv_now(self, size: int) -> bytes | None:
        """Return what is there without waiting: None when nothing is, `b""` at the end of the stream."""
        if self._unread:
            return self.recv(size)
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what the next `recv` returns."""
        self._unread = data + self._unread

    @property
    def has_unread(self) -> bool:
        """Whether bytes were put back that only `recv` and `recv_into` bring."""
        return bool(self._unread)

    def wait_readable(self) -> None:
        """Wait until a read would not block, the end of the stream included."""
        watcher = self._reader
        self._read_waiter = current = getcurrent()
        if not watcher.active:
            self._start(watcher, current.switch, watcher)
        try:
            while (woken := self._switch()) is not watcher:
                woken.stop()
        except BaseException:
            watcher.stop()
            raise
        finally:
            self._read_waiter = None
        self.was_read = True
        if not self.keep_reading:
            watcher.stop()

    def stop_reading(self) -> None:
        """End the time of `keep_reading`: what is or comes in the socket wakes nobody any more."""
        self.keep_reading = False
        self._reader.stop()

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Take as many bytes as fit without waiting, and return how many."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._failed(exc) from exc

    def sendall(self, data: bytes | memoryview) -> None:
        """Send everything, waiting for room as often as it takes."""
        sent = self.send_now(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            self.wait_writable()
            rest = rest[self.send_now(rest) :]

    def wait_writable(self) -> None:
        """Wait until a write would not block."""
        if self._writer is None:
            self._refuse_closed()
            self._writer = self._hub.loop.io(self.sock.fileno(), WRITE)
        watcher = self._writer
        current = getcurrent()
        self._start(watcher, current.switch, watcher)
        self._write_waiter = current
        try:
            while (woken := self._switch()) is not watcher:
                woken.stop()
        finally:
            self._write_waiter = None
            watcher.stop()

    # ---- for a callback of the hub in place of a greenlet that waits ---------------------------------------

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the hub as soon as a read would not wait; never, when we close before that."""
        if self._unread:
            self._hub.loop.run_callback(callback)
        else:
            self._start(self._reader, self._became_readable, callback)

    def _became_readable(self, callback: Callable[[], None]) -> None:
        self._reader.stop()
        self._drained = False
        callback()

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if one does; only in the hub."""
        if self._read_waiter is not None and not self.closed:  # else `close` is about to wake it
            self._read_waiter.throw(error)

    def call_when_readable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` in the hub whenever bytes or the end are there, until `close`; None: no more."""
        if self.closed:
            return
        self._reader.stop()
        if callback is not None:
            self._reader.start(callback)

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` in the hub whenever a write would not block, until `close`; None: no more."""
        if self.closed:
            return
        if self._writer is None:
            self._writer = self._hub.loop.io(self.sock.fileno(), WRITE)
        self._writer.stop()
        if callback is not None:
            self._writer.start(callback)

    def recv_into_now(self, buffer: memoryview) -> int | None:
        """Read what is there without waiting: None when nothing is, 0 at the end of the stream."""
        if self._unread:
            return self.recv_into(buffer)
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    def sendmsg_now(self, buffers: list[bytes | bytearray | memoryview]) -> int:
        """Take as many bytes of `buffers` as fit without waiting, in one system call; return how many."""
        try:
            if sys.platform == "win32":  # which has no sendmsg
                sent = self.sock.send(b"".join(buffers))
            else:
                sent = self.sock.sendmsg(buffers[:IOV_MAX])
            return sent
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._failed(exc) from exc

    def limit_unsent(self, limit_bytes: int) -> None:
        """Let no more wait in the socket unsent: what is written next is not far behind then (TCP alone)."""
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and self.sock.family in (socket.AF_INET, socket.AF_INET6):
            try:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit_bytes)
            except OSError:
                _log.debug("%r: no limit on unsent bytes", self)

    def set_user_timeout(self, seconds: float) -> None:
        """Give this conn up when sent bytes stay unacknowledged for so long (Linux, TCP alone)."""
        set_user_timeout(self.sock, seconds)

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction; a peer that has gone meanwhile is no error."""
        try:
            self.sock.shutdown(how)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN and exc.errno not in CLOSED:
                raise self._failed(exc) from exc

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it has for the whole."""
        if self.sock.fileno() >= 0:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            except OSError:
                _log.debug("%r: no linger", self)
        self.close()

    def close(self) -> None:
        """Close, in any state and more than once; whoever waits on this conn gets `ConnClosed`."""
        if self.sock.fileno() < 0:
            return
        self._reader.stop()
        if self._writer is not None:
            self._writer.stop()
        if self._read_waiter is not None or self._write_waiter is not None:
            self._hub.loop.run_callback(self._wake_waiters)
        self.sock.close()

    @property
    def closed(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self.sock.fileno() < 0

    def _wake_waiters(self) -> None:
        """Wake those who waited when the conn was closed; their next call finds the socket gone."""
        if self._read_waiter is not None:
            self._read_waiter.switch(self._reader)
        if self._write_waiter is not None:
            self._write_waiter.switch(self._writer)

    def _start(self, watcher: Any, callback: Callable[..., object], argument: object) -> None:
        """Start `watcher`; on a closed conn it would never call anybody, so say so instead."""
        self._refuse_closed()
        watcher.start(callback, argument)

    def _refuse_closed(self) -> None:
        if self.sock.fileno() < 0:
            raise ConnClosed(f"{self}: closed")

    # ---- the rest ------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self.sock.fileno()

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end; `ConnError` when it has gone and was never asked for."""
        if self._peer is None:
            try:
                self._peer = self.sock.getpeername()
            except OSError as exc:
                raise self._failed(exc) from exc
        return self._peer

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer's kernel has not acknowledged; 0 where that cannot be asked."""
        count = 0
        if sys.platform == "linux":
            self._refuse_closed()
            try:
                count = int.from_bytes(fcntl.ioctl(self.sock.fileno(), _OUTQ, b"\0" * 4), sys.byteorder)
            except OSError as exc:
                raise self._failed(exc) from exc
        return count

    def getsockname(self) -> Sockaddr:
        """Return the address of this end."""
        try:
            name: Sockaddr = self.sock.getsockname()
        except OSError as exc:
            raise self._failed(exc) from exc
        return name

    def _failed(self, exc: OSError) -> ConnError:
        """Translate an error of the socket into one of ours."""
        reason = "closed" if exc.errno in CLOSED else (exc.strerror or str(exc))
        return ConnClosed(f"{self}: {reason}")
