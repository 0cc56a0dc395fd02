"""Listens on Unix paths, for conns or datagrams; touches no file but the sockets' own."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gnar_lib import logger
from gnar_lib.errors import ListenError, PortTakenError
from gnar_lib.net.address import unix_family
from gnar_lib.net.conn import socket_class
from gnar_lib.net.datagram import DatagramSocket, with_buffers
from gnar_lib.net.endpoint import BACKLOG, Listener, listen_error
from gnar_lib.net.options import SocketOption, set_options

_EVERYTHING = 0o777
# What a connect to the path answers while a socket is bound there; EPROTOTYPE: a socket of another type.
_SOMEBODY_LISTENS = (0, errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE)

_log = logger.get("net")


@dataclass(frozen=True, slots=True)
class SocketFileSettings:
    """What the file of a socket is like."""

    mode: int | None = None  # permissions, from the first moment; None leaves them to the umask
    user: int = -1  # the number of the owner; -1: whoever makes the file
    group: int = -1  # the same of the group
    keep: bool = False  # whether the file stays when the socket is closed


AS_USUAL = SocketFileSettings()


class SocketFile:
    """The file of a socket that is bound to `path`; with `keep`, `remove` does nothing."""

    def __init__(self, path: str, *, keep: bool) -> None:
        self._path = os.path.abspath(path)  # since the working directory may change
        self._file = None if keep else _identity(path)

    def remove(self) -> None:
        """Remove the file, unless another file has the path by now; to be called before the socket is closed.

        As long as the socket is open, the system gives the file's inode to no other file.
        """
        ours, self._file = self._file, None
        if ours is not None and _identity(self._path) == ours:
            try:
                os.unlink(self._path)
            except OSError as exc:
                _log.warning("cannot remove %s: %s", self._path, exc.strerror)


class UnixListener(Listener):
    """A listener on a Unix path; `close` removes the file, too."""

    def __init__(self, sock: socket.socket, path: str, *, keep_file: bool = False) -> None:
        super().__init__(sock)
        self._file = SocketFile(path, keep=keep_file)

    def close(self) -> None:
        """Stop listening and remove the file; conns that were accepted stay."""
        self._file.remove()
        super().close()


def listen_unix(
    path: str, file: SocketFileSettings = AS_USUAL, options: Iterable[SocketOption] = ()
) -> UnixListener:
    """Return a listener on a Unix path; the caller closes it.

    A file that is left of an earlier socket is replaced. Raises `PortTakenError` when somebody listens there,
    `ListenError` when the path is something else or the file cannot be made, and `UsageError` where there are
    no Unix sockets.
    """
    sock = _bound(path, socket.SOCK_STREAM, file)
    try:
        set_options(sock, options)
        sock.listen(BACKLOG)
    except OSError as exc:
        SocketFile(path, keep=file.keep).remove()
        sock.close()
        raise listen_error(path, exc) from exc
    return UnixListener(sock, path, keep_file=file.keep)


def bind_unix_datagram(path: str, file: SocketFileSettings = AS_USUAL) -> DatagramSocket:
    """Return a socket that receives datagrams at a Unix path; everything else is as with `listen_unix`."""
    sock = with_buffers(_bound(path, socket.SOCK_DGRAM, file))
    return DatagramSocket(sock, before_close=SocketFile(path, keep=file.keep).remove)


def _bound(path: str, kind: int, file: SocketFileSettings) -> socket.socket:
    sock = socket_class(unix_family(), kind)
    try:
        _remove_stale(path)
        with _exact_mode(file.mode):
            sock.bind(path)
        _give_away(path, file)
        return sock
    except (OSError, ValueError) as exc:
        sock.close()
        raise listen_error(path, exc) from exc
    except ListenError:
        sock.close()
        raise


def _remove_stale(path: str) -> None:
    """Remove the file of a socket on which nobody listens; raises `ListenError` if anything else is there."""
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
    elif status in _SOMEBODY_LISTENS:
        raise PortTakenError(f"{path} is already in use")
    elif status != errno.ENOENT:
        raise OSError(status, os.strerror(status))


def _give_away(path: str, file: SocketFileSettings) -> None:
    """Give the file of a socket to the owner and the group it is to have; raises `ListenError`.

    To be called before `listen`: until then nobody can connect.
    """
    if (file.user, file.group) == (-1, -1):
        return
    if sys.platform != "win32":
        try:
            os.chown(path, file.user, file.group, follow_symlinks=False)
        except OSError as exc:
            SocketFile(path, keep=False).remove()
            reason = f"cannot give {path} to its owner, which only root can: {exc.strerror}"
            raise ListenError(reason) from exc


@contextmanager
def _exact_mode(mode: int | None) -> Iterator[None]:
    """Give a socket that is bound in the block exactly these permissions: a chmod would come too late."""
    if mode is None:
        yield
        return
    before = os.umask(_EVERYTHING & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells one file from another; None if there is no file, or none that gnar may see."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
