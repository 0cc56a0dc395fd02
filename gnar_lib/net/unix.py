"""Listening on a Unix path, for conns or datagrams: the socket's own file, and nobody else's."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from gnar_lib import logger
from gnar_lib.errors import ListenError, PortTakenError
from gnar_lib.net.address import unix_family
from gnar_lib.net.conn import socket_class
from gnar_lib.net.datagram import DatagramSocket, with_buffers
from gnar_lib.net.endpoint import BACKLOG, Listener, listen_error

_EVERYTHING = 0o777

_log = logger.get("net")


class SocketFile:
    """The file of a bound socket; it goes with it, unless `keep`, or another took the path meanwhile."""

    def __init__(self, path: str, *, keep: bool) -> None:
        self._path = os.path.abspath(path)  # the working directory may change
        self._file = None if keep else _identity(path)

    def remove(self) -> None:
        """Remove it if it is still ours; to be called before the socket is closed.

        While the socket is open its inode is not given to another file.
        """
        ours, self._file = self._file, None
        if ours is not None and _identity(self._path) == ours:
            try:
                os.unlink(self._path)
            except OSError as exc:
                _log.warning("cannot remove %s: %s", self._path, exc.strerror)


class UnixListener(Listener):
    """A listener whose file goes when it closes."""

    def __init__(self, sock: socket.socket, path: str, *, keep_file: bool = False) -> None:
        super().__init__(sock)
        self._file = SocketFile(path, keep=keep_file)

    def close(self) -> None:
        """Stop listening and remove the file; conns already accepted stay."""
        self._file.remove()
        super().close()


def listen_unix(path: str, mode: int | None = None, *, keep_file: bool = False) -> UnixListener:
    """Listen on a Unix path, with the permissions `mode` from the first moment; None: as the umask has it.

    The file of a socket that nobody listens on any more is replaced. Raises `PortTakenError` when somebody
    does, `ListenError` when something else has the path or it cannot be made, `UsageError` where there are no
    Unix sockets.
    """
    sock = _bound(path, socket.SOCK_STREAM, mode)
    try:
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise listen_error(path, exc) from exc
    return UnixListener(sock, path, keep_file=keep_file)


def bind_unix_datagram(path: str, mode: int | None = None, *, keep_file: bool = False) -> DatagramSocket:
    """Receive datagrams at a Unix path; everything else is as with `listen_unix`."""
    sock = with_buffers(_bound(path, socket.SOCK_DGRAM, mode))
    return DatagramSocket(sock, before_close=SocketFile(path, keep=keep_file).remove)


def _bound(path: str, kind: int, mode: int | None) -> socket.socket:
    sock = socket_class(unix_family(), kind)
    try:
        _remove_stale(path)
        with _exact_mode(mode):
            sock.bind(path)
        return sock
    except (OSError, ValueError) as exc:
        sock.close()
        raise listen_error(path, exc) from exc
    except ListenError:
        sock.close()
        raise


def _remove_stale(path: str) -> None:
    """Remove the file of a socket that nobody listens on; leave anything else, and say what it is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"cannot listen on {path}: it exists and is not a socket")
    with socket_class(unix_family(), socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        status = probe.connect_ex(path)
    if status == errno.ECONNREFUSED:
        os.unlink(path)
    elif status in (
        0,
        errno.EAGAIN,
        errno.EINPROGRESS,
        errno.EPROTOTYPE,
    ):  # EPROTOTYPE: of another socket type
        raise PortTakenError(f"{path} is already in use")
    elif status != errno.ENOENT:
        raise OSError(status, os.strerror(status))


@contextmanager
def _exact_mode(mode: int | None) -> Iterator[None]:
    """Have a socket that is bound in the block get exactly these permissions: a chmod would come too late."""
    if mode is None:
        yield
        return
    before = os.umask(_EVERYTHING & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells one file from another; None when there is none, or none to be seen."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
