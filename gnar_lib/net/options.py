"""Options of TCP sockets, as far as the platform has them."""

from __future__ import annotations

import socket

from gnar_lib import logger

# The kernel notices a peer that vanished without a FIN after 15 + 3 * 5 seconds of silence.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 15, 5, 3
# The option for the seconds of silence before the first probe; macOS has a name of its own for it.
_KEEPALIVE_IDLE = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"

_log = logger.get("net")


def set_common_options(sock: socket.socket) -> None:
    """Have the kernel send small messages at once, and notice a peer that vanished. Raises `OSError`."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_keepalive(sock)


def set_keepalive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without a FIN, also while nothing is sent."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            (_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S),
            ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
            ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:  # macOS: the peer has reset the connection already, as the next read or write will tell
        _log.debug("no keep-alive")


def set_user_timeout(sock: socket.socket, seconds: float) -> None:
    """Have the kernel give a conn up whose sent bytes stay unacknowledged for so long (RFC 5482; Linux).

    Only for a conn whose peer reads all the time: Linux counts the time of a closed window, too.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        except OSError:
            _log.debug("no user timeout")
