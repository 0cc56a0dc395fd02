"""Options of TCP sockets, as far as the platform has them, and when a silent peer counts as dead."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gnar_lib import logger

DEFAULT_DEAD_AFTER_S = 120.0
DEFAULT_HALF_CLOSE_TIMEOUT_S = 3600.0
KEEPALIVE_PROBES = 6  # questions without an answer until the kernel gives a peer up
# The option for the seconds of silence before the first probe; macOS has a name of its own for it.
_KEEPALIVE_IDLE = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"


class SocketOption(NamedTuple):
    """An option that the user asks for: its name, and what `setsockopt` takes."""

    name: str
    level: int
    option: int
    value: int | bytes


_log = logger.get("net")


@dataclass(slots=True)
class _Patience:
    """How long this process waits for peers that say nothing."""

    dead_after_s: float = DEFAULT_DEAD_AFTER_S
    half_close_timeout_s: float = DEFAULT_HALF_CLOSE_TIMEOUT_S


_patience = _Patience()


def dead_after_s() -> float:
    """Return for how many seconds a peer that should answer may be silent before it is given up."""
    return _patience.dead_after_s


def set_dead_after(seconds: float) -> None:
    """Give peers so much time from now on; connections that are there already keep theirs."""
    _patience.dead_after_s = seconds


def half_close_timeout_s() -> float:
    """Return for how many seconds one end may say nothing after the other has ended its direction."""
    return _patience.half_close_timeout_s


def set_half_close_timeout(seconds: float) -> None:
    """Give half-closed connections so much time from now on."""
    _patience.half_close_timeout_s = seconds


def set_options(sock: socket.socket, options: Iterable[SocketOption]) -> None:
    """Set what the user asks for; raises `OSError`, which names the option, if the system refuses one."""
    for name, level, option, value in options:
        try:
            sock.setsockopt(level, option, value)
        except OSError as exc:
            raise OSError(exc.errno, f"option {name}: {exc.strerror}") from exc


def try_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    """Set an option that gnar can do without; return False if the system refuses.

    Old kernels, gVisor and filters for system calls do so, and macOS when the peer has reset the connection.
    """
    try:
        sock.setsockopt(level, option, value)
        return True
    except OSError as exc:
        _log.debug("no option %d of level %d for a socket: %s", option, level, exc.strerror)
        return False


def set_common_options(sock: socket.socket) -> None:
    """Have the kernel send small messages at once, and notice a peer that vanished."""
    try_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_keepalive(sock)


def set_keepalive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without a FIN, also while nothing is sent.

    The first question comes after a quarter of `dead_after_s`, the last answer has to come when it is over.
    """
    idle_s, interval_s = max(1, round(dead_after_s() / 4)), max(1, round(dead_after_s() / 8))
    if not try_option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1):
        return
    for name, value in (
        (_KEEPALIVE_IDLE, idle_s),
        ("TCP_KEEPINTVL", interval_s),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            try_option(sock, socket.IPPROTO_TCP, getattr(socket, name), value)


def set_user_timeout(sock: socket.socket, seconds: float) -> None:
    """Have the kernel give a conn up whose sent bytes stay unacknowledged for so long (RFC 5482; Linux).

    Only for a conn whose peer reads all the time: Linux counts the time of a closed window, too.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        try_option(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
