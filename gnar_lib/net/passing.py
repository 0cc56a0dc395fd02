"""Passes sockets from one process to another over a Unix socket; knows nothing of what they are for."""

from __future__ import annotations

import array
import os
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from gnar_lib.errors import ConnError, ProtocolError
from gnar_lib.net.conn import SocketConn, recv_exactly, socket_class

MAX_SOCKETS = 128  # that go with one message; Linux takes 253
MAX_MESSAGE_BYTES = 4 << 20  # names of 1,024 characters for each socket, as JSON in ASCII
_LENGTH = struct.Struct("!I")  # in front of each message; the sockets go with it
_UCRED = struct.Struct("3i")  # struct ucred of Linux, unix(7): process, user, group


def send_with_sockets(conn: SocketConn, message: bytes, sockets: Sequence[socket.socket] = ()) -> None:
    """Send a message, with up to `MAX_SOCKETS` sockets, which stay open here, too; raises `ConnError`.

    The peer has to take the sockets before more are sent: the system limits how many are on their way.
    """
    header = _LENGTH.pack(len(message))
    sent = _send_rights(conn, header, sockets)
    conn.sendall(header[sent:] + message)


def _send_rights(conn: SocketConn, header: bytes, sockets: Sequence[socket.socket]) -> int:
    """Send `header` together with the sockets; return how many of its bytes were sent, one at least."""
    if sys.platform != "win32":
        numbers = array.array("i", [sock.fileno() for sock in sockets])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if sockets else []
        while True:
            try:
                return conn.sock.sendmsg([header], rights)
            except BlockingIOError:
                conn.wait_writable()
            except OSError as exc:
                raise ConnError(f"cannot pass sockets on: {exc.strerror or exc}") from exc
    raise ConnError("Windows passes no sockets on")


def recv_with_sockets(conn: SocketConn) -> tuple[bytes, list[socket.socket]]:
    """Receive a message, and the sockets that came with it, which the caller closes.

    Raises `ConnClosed`, `ProtocolError`, or `ConnError` if this process may not have so many descriptors.
    """
    header, sockets, is_cut = _recv_rights(conn)
    try:
        if is_cut:
            raise ConnError("this process may not have so many descriptors; raise the limit (ulimit -n)")
        header += recv_exactly(conn, _LENGTH.size - len(header))
        (length,) = _LENGTH.unpack(header)
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message of {length} bytes")
        return recv_exactly(conn, length), sockets
    except BaseException:
        for sock in sockets:
            sock.close()
        raise


def _recv_rights(conn: SocketConn) -> tuple[bytes, list[socket.socket], bool]:
    """Receive what there is of a header, the sockets with it, and whether some of them did not fit."""
    if sys.platform != "win32":
        conn.wait_readable()
        room = socket.CMSG_SPACE(MAX_SOCKETS * array.array("i").itemsize)
        try:
            header, ancillary, flags, _ = conn.sock.recvmsg(_LENGTH.size, room)
        except OSError as exc:
            raise ConnError(f"receiving sockets: {exc.strerror or exc}") from exc
        numbers = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
        return header, _sockets_of(numbers), bool(flags & socket.MSG_CTRUNC)
    raise ConnError("Windows passes no sockets on")


def _sockets_of(numbers: Iterable[int]) -> list[socket.socket]:
    sockets = []
    for number in numbers:
        os.set_inheritable(number, False)
        try:
            sockets.append(socket_class(fileno=number))
        except OSError:  # another kind of file
            with suppress(OSError):
                os.close(number)
    return sockets


def is_of_this_user(conn: SocketConn) -> bool:
    """Tell whether the peer's process is of the same user as this one; True where nobody can tell."""
    if sys.platform != "linux":
        return True
    try:
        found = conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return False
    return int(_UCRED.unpack(found)[1]) == os.geteuid()
