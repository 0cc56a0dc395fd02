"""What a conn is: the methods on which all rooms above this one rely; no code.

`tests/net/test_contract.py` tries each sentence of this module on whatever fulfils the contracts.

There are two contracts. `Conn` is what carrying bytes needs: copy loops, messages and logins ask for no more.
`EventedConn` is what a multiplexed session and a pool of waiting connections need on top: the hub tells them
when a conn can be read or written, so that no greenlet has to wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gnar_lib.net.address import Sockaddr


class Conn(Protocol):
    """Anything with a socket's blocking methods: a TCP or Unix socket, a stream, a conn wrapped in another.

    One greenlet may read while another greenlet writes. Whatever carries bytes raises `ConnError` if the conn
    is broken, or if this end has closed it. What writes raises `WriteError`: bytes that came before may still
    be there to read.
    """

    was_read: bool
    """True once a wait to read has ended; whoever looks for idle conns sets it back to False."""

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; return the count, 0 at the end of the stream."""

    def borrow(self) -> memoryview | bytes:
        """Wait for bytes and return them; the memory is reused as soon as any greenlet waits."""

    def unread(self, data: bytes) -> None:
        """Put bytes back: the next read returns them first. Nobody may be waiting to read."""

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the hub when a read would not wait; never, if this end closes before.

        Raises `ConnError` if this end has closed already. Nobody may be waiting to read.
        """

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if there is one. Only the hub may call this.

        On a conn that this end has closed nothing happens: the greenlet gets `ConnError`.
        """

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as fit without waiting, and return how many that were."""

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""

    def shutdown(self, how: int) -> None:
        """End one direction (half-close): after `SHUT_WR` the peer reads the end of the stream.

        More than once, and on a conn that is closed, this does nothing.
        """

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it received for the whole.

        The peer gets what was sent before. A Unix socket has no reset: its peer reads the end of the stream,
        as after `close`.
        """

    def close(self) -> None:
        """Close, in any state and more than once; a greenlet that waits on this conn gets `ConnClosed`."""

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end. The address is kept for when the other end has gone."""

    @property
    def has_hung_up(self) -> bool:
        """Whether the other end sends no more, or has gone, also while bytes of it are unread.

        False for a Unix socket, and where nobody can tell.
        """

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come any more, if the other end has gone without a word; else empty.

        To be called now and then with `time.monotonic`: a peer that acknowledges nothing for `dead_after_s`
        has gone, too, as far as the platform tells.
        """


class EventedConn(Conn, Protocol):
    """A conn that calls back from the hub when it can be read or written. The callbacks must not wait."""

    @property
    def closed(self) -> bool:
        """Whether this end has called `close` or `abort`."""

    @property
    def has_unread(self) -> bool:
        """Whether `unread` has put bytes back that no read has returned yet: no event tells of those."""

    def call_when_readable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever bytes or the end can be read, until `close`; None ends that."""

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever a write would not wait, until `close`; None ends that."""

    def recv_now(self, size: int) -> bytes | None:
        """Return at most `size` bytes without waiting: None if there are none, `b""` at the end."""

    def recv_into_now(self, buffer: memoryview) -> int | None:
        """Read into `buffer` without waiting: None if there is nothing, 0 at the end of the stream."""

    def sendmsg_now(self, buffers: list[bytes | bytearray | memoryview]) -> int:
        """Send as many bytes of all `buffers`, in order, as fit without waiting; return how many."""

    def limit_unsent(self, limit_bytes: int) -> None:
        """Let at most about `limit_bytes` wait unsent below this conn, where the platform can do that."""

    def set_user_timeout(self, seconds: float) -> None:
        """Give the conn up when sent bytes stay unacknowledged for so long, where that can be told."""

    def reset_if_killed(self, *, wanted: bool) -> None:
        """Have the peer get a reset, and no end, if this process is killed, where the platform can do that.

        Whoever wants that takes it back before `close`, which would reset the conn as well.
        """

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer has not acknowledged; 0 where nobody can tell."""


class Counter(Protocol):
    """Counts the bytes of one direction."""

    bytes: int
