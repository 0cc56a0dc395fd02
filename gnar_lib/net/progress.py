"""How a TCP connection gets on, as its kernel sees it: what is owed, whether the peer has gone (Linux)."""

from __future__ import annotations

import select
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from gevent import monkey

# The beginning of `struct tcp_info`, include/uapi/linux/tcp.h: bytes and bit fields, then numbers.
_TCP_INFO = struct.Struct("=8B13I")
_STATE, _PROBES, _UNACKED, _LAST_ACK_RECV = 0, 3, 12, 20
_ROUND_TRIP = struct.Struct("=8B16I")  # up to the round trip in microseconds
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # states, in include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class TcpProgress:
    """How a connection gets on."""

    is_closed: bool  # nothing travels any more; what has come may still be unread
    has_failed: bool  # it was reset, or given up by the kernel, and nothing is unread
    is_owed: bool  # something was sent, or asked, that the peer has not acknowledged
    silent_s: float  # for how many seconds the peer has acknowledged nothing


if sys.platform == "linux":
    import fcntl
    import termios

    _poll: Any = monkey.get_original("select", "poll")  # which does not wait for others

    def unacknowledged(sock: socket.socket) -> int:
        """Return how many sent bytes the peer's kernel has not acknowledged; raises `OSError`."""
        return _queued(sock, termios.TIOCOUTQ)  # for a socket the same as SIOCOUTQ, tcp(7)

    def has_unreceived(sock: socket.socket) -> bool:
        """Tell whether bytes wait to be received: to close the socket may throw away what was sent."""
        try:
            return _queued(sock, termios.FIONREAD) > 0
        except OSError:  # closed
            return False

    def _queued(sock: socket.socket, queue: int) -> int:
        """Return how many bytes are in a queue of a socket: FIONREAD for received, TIOCOUTQ for sent ones."""
        return int.from_bytes(fcntl.ioctl(sock.fileno(), queue, b"\0" * 4), sys.byteorder)

    def tcp_progress(sock: socket.socket) -> TcpProgress | None:
        """Return how the connection of a socket gets on; None where nobody can tell."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            found = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
            is_closed = found[_STATE] == _TCP_CLOSE
            # Without an error, both ends have closed in an orderly way, and the end may still be unread.
            has_failed = is_closed and _has_error(sock) and not _queued(sock, termios.FIONREAD)
        except (OSError, struct.error):  # closed, or a system that tells less
            return None
        is_owed = bool(found[_UNACKED] or found[_PROBES])
        return TcpProgress(is_closed, has_failed, is_owed, found[_LAST_ACK_RECV] / 1000)

    def round_trip_s(sock: socket.socket) -> float | None:
        """Return how long a round trip to the peer takes, as its kernel sees it; None: nobody knows."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ROUND_TRIP.size)
            microseconds = _ROUND_TRIP.unpack(info)[-1]
        except (OSError, struct.error):  # closed, or a system that tells less
            return None
        return microseconds / 1e6 if microseconds else None

    def has_hung_up(sock: socket.socket) -> bool:
        """Tell whether the peer has sent FIN or a reset, also while bytes are unread."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except (OSError, IndexError):  # closed, or a system that tells less
            return False
        return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)

    def _has_error(sock: socket.socket) -> bool:
        """Tell whether the next call on a socket would fail; the error stays for that call."""
        poll = _poll()
        poll.register(sock, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

else:

    def unacknowledged(_sock: socket.socket) -> int:
        """Return 0, since nobody can tell."""
        return 0

    def has_unreceived(_sock: socket.socket) -> bool:
        """Return True, since nobody can tell."""
        return True

    def tcp_progress(_sock: socket.socket) -> TcpProgress | None:
        """Return None, since nobody can tell."""
        return None

    def round_trip_s(_sock: socket.socket) -> float | None:
        """Return None, since nobody can tell."""
        return None

    def has_hung_up(_sock: socket.socket) -> bool:
        """Return False, since nobody can tell."""
        return False
