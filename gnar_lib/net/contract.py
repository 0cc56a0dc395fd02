"""What a conn is: the methods that everything above this room relies on; no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gnar_lib.net.address import Sockaddr


class Conn(Protocol):
    """Anything with a socket's blocking methods: a TCP or Unix socket, a stream of a session.

    One greenlet may read while another writes. Every method may raise `ConnError`. `was_read` becomes true
    whenever a wait to read has ended, and false by the hand of whoever looks for idle conns.
    """

    was_read: bool

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; 0 at the end of the stream."""

    def borrow(self) -> memoryview | bytes:
        """Like `recv`, but the bytes may lie in memory that is used again as soon as anything waits."""

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what the next `recv` returns."""

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the hub as soon as a read would not wait; never, when we close before that."""

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if one does; only in the hub."""

    def send_now(self, data: bytes | memoryview) -> int:
        """Take as many bytes as fit without waiting, and return how many."""

    def sendall(self, data: bytes | memoryview) -> None:
        """Send everything, waiting for room as often as it takes."""

    def shutdown(self, how: int) -> None:
        """End one direction: `SHUT_WR` tells the peer that no more bytes come."""

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it has for the whole."""

    def close(self) -> None:
        """Close, in any state and more than once; whoever waits on this conn gets `ConnClosed`."""

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end."""


class Counter(Protocol):
    """What counts bytes."""

    bytes: int
