"""Listens and accepts, with the standard library's own sockets."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gevent.hub import get_hub

from gnar_lib.errors import ConnError, ListenError, PortTakenError
from gnar_lib.events import DescriptorsShort, emit
from gnar_lib.net.address import Sockaddr, format_address, resolve
from gnar_lib.net.conn import SocketConn, socket_class
from gnar_lib.net.descriptors import descriptors
from gnar_lib.net.greenlets import Crew
from gnar_lib.net.options import SocketOption, set_common_options, set_options, try_option
from gnar_lib.net.switching import CLOSED, read_watcher

ACCEPT_BATCH = 64  # conns per turn of the loop, so that a flood of users does not starve those already here
ACCEPT_PAUSE_S = 0.2  # before accepting again when descriptors or memory ran out
BACKLOG = 4096  # Linux cuts it to net.core.somaxconn
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The option with which nobody else can listen on the same port. SO_REUSEADDR lets a server listen again soon
# after its end, and does no more than that; but on Windows it would let anybody share the port.
_EXCLUSIVE_PORT: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
_INHERITS_OPTIONS = sys.platform != "win32"  # accepted sockets have the options of the listening one


class Listener:
    """A listening socket that gives every new conn a greenlet of its own; `close` closes the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        # What the accepted sockets are, as numbers: as properties of a socket they are looked up in enums.
        self._kind = int(sock.family), int(sock.type), sock.proto
        loop = get_hub().loop
        self._watcher: Any = read_watcher(loop, sock)  # tells that users wait to be accepted
        # Ends a pause in accepting. It repeats, since a timer of libev that does not is good for one start.
        self._pause: Any = loop.timer(ACCEPT_PAUSE_S, ACCEPT_PAUSE_S)
        self._is_for_users = False  # accepts only while there is room for users

    def serve(self, crew: Crew, handle: Callable[[SocketConn], None], *, is_for_users: bool = False) -> None:
        """Accept from now on.

        `handle(conn)` runs in a greenlet of `crew`, may wait, and closes the conn. With `is_for_users`,
        accepting pauses while users have all the descriptors that they may have.
        """
        self._is_for_users = is_for_users
        self._go_on(crew, handle)

    def _go_on(self, crew: Crew, handle: Callable[[SocketConn], None]) -> None:
        self._pause.stop()
        if self.sock.fileno() >= 0:  # else it was closed, and its number may be that of something else
            self._watcher.start(self._accept_batch, crew, handle)

    def pause(self) -> None:
        """Accept nobody until `serve` is called again: whoever connects waits in the kernel's backlog."""
        self._watcher.stop()
        self._pause.stop()
        descriptors.leave(self)

    def close(self) -> None:
        """Stop listening; conns that were accepted stay. More than once does no harm."""
        if self.sock.fileno() < 0:
            return
        self.pause()
        self.sock.close()
        descriptors.taken -= 1

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return int(self.sock.getsockname()[1])

    def _accept_batch(
        self, crew: Crew, handle: Callable[[SocketConn], None], batch: int = ACCEPT_BATCH
    ) -> None:
        """Accept until nobody waits, or until others have to have their turn; runs in the hub."""
        try:
            for _ in range(batch):
                if self._is_for_users and not descriptors.has_room():
                    self._wait_for_room(crew, handle)
                    return
                conn = self._accept_one()
                if conn is None:
                    return
                crew.enter(handle, conn)
                if not self._watcher.active:  # `handle` has closed this listener, or paused it
                    return
        except OSError as exc:
            # Nothing ends because descriptors ran out: the users wait in the backlog until some are free.
            emit(DescriptorsShort, "accepting waits", exc.strerror or str(exc))
            self._watcher.stop()
            self._pause.start(self._go_on, crew, handle)

    def _wait_for_room(self, crew: Crew, handle: Callable[[SocketConn], None]) -> None:
        """Leave users in the backlog until there is room for one more, whose turn it is then."""

        def go_on() -> None:
            self._go_on(crew, handle)
            self._accept_batch(crew, handle, 1)

        self._watcher.stop()
        if not descriptors.is_short:
            emit(DescriptorsShort, "users wait", descriptors.why_short)
        descriptors.wait(self, go_on)

    def _accept_one(self) -> SocketConn | None:
        """Return a new conn, None if nobody waits; raises `OSError` when descriptors or memory ran out.

        So it does when the listening socket itself has failed, as every conn seems to have then.
        """
        for left in reversed(range(ACCEPT_BATCH)):
            try:
                # The original class's own accept() would hand back gevent's class in a patched process.
                fd, peer = self.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno in _OUT_OF_RESOURCES or not left:
                    raise
                if exc.errno in CLOSED:
                    return None
                continue  # this conn failed before it was accepted (ECONNABORTED and the like)
            sock = socket_class(*self._kind, fileno=fd)
            if not _INHERITS_OPTIONS:
                set_common_options(sock)
            return SocketConn(sock, peer)
        return None


def listen(host: str, port: int, options: Iterable[SocketOption] = ()) -> Listener:
    """Return a listener on a TCP address; the caller closes it.

    An empty host means every address, of IPv4 and IPv6; port 0 has the system choose a port. The sockets that
    are accepted have the `options`, too. Raises
    `PortTakenError` when another socket has the port, `ListenError` when gnar must not listen there, and
    `DialError` when the host is unknown.
    """
    if host:
        family, address = resolve(host, port)[0]
        return _listen_on(family, address, options)
    try:
        return _listen_on(socket.AF_INET6, ("::", port), options)
    except PortTakenError:
        raise
    except ListenError:  # a machine without IPv6
        return _listen_on(socket.AF_INET, ("0.0.0.0", port), options)


def _listen_on(family: int, address: Sockaddr, options: Iterable[SocketOption]) -> Listener:
    sock = None
    try:
        sock = socket_class(family, socket.SOCK_STREAM)
        try_option(sock, socket.SOL_SOCKET, _EXCLUSIVE_PORT, 1)
        if family == socket.AF_INET6:
            try_option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        set_common_options(sock)  # accepted sockets inherit them, which saves system calls per conn
        set_options(sock, options)
        sock.bind(address)
        sock.listen(BACKLOG)
        return Listener(sock)
    except (OSError, OverflowError) as exc:
        if sock is not None:
            sock.close()
        raise listen_error(address, exc) from exc


def listen_error(address: Sockaddr, exc: Exception) -> ListenError:
    """Return the error of ours for what `bind` or `listen` has raised."""
    where = format_address(address)
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        return PortTakenError(f"{where} is already in use")
    reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return ListenError(f"cannot listen on {where}: {reason}")


def is_denied(error: ConnError) -> bool:
    """Tell whether an address cannot be listened on since this user has no right to."""
    return getattr(error.__cause__, "errno", None) in (errno.EACCES, errno.EPERM)
