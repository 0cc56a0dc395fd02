"""Dials addresses that need no look-up, with the standard library's own sockets."""

from __future__ import annotations

import errno
import os
import socket

from gnar_lib.errors import DeadlineError, DialError
from gnar_lib.net.address import Sockaddr, format_address, is_unix
from gnar_lib.net.conn import SocketConn, socket_class
from gnar_lib.net.greenlets import deadline
from gnar_lib.net.switching import give_way

DIAL_TIMEOUT_S = 10.0
BACKLOG_PAUSE_S = 0.01  # before dialling a Unix path again whose backlog is full
# The texts of Windows' own error numbers, which `os.strerror` does not know.
_WINDOWS_ERRORS: dict[int, str] = getattr(socket, "errorTab", {})


def dial(family: int, address: Sockaddr, timeout_s: float = DIAL_TIMEOUT_S, source: str = "") -> SocketConn:
    """Return a conn to an address that needs no look-up, from the local IP address `source` if there is one.

    The caller closes the conn. Raises `DialError` when the address refuses, cannot be reached or does not
    answer in time.
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
            raise OSError(status, _WINDOWS_ERRORS.get(status) or os.strerror(status))
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
    """Wait until a connect under way has ended; return 0, or the number of its error."""
    if not is_unix(family):
        conn.wait_writable()
        return conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    # With a Unix path nothing is under way: the backlog is full, and no event tells when it has room again.
    while (status := conn.sock.connect_ex(address)) == errno.EWOULDBLOCK:
        give_way(BACKLOG_PAUSE_S)
    return status
