"""A conn over a conn: what TLS and a WebSocket have in common; knows neither.

Which bytes travel on the conn below is decided by an engine, which does no I/O.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Final, Generic, TypeVar

from gevent.hub import get_hub

from gnar_lib.errors import ConnClosed, ConnError, WriteError
from gnar_lib.net import LENT_BYTES, EventedConn, Sockaddr, give_way
from gnar_lib.net.switching import LENT
from gnar_lib.transport.contract import LayerEngine
from gnar_lib.transport.outgoing import Outgoing

# What a conn receives at once. OpenSSL keeps memory for so much from then on, so only bulk is read in large
# pieces. Bulk is 64 KiB in four records, of which TLS 1.3 makes 22 bytes more each: such a read ends where a
# record ends, and no part of one is left.
FIRST_READ_BYTES: Final = 32 * 1024
BULK_READ_BYTES: Final = LENT_BYTES + 4 * 22
PEEK_BYTES: Final = 4 * 1024  # that are read ahead to know whether there is anything to read
RECEIVES_IN_A_TURN: Final = 8  # of the loop; then other greenlets have their turn

# Where all conns receive and read, since nothing waits between a receive and the copy to where it belongs.
_SHARED = memoryview(bytearray(LENT_BYTES))
_RECEIVED = memoryview(bytearray(BULK_READ_BYTES))
_PEEK = _SHARED[:PEEK_BYTES]

_Engine = TypeVar("_Engine", bound=LayerEngine)


class LayeredConn(Generic[_Engine]):
    """A conn whose bytes travel in another shape on a conn below. Fulfils `EventedConn`, which describes it.

    `close` and `abort` close the conn below, too. The end of the conn below without the goodbye of the
    peer's engine is an error, since anybody on the way could have cut off the rest. The conn below may be a
    layer itself.
    """

    __slots__ = (
        "_again",
        "_ahead",
        "_conn",
        "_engine",
        "_has_said_goodbye",
        "_is_drained",
        "_loop",
        "_on_readable",
        "_outgoing",
        "_read_bytes",
        "_receives",
        "_turn_s",
        "_unread",
        "_why_cut_off",
        "closed",
        "was_read",
    )

    _NAME: ClassVar[str]  # of the layer, for people

    def __init__(self, conn: EventedConn, engine: _Engine) -> None:
        self.closed = False  # this end has called `close` or `abort`
        self.was_read = False  # a wait to read has ended; whoever looks for idle conns sets it back to False
        self._conn = conn
        self._engine = engine
        self._outgoing = Outgoing(conn, engine.made)
        self._loop = get_hub().loop
        self._unread = b""  # bytes that `unread` has put back
        self._ahead = b""  # bytes that the engine has read already, and that nobody else has
        self._is_drained = False  # the engine has nothing to read before more has come
        self._read_bytes = FIRST_READ_BYTES  # that are received at once
        self._why_cut_off = ""  # why nothing comes from the conn below any more
        self._has_said_goodbye = False  # this end has said that it sends no more
        self._turn_s = 0.0  # the loop's present turn
        self._receives = 0  # how often this conn has received in that turn
        self._on_readable: Callable[[], None] | None = None  # of `call_when_readable`
        self._again: Any = None  # the timer for bytes of which no event of the conn below tells
        while conn.has_unread and not self._why_cut_off:  # no event of the conn below tells of that, either
            self._receive_now()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}{' closed' if self.closed else ''}>"

    def __str__(self) -> str:
        return str(self._conn)

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        return bytes(_SHARED[: self.recv_into(_SHARED[:size])])

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; return the count, 0 at the end of the stream."""
        count = self._read(buffer)
        if count is None:
            while count is None:
                self._receive()
                count = self._read(buffer)
            self.was_read = True
        return count

    def borrow(self) -> memoryview:
        """Wait for up to 64 KiB and return them; the memory is reused as soon as any greenlet waits."""
        return LENT[: self.recv_into(LENT)]

    def recv_now(self, size: int) -> bytes | None:
        """Return at most `size` bytes without waiting: None if there are none, `b""` at the end."""
        count = self.recv_into_now(_SHARED[:size])
        return None if count is None else bytes(_SHARED[:count])

    def recv_into_now(self, buffer: memoryview) -> int | None:
        """Read into `buffer` without waiting: None if there is nothing, 0 at the end of the stream."""
        count = self._read(buffer)
        if count is None and self._receive_now():
            count = self._read(buffer)
        return count

    def unread(self, data: bytes) -> None:
        """Put bytes back: the next read returns them first."""
        self._unread = data + self._unread

    @property
    def has_unread(self) -> bool:
        """Whether `unread` has put bytes back that no read has returned yet: no event tells of those."""
        return bool(self._unread)

    def _read(self, buffer: memoryview) -> int | None:
        """Read into `buffer` what has been received; None if that is nothing, 0 at the end of the stream."""
        self._refuse_closed()
        if self._unread:
            count = _fill(buffer, self._unread)
            self._unread = self._unread[count:]
            return count
        count = 0
        if self._ahead:
            count = _fill(buffer, self._ahead)
            self._ahead = self._ahead[count:]
            buffer = buffer[count:]
        count += self._read_into(buffer)
        if not count and not self._engine.peer_ended:
            if why := self._why_broken:
                raise ConnClosed(why)
            return None
        return count

    @property
    def _why_broken(self) -> str:
        return f"{self}: {why}" if (why := self._engine.why_broken) else self._why_cut_off

    def _read_into(self, buffer: memoryview) -> int:
        if self._is_drained:
            return 0
        count = self._engine.read_into(buffer)
        self._is_drained = count < len(buffer) and not self._engine.has_more
        if self._engine.made.pending:  # an answer of the layer itself, such as what is wrong
            self._flush_if_possible()
        return count

    def _receive(self) -> None:
        """Wait until more has come from the conn below."""
        if self._turn_s != self._loop.now():  # something has waited, and others had their turn
            self._turn_s, self._receives = self._loop.now(), 0
        self._receives += 1
        if self._receives % RECEIVES_IN_A_TURN == 0:
            give_way()
            self._refuse_closed()
        self._take(self._conn.recv_into(_RECEIVED[: self._read_bytes]))

    def _receive_now(self) -> bool:
        """Receive more, if that is there already; tell whether it was."""
        try:
            count = self._conn.recv_into_now(_RECEIVED[: self._read_bytes])
        except ConnError as exc:
            self._why_cut_off = str(exc)
            return True
        if count is not None:
            self._take(count)
        return count is not None

    def _take(self, count: int) -> None:
        """Let the engine have what was received."""
        if count:
            self._engine.receive(_RECEIVED[:count])
            self._is_drained = False
            if count == self._read_bytes:
                self._read_bytes = BULK_READ_BYTES
        else:
            end = f"the end of {self._NAME}"
            self._why_cut_off = f"{self}: the other end has gone without {end}: bytes may be missing"

    def _is_readable(self) -> bool:
        """Tell whether a read would not wait. To know, this reads a little ahead."""
        if not self._ahead:
            self._ahead = bytes(_PEEK[: self._read_into(_PEEK)])
        return bool(self._ahead or self._unread or self._engine.peer_ended or self._why_broken)

    def _read_all_ahead(self) -> None:
        while count := self._read_into(_SHARED):
            self._ahead += bytes(_SHARED[:count])

    # ---- callbacks -----------------------------------------------------------------------------------------

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the hub when a read would not wait; never, if this end closes before."""
        self._refuse_closed()
        if self._is_readable():
            self._loop.run_callback(self._call_unless_closed, callback)
        else:
            self._conn.call_once_readable(partial(self._on_received_once, callback))

    def _call_unless_closed(self, callback: Callable[[], None]) -> None:
        if not self.closed:
            callback()

    def _on_received_once(self, callback: Callable[[], None]) -> None:
        if not self.closed:
            self._receive_now()
            if self._is_readable():
                callback()
            else:  # a part of a frame, or a frame for the layer itself
                self._conn.call_once_readable(partial(self._on_received_once, callback))

    def call_when_readable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever bytes or the end can be read, until `close`; None ends that."""
        if not self.closed:
            self._on_readable = callback
            self._conn.call_when_readable(None if callback is None else self._on_received)
            self._tell_again()

    def _on_received(self) -> None:
        if self._is_readable() or (self._receive_now() and self._is_readable()):
            self._tell_readable()

    def _tell_readable(self) -> None:
        if self._on_readable is not None:
            self._on_readable()
            self._tell_again()

    def _tell_again(self) -> None:
        """Tell in the next turn of the loop of what the conn below has no more, so that it makes no event."""
        if self._on_readable is None:
            self._stop_telling()
        elif self._again is None and self._is_readable():
            self._again = self._loop.timer(0.0)
            self._again.start(self._on_again)

    def _on_again(self) -> None:
        self._again = None
        if self._is_readable():  # else it was read when an event of the conn below came
            self._tell_readable()

    def _stop_telling(self) -> None:
        self._on_readable = None
        if self._again is not None:
            self._again.stop()
            self._again = None

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if there is one. Only the hub may call this."""
        if not self.closed:
            self._conn.interrupt(error)

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as fit without waiting, and return how many that were.

        A frame of which a part fits counts as sent. Its rest is sent as soon as there is room.
        """
        self._check_sending()
        sent, total, outgoing = 0, len(data), self._outgoing
        write, most = self._engine.write, self._engine.FRAME_BYTES
        while sent < total and not outgoing.is_full:
            piece = data if total <= most else memoryview(data)[sent : sent + most]
            try:
                sent += write(piece)
            except ConnError as exc:
                raise WriteError(f"{self}: {exc}") from exc
            outgoing.flush()
        return sent

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""
        sent = self.send_now(data)
        while sent < len(data) or self._outgoing.is_full:
            self._outgoing.wait_sent()
            sent += self.send_now(memoryview(data)[sent:])

    def sendmsg_now(self, buffers: list[bytes | bytearray | memoryview]) -> int:
        """Send as many bytes of all `buffers`, in order, as fit without waiting; return how many."""
        piece, sent, most = bytearray(), self.send_now(b""), self._engine.FRAME_BYTES
        for buffer in buffers:
            if len(piece) + len(buffer) > most:
                sent += self.send_now(piece)
                piece = bytearray()
            if self._outgoing.is_full:
                return sent
            if len(buffer) <= most:
                piece += buffer
            else:
                sent += self.send_now(buffer)
        return sent + self.send_now(piece)

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever a write would not wait, until `close`; None ends that."""
        if not self.closed:
            self._outgoing.call_when_room(callback)

    def _flush_if_possible(self) -> None:
        with suppress(WriteError):
            self._outgoing.flush()

    def _check_sending(self) -> None:
        if self.closed:
            raise WriteError(f"{self}: closed")
        if self._has_said_goodbye:
            raise WriteError(f"{self}: shut down for writing")
        if self._outgoing.why_failed:
            raise WriteError(self._outgoing.why_failed)
        if self._engine.why_broken:
            raise WriteError(f"{self}: {self._engine.why_broken}")

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction (half-close): after `SHUT_WR` the peer reads the end. `SHUT_RD` does nothing."""
        if how != socket.SHUT_RD and not self.closed and not self._has_said_goodbye:
            self._say_goodbye()
            self._outgoing.then(self._half_close_below)

    def _half_close_below(self) -> None:
        with suppress(ConnError):
            self._conn.shutdown(socket.SHUT_WR)

    def _say_goodbye(self) -> None:
        self._has_said_goodbye = True
        if self._engine.READS_BEFORE_GOODBYE:
            self._read_all_ahead()
        self._engine.say_goodbye()
        self._flush_if_possible()

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it received for the whole."""
        if not self.closed:
            self._close(self._conn.abort)

    def close(self) -> None:
        """Close, in any state and more than once; a greenlet that waits on this conn gets `ConnClosed`."""
        if self.closed:
            return
        self._receive_now()  # a ticket to resume the session: unread, it would make the kernel reset the conn
        if not self._has_said_goodbye and not self._outgoing.has_writer:
            self._say_goodbye()  # else the peer must not take the end for an orderly one
        self._close(self._conn.close)

    def _close(self, close_below: Callable[[], None]) -> None:
        self.closed = True
        self._stop_telling()
        self._outgoing.stop_telling()
        if self._outgoing.is_full and not self._outgoing.has_writer:
            self._conn.call_when_readable(None)
            self._loop.run_callback(self._conn.interrupt, ConnClosed(f"{self}: closed"))
            self._outgoing.linger(close_below, self._give_up_below)
        else:
            self._loop.run_callback(self._outgoing.wake)
            close_below()

    def _give_up_below(self) -> None:
        """Reset the conn below at once, whatever waits for room there."""
        below = self._conn
        while isinstance(below, LayeredConn):
            below._outgoing.drop()
            below = below._conn
        self._conn.abort()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ConnClosed(f"{self}: closed")

    # ---- the conn below ------------------------------------------------------------------------------------

    @property
    def certificate(self) -> str:
        """The SHA-256 of the certificate that the server has shown below, in hex; empty without TLS."""
        return str(getattr(self._conn, "certificate", ""))

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end. The address is kept for when the other end has gone."""
        return self._conn.getpeername()

    @property
    def has_hung_up(self) -> bool:
        """Whether the other end sends no more, or has gone, also while bytes of it are unread."""
        return self._engine.peer_ended or self._conn.has_hung_up

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come any more, if the other end has gone without a word; else empty."""
        return self._conn.why_gone(now_s)

    def limit_unsent(self, limit_bytes: int) -> None:
        """Let at most about `limit_bytes` wait unsent below this conn, where the platform can do that."""
        self._conn.limit_unsent(limit_bytes)

    def reset_if_killed(self, *, wanted: bool) -> None:
        """Have the peer get a reset, and no end, if this process is killed."""
        self._conn.reset_if_killed(wanted=wanted)

    def set_user_timeout(self, seconds: float) -> None:
        """Give the conn up when sent bytes stay unacknowledged for so long, where that can be told."""
        self._conn.set_user_timeout(seconds)

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer has not acknowledged; 0 where nobody can tell."""
        self._refuse_closed()
        return self._conn.unacknowledged() + self._outgoing.count


def _fill(buffer: memoryview, data: bytes) -> int:
    """Put the beginning of `data` into `buffer`, and return how many bytes fit."""
    count = min(len(buffer), len(data))
    buffer[:count] = data[:count]
    return count
