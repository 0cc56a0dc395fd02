"""Dialling, listening and accepting, with the standard library's own sockets."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import gevent
from gevent.hub import get_hub
from greenlet import getcurrent

from gnar_lib.errors import DeadlineError, DialError, ListenError, PortTakenError
from gnar_lib.events import DescriptorsShort, emit
from gnar_lib.net.address import Sockaddr, format_address, is_unix, resolve
from gnar_lib.net.conn import SocketConn, socket_class
from gnar_lib.net.greenlets import Crew, deadline
from gnar_lib.net.options import set_common_options
from gnar_lib.net.switching import CLOSED, read_watcher

DIAL_TIMEOUT_S = 10.0
ACCEPT_BATCH = 64  # conns per turn of the loop, so that a flood of users does not starve those already here
ACCEPT_PAUSE_S = 0.2  # before accepting again when descriptors or memory ran out
BACKLOG_PAUSE_S = 0.01  # before dialling a Unix path again whose backlog is full
BACKLOG = 4096  # Linux cuts it to net.core.somaxconn
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Windows' own error numbers, of which `os.strerror` knows nothing, have their texts here.
_REASONS: dict[int, str] = getattr(socket, "errorTab", {})
# Has a port taken by one listener alone. SO_REUSEADDR, which elsewhere does no more than let a server listen
# again soon after its end, would let anybody share the port on Windows.
_OWN_PORT: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
_INHERITS = sys.platform != "win32"  # whether accepted sockets have the options of the listening one

Opened = TypeVar("Opened")


def dial(family: int, address: Sockaddr, timeout_s: float = DIAL_TIMEOUT_S, source: str = "") -> SocketConn:
    """Connect to an address that needs no look-up, optionally from the local address `source`.

    Raises `DialError` when it is refused, unreachable or does not answer in time.
    """
    try:
        sock = socket_class(family, socket.SOCK_STREAM)
        conn = SocketConn(sock, address)
    except OSError as exc:
        raise _dial_error(address, exc) from exc
    try:
        if not is_unix(family):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            sock.bind((source, 0))
        status = sock.connect_ex(address)
        if status in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            with deadline(timeout_s, f"connecting to {format_address(address)}"):
                status = _finish_dial(conn, family, address)
        if status:
            raise OSError(status, _REASONS.get(status) or os.strerror(status))
    except (OSError, DeadlineError) as exc:
        conn.close()
        raise _dial_error(address, exc) from exc
    except BaseException:
        conn.close()
        raise
    return conn


def _dial_error(address: Sockaddr, exc: Exception) -> DialError:
    reason = exc.strerror if isinstance(exc, OSError) else str(exc)
    return DialError(f"cannot connect to {format_address(address)}: {reason or exc}")


def _finish_dial(conn: SocketConn, family: int, address: Sockaddr) -> int:
    """Wait for a connect under way, and return how it ended: 0, or an error number."""
    if not is_unix(family):
        conn.wait_writable()
        return conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    # On a Unix path nothing is under way: the listener's backlog is full, and no event tells when it is not.
    while (status := conn.sock.connect_ex(address)) == errno.EWOULDBLOCK:
        gevent.sleep(BACKLOG_PAUSE_S)
    return status


def dial_host(host: str, port: int, timeout_s: float = DIAL_TIMEOUT_S, source: str = "") -> SocketConn:
    """Resolve a host and connect to the first of its addresses that answers; raises the last `DialError`."""
    return first_that_opens(
        resolve(host, port), lambda family, address: dial(family, address, timeout_s, source), host
    )


def first_that_opens(
    addresses: Iterable[tuple[int, Sockaddr]], open_one: Callable[[int, Sockaddr], Opened], name: object
) -> Opened:
    """Return what `open_one` made of the first address that it did not raise `DialError` for.

    Raises the last of those errors, or one that says that `name` has no address.
    """
    error: DialError | None = None
    try:
        for family, address in addresses:
            try:
                return open_one(family, address)
            except DialError as exc:
                error = exc
        raise error or DialError(f"{name} has no address")
    finally:
        error = None  # the error refers to this call: with both ways, its socket would wait for the collector


class Listener:
    """A listening socket that hands every new conn to a greenlet of its own."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = get_hub().loop
        self._watcher: Any = read_watcher(self._loop, sock)
        # Repeating, since a timer of libev that does not is good for one start.
        self._pause: Any = self._loop.timer(ACCEPT_PAUSE_S, ACCEPT_PAUSE_S)
        self._handle: Callable[[SocketConn], None] | None = None
        self._crew: Crew | None = None

    def serve(self, crew: Crew, handle: Callable[[SocketConn], None]) -> None:
        """Accept from now on; `handle(conn)` runs in a greenlet of `crew`, owns the conn and may block."""
        self._crew, self._handle = crew, handle
        self._watcher.start(self._accept_batch)

    def accept(self) -> SocketConn:
        """Wait for one conn and return it."""
        current = getcurrent()
        while True:
            conn = self._accept_one()
            if conn is not None:
                return conn
            self._watcher.start(current.switch)
            try:
                get_hub().switch()
            finally:
                self._watcher.stop()

    def close(self) -> None:
        """Stop listening; conns already accepted stay."""
        self._watcher.stop()
        self._pause.stop()
        self.sock.close()

    def getsockname(self) -> Sockaddr:
        """Return the address that is listened on."""
        name: Sockaddr = self.sock.getsockname()
        return name

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return int(self.sock.getsockname()[1])

    def _accept_batch(self) -> None:
        """Accept until it would block; runs in the hub, so each conn's greenlet is entered at once."""
        assert self._crew is not None  # noqa: S101  (serve set it)
        assert self._handle is not None  # noqa: S101  (as above)
        try:
            for _ in range(ACCEPT_BATCH):
                conn = self._accept_one()
                if conn is None:
                    return
                self._crew.enter(self._handle, conn)
                if self.sock.fileno() < 0:  # the handler of this very conn closed us
                    return
        except OSError as exc:
            # Nothing ends because descriptors ran out: the users wait in the backlog until some are free.
            emit(DescriptorsShort, "accepting waits", exc.strerror or str(exc))
            self._watcher.stop()
            self._pause.start(self._resume)

    def _resume(self) -> None:
        self._pause.stop()
        self._watcher.start(self._accept_batch)

    def _accept_one(self) -> SocketConn | None:
        """Return a new conn, None when there is none; `OSError` when descriptors or memory ran out."""
        while True:
            try:
                # The original class's own accept() would hand back gevent's class in a patched process.
                fd, peer = self.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno in _OUT_OF_RESOURCES:
                    raise
                if exc.errno in CLOSED:
                    return None
                continue  # this one conn failed before it was accepted (ECONNABORTED and its like): the next
            sock = socket_class(self.sock.family, self.sock.type, self.sock.proto, fileno=fd)
            if not _INHERITS:
                with suppress(OSError):  # it has gone already, which its first read tells
                    set_common_options(sock)
            return SocketConn(sock, peer)


def listen(host: str, port: int) -> Listener:
    """Listen on a TCP address; an empty host means every address, IPv4 and IPv6. Port 0: any free one.

    Raises `PortTakenError` when another socket has it, `ListenError` when it may not be listened on.
    """
    if host:
        family, address = resolve(host, port)[0]
        return _listen_on(family, address)
    try:
        return _listen_on(socket.AF_INET6, ("::", port))
    except PortTakenError:
        raise
    except ListenError:  # a machine without IPv6
        return _listen_on(socket.AF_INET, ("0.0.0.0", port))


def _listen_on(family: int, address: Sockaddr) -> Listener:
    sock = None
    try:
        sock = socket_class(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, _OWN_PORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        set_common_options(sock)  # accepted sockets inherit them, which saves system calls per conn
        sock.bind(address)
        sock.listen(BACKLOG)
        return Listener(sock)
    except (OSError, OverflowError) as exc:
        if sock is not None:
            sock.close()
        raise listen_error(address, exc) from exc


def listen_error(address: Sockaddr, exc: Exception) -> ListenError:
    """Translate what `bind` or `listen` raised."""
    where = format_address(address)
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        return PortTakenError(f"{where} is already in use")
    reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return ListenError(f"cannot listen on {where}: {reason}")
