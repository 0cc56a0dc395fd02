"""One stream of a session: a conn like any other, with a window in each direction."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.net import Sockaddr, wait_for
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    INITIAL_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    RST,
    SYN,
    WINDOW_UPDATE,
    pack,
)
from gnar_lib.yamux.state import TRANSITIONS, Event, State
from gnar_lib.yamux.window import Window

if TYPE_CHECKING:
    from gnar_lib.yamux.session import Session

# What one Data frame carries at most: others wait that long for their turn. With 64 KiB and a header, a write
# is a little more than loopback carries in one packet, and costs up to twice as much per byte.
FRAME_BYTES: Final = 32 * 1024
# Chunks of less are joined, so that a peer that sends single bytes cannot make each of them cost fifty.
JOIN_BYTES: Final = 2 * 1024


_OPEN, _WE_ENDED, _PEER_ENDED, _ENDED, _RESET = State
_OVER = (_ENDED, _RESET)


class Stream:
    """A conn whose bytes travel as frames of a session; made by `Session.open` and `Session.accept`.

    Forgotten by its session when both ends have ended it. What arrives meanwhile is kept until it is read,
    at most the receive window.
    """

    __slots__ = (
        "_chunks",
        "_flags",
        "_has_turn",
        "_is_lined_up",
        "_is_pending",
        "_offset",
        "_on_readable",
        "_passed",
        "_read_waiter",
        "_room",
        "_session",
        "_state",
        "_unread",
        "_window",
        "_write_waiter",
        "closed",
        "id",
        "is_touched",
        "was_read",
    )

    def __init__(self, session: Session, stream_id: int, flags: int) -> None:
        self.id = stream_id
        self.closed = False  # by us: `close` or `abort` was called
        self.was_read = False  # a wait to read has ended, since somebody set this to False
        self.is_touched = False  # by the frames that the session is about to go through
        self._session = session
        self._state = _OPEN
        self._flags = flags  # SYN or ACK, until a frame has carried it
        self._room = 0 if flags & SYN else INITIAL_WINDOW_BYTES  # what we may send
        self._is_pending = False  # announced, and not accepted
        self._window = Window(session.path)  # what the peer may send
        self._chunks: list[bytes | memoryview] = []  # what it has sent; the first from `_offset` on
        self._offset = 0
        self._unread = b""
        self._on_readable: Callable[[], None] | None = None
        self._read_waiter: greenlet | None = None
        self._write_waiter: greenlet | None = None
        self._is_lined_up = self._has_turn = False
        self._passed = -1  # the epoch of the sender in which we last passed those in line

    def __repr__(self) -> str:
        return f"<Stream {self} {'closed, ' if self.closed else ''}{self._state.value}>"

    def __str__(self) -> str:
        return f"{self._session} stream {self.id}"

    def getpeername(self) -> Sockaddr:
        """Return the address of the session's other end."""
        return self._session.getpeername()

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        while (data := self.recv_now(size)) is None:
            self._wait_to_read()
        return data

    def recv_now(self, size: int) -> bytes | None:
        """Return what is there without waiting: None when nothing is, `b""` at the end of the stream."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        if not self._chunks:
            return b"" if self._is_at_end() else None
        chunk, offset = self._chunks[0], self._offset
        if not offset and len(chunk) <= size:
            data = bytes(chunk)  # the very object, when it is bytes already
            del self._chunks[0]
        else:
            data = bytes(chunk[offset : offset + size])
            self._skip(len(data), len(chunk))
        self._consumed(len(data))
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; 0 at the end of the stream."""
        if self._unread:
            data = self.recv(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        chunks = self._chunks
        while not chunks:
            if self._is_at_end():
                return 0
            self._wait_to_read()
            chunks = self._chunks
        filled, size = 0, len(buffer)
        while chunks and filled < size:
            chunk, offset = chunks[0], self._offset
            count = min(len(chunk) - offset, size - filled)
            buffer[filled : filled + count] = chunk[offset : offset + count]
            filled += count
            self._skip(count, len(chunk))
        self._consumed(filled)
        return filled

    def borrow(self) -> memoryview | bytes:
        """Return a chunk as it came, which may lie in the session's buffer: good until anything waits."""
        if self._unread:
            return self.recv(len(self._unread))
        while not self._chunks:
            if self._is_at_end():
                return b""
            self._wait_to_read()
        chunk = self._chunks[0][self._offset :] if self._offset else self._chunks[0]
        del self._chunks[0]
        self._offset = 0
        self._consumed(len(chunk))
        return chunk

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what the next `recv` returns."""
        self._unread = data + self._unread

    def _skip(self, count: int, size: int) -> None:
        """Leave `count` bytes of the first chunk behind, which has `size`."""
        self._offset += count
        if self._offset == size:
            del self._chunks[0]
            self._offset = 0

    def _is_at_end(self) -> bool:
        """Whether nothing more comes: False means to wait; `ConnClosed` when it broke off."""
        if self.closed:
            raise ConnClosed(f"{self}: closed")
        state = self._state
        if state is _PEER_ENDED or state is _ENDED:
            return True
        self._check_alive()
        return False

    def _check_alive(self) -> None:
        if self._state is _RESET:
            raise ConnClosed(f"{self}: reset by the peer")
        if self._session.closed:
            raise ConnClosed(f"{self}: {self._session.why_closed}")

    def _wait_to_read(self) -> None:
        self._read_waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._read_waiter = None
        self.was_read = True

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the hub as soon as a read would not wait; never, when we close before that."""
        self._on_readable = callback
        self._session.wake_soon(self)  # for what has come already

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if one does; only in the hub."""
        if self._read_waiter is not None:
            self._read_waiter.throw(error)

    def _consumed(self, count: int) -> None:
        """Let the peer send more for what the reader took."""
        self._session.stored_bytes -= count
        if grant := self._window.consume(count):
            self._grant(grant)

    def _grant(self, count: int) -> None:
        if self._state is _OPEN or self._state is _WE_ENDED:
            self._session.granted(pack(WINDOW_UPDATE, self._take_flags(), self.id, count))

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | memoryview) -> int:
        """Take as many bytes as fit without waiting, and return how many."""
        sender, total, sent = self._session.sender, len(data), 0
        view: bytes | memoryview = data
        while sent < total:
            self._check_sending()
            count = min(total - sent, self._room, FRAME_BYTES)
            if not count:
                break
            if not (self._has_turn or sender.has_room()):
                if self._passed == sender.epoch or not sender.may_pass(count):
                    break
                self._passed = sender.epoch
            self._has_turn = False
            if count < total:
                view = memoryview(data)[sent : sent + count]
            self._room -= count
            sender.send_data(pack(DATA, self._take_flags(), self.id, count), view)
            sent += count
        return sent

    def sendall(self, data: bytes | memoryview) -> None:
        """Send everything, waiting for room as often as it takes."""
        sent = self.send_now(data)
        if sent == len(data):
            self._check_sending()
            return
        rest = memoryview(data)[sent:]
        while rest:
            self._wait_to_write()
            rest = rest[self.send_now(rest) :]
        self._check_sending()

    def say(self) -> None:
        """Open or accept the stream with a frame of its own, if no other frame has done that yet."""
        if self._flags:
            self._session.sender.send(pack(WINDOW_UPDATE, self._take_flags(), self.id, 0))

    def take_turn(self) -> None:
        """Send one frame: it is this stream's turn."""
        self._is_lined_up = False
        if self._write_waiter is not None:
            self._has_turn = True
            self._write_waiter.switch(self)
            self._has_turn = False

    def _wait_to_write(self) -> None:
        if self._room and not self._is_lined_up:
            self._is_lined_up = True
            self._session.sender.line_up(self)
        self._write_waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._write_waiter = None

    def _check_sending(self) -> None:
        if self.closed:
            raise ConnClosed(f"{self}: closed")
        state = self._state
        if state is not _OPEN and state is not _PEER_ENDED:
            if state is not _RESET:
                raise ConnClosed(f"{self}: shut down for writing")
            self._check_alive()
        if self._session.closed:
            self._check_alive()

    def _take_flags(self) -> int:
        flags, self._flags = self._flags, 0
        return flags

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction: `SHUT_WR` tells the peer that no more bytes come; reading needs no end."""
        if how != socket.SHUT_RD and (self._state is _OPEN or self._state is _PEER_ENDED):
            self._end(Event.SEND_FIN)

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it has for the whole."""
        if not self.closed:
            self._close()
            if self._state not in _OVER:
                self._end(Event.SEND_RST)

    def close(self) -> None:
        """Close, in any state and more than once; whoever waits on this stream gets `ConnClosed`.

        The session drains what the peer still sends, and resets the stream when that does not end soon.
        """
        if self.closed:
            return
        self._close()
        self.shutdown(socket.SHUT_WR)
        if self._state is _WE_ENDED and (grant := self._window.refill()):
            self._grant(grant)

    def _close(self) -> None:
        self.closed = True
        self._on_readable = None
        self._forget_chunks()
        if self._read_waiter is not None or self._write_waiter is not None:
            self._session.wake_soon(self)

    @property
    def has_writer(self) -> bool:
        """Whether a greenlet waits until it may send."""
        return self._write_waiter is not None

    @property
    def is_reset(self) -> bool:
        """Whether one of the ends has reset it."""
        return self._state is _RESET

    @property
    def stored_bytes(self) -> int:
        """How much has been received that nobody has read."""
        return sum(len(chunk) for chunk in self._chunks) - self._offset

    def _forget_chunks(self) -> None:
        self._session.stored_bytes -= self.stored_bytes
        self._chunks.clear()
        self._offset = 0
        self._unread = b""

    def _end(self, event: Event) -> None:
        """Go from state to state, tell the peer, and be forgotten when there is nothing more to say."""
        state = TRANSITIONS.get((self._state, event))
        if state is None:
            raise ProtocolError(f"{self}: {event.value} in state {self._state.name}")
        self._state = state
        if self._session.closed:
            return
        if event is Event.SEND_FIN:
            self._session.sender.send(pack(WINDOW_UPDATE, self._take_flags() | FIN, self.id, 0))
        elif event is Event.SEND_RST and not self._flags & SYN:  # else the peer has never heard of it
            self._session.sender.send(pack(WINDOW_UPDATE, self._take_flags() | RST, self.id, 0))
        if state in _OVER:
            self._flags = 0
            self._session.forget(self)
            if self._is_pending:
                self._accepted()
            self._window.release()

    # ---- for the session: what frames bring ----------------------------------------------------------------

    def get_flags(self, flags: int) -> None:
        """Take note of FIN and RST of the peer; ACK only says that it has accepted."""
        if self._state in _OVER:
            return
        if self._is_pending and flags & ACK:
            self._accepted()
        if flags & FIN:
            self._end(Event.GET_FIN)
        if flags & RST and self._state is not _ENDED:
            self._end(Event.GET_RST)
            self._forget_chunks()

    def _accepted(self) -> None:
        self._is_pending = False
        self._session.accepted()

    def announce(self) -> bool:
        """Send from now on, SYN first; False when the stream has ended before that."""
        if self._flags & SYN:
            self._room = INITIAL_WINDOW_BYTES
            self._is_pending = True
        return self._is_pending

    def charge(self, count: int) -> None:
        """Count what a Data frame is about to bring; `ProtocolError` when the peer may not send that."""
        if count and (self._state is _PEER_ENDED or self._state is _ENDED):
            raise ProtocolError(f"{self}: data after FIN")
        self._window.charge(count)
        if self.closed and self._state is _WE_ENDED and self._window.room < self._window.size >> 1:
            self._end(Event.SEND_RST)  # it goes on and on, and nobody reads it

    def get_data(self, view: memoryview) -> None:
        """Take bytes of a Data frame: borrowed, until `keep`."""
        if not self.closed and self._state is not _RESET:
            self._chunks.append(view)
            self._session.stored_bytes += len(view)

    def get_room(self, count: int) -> None:
        """Take note that we may send more; `ProtocolError` when that is more than anybody can count."""
        self._room += count
        if self._room > MAX_WINDOW_BYTES:
            raise ProtocolError(f"{self}: a window of {self._room} bytes")

    def keep(self) -> None:
        """Copy what is borrowed and still unread."""
        chunks = self._chunks
        first = len(chunks)
        while first and isinstance(chunks[first - 1], memoryview):
            first -= 1
        if first == len(chunks):
            return
        if not first and self._offset:
            chunks[0] = chunks[0][self._offset :]
            self._offset = 0
        if first and len(chunks[first - 1]) < JOIN_BYTES:
            first -= 1
        chunks[first:] = [b"".join(chunks[first:])]

    def wake(self) -> None:
        """Switch to whoever can go on now, if only to an error; runs in the hub."""
        is_over = self.closed or self._session.closed
        if self._read_waiter is not None or self._on_readable is not None:
            peer_may_send = self._state is _OPEN or self._state is _WE_ENDED
            if self._chunks or self._unread or is_over or not peer_may_send:
                self._wake_reader()
        if self._write_waiter is not None and (
            (self._room and not self._is_lined_up)
            or is_over
            or not (self._state is _OPEN or self._state is _PEER_ENDED)
        ):
            self._write_waiter.switch(self)

    def _wake_reader(self) -> None:
        callback, self._on_readable = self._on_readable, None
        if callback is not None:
            callback()
        elif self._read_waiter is not None:
            self._read_waiter.switch(self)
