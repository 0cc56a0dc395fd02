"""Options of TCP sockets, as far as the platform has them, and when a silent peer counts as dead."""

from __future__ import annotations

import select
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from gevent import monkey

from gnar_lib import logger

DEFAULT_DEAD_AFTER_S = 120.0
DEFAULT_HALF_CLOSE_TIMEOUT_S = 3600.0
KEEPALIVE_PROBES = 6  # questions without an answer until the kernel gives a peer up
# The option for the seconds of silence before the first probe; macOS has a name of its own for it.
_KEEPALIVE_IDLE = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"

if sys.platform == "linux":
    import fcntl
    import termios

    def _queued(sock: socket.socket, queue: int) -> int:
        """Return how many bytes are in a queue of a socket: FIONREAD for received, TIOCOUTQ for sent ones."""
        return int.from_bytes(fcntl.ioctl(sock.fileno(), queue, b"\0" * 4), sys.byteorder)


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


def set_common_options(sock: socket.socket) -> None:
    """Have the kernel send small messages at once, and notice a peer that vanished. Raises `OSError`."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_keepalive(sock)


def set_keepalive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without a FIN, also while nothing is sent.

    The first question comes after a quarter of `dead_after_s`, the last answer has to come when it is over.
    """
    idle_s, interval_s = max(1, round(dead_after_s() / 4)), max(1, round(dead_after_s() / 8))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            (_KEEPALIVE_IDLE, idle_s),
            ("TCP_KEEPINTVL", interval_s),
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


def unacknowledged(sock: socket.socket) -> int:
    """Return how many sent bytes the peer's kernel has not acknowledged; 0 where nobody can tell.

    Raises `OSError`.
    """
    # For a socket, TIOCOUTQ is the same as SIOCOUTQ, tcp(7).
    return _queued(sock, termios.TIOCOUTQ) if sys.platform == "linux" else 0


# The beginning of `struct tcp_info` of Linux, include/uapi/linux/tcp.h: bytes and bit fields, then numbers.
_TCP_INFO = struct.Struct("=8B13I")
_STATE, _PROBES, _UNACKED, _LAST_ACK_RECV = 0, 3, 12, 20
_TCP_CLOSE = 7  # a state, in include/net/tcp_states.h
_poll: Any = monkey.get_original("select", "poll")  # which does not wait for others
_TCP_CLOSE_WAIT = 8  # the peer has sent FIN


@dataclass(frozen=True, slots=True)
class TcpProgress:
    """How a TCP connection gets on, as its kernel sees it."""

    is_closed: bool  # nothing travels any more; what has come may still be unread
    has_failed: (
        bool  # the peer has reset the connection, or the kernel has given it up, and nothing is unread
    )
    is_owed: bool  # something was sent, or asked, that the peer has not acknowledged
    silent_s: float  # for how many seconds the peer has acknowledged nothing


def _has_error(sock: socket.socket) -> bool:
    """Tell whether the next call on a socket would fail; the error stays for that call."""
    poll = _poll()
    poll.register(sock, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def tcp_progress(sock: socket.socket) -> TcpProgress | None:
    """Return how the connection of a socket gets on; None where nobody can tell."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        found = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
        is_closed = found[_STATE] == _TCP_CLOSE
        # Both ends have closed in an orderly way if there is no error; then the end may still be unread.
        has_failed = is_closed and _has_error(sock) and not _queued(sock, termios.FIONREAD)
    except (OSError, struct.error):  # closed, or a system that tells less
        return None
    is_owed = bool(found[_UNACKED] or found[_PROBES])
    return TcpProgress(is_closed, has_failed, is_owed, found[_LAST_ACK_RECV] / 1000)


def has_hung_up(sock: socket.socket) -> bool:
    """Tell whether the peer has sent FIN or a reset, also while bytes are unread, where that can be told."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (_TCP_CLOSE, _TCP_CLOSE_WAIT)
    except (OSError, IndexError):  # closed, or a system that tells less
        return False
