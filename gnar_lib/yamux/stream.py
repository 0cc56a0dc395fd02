"""One stream of a session: a conn like any other, with a window in each direction."""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic
from typing import Final

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnClosed, ProtocolError, WriteError
from gnar_lib.net import EventedConn, Sockaddr, wait_for
from gnar_lib.net.contract import Counter
from gnar_lib.net.switching import put_off
from gnar_lib.yamux.beside import ASK, BESIDE_FLAGS, MOVED, READY, Beside
from gnar_lib.yamux.chunks import copy_borrowed
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
from gnar_lib.yamux.owner import Owner
from gnar_lib.yamux.state import TRANSITIONS, Event, State
from gnar_lib.yamux.window import Window

# What one Data frame carries at most: all other streams wait while the frame is sent. 64 KiB and a header are
# more than loopback carries in one packet, and writing them costs up to twice as much for each byte.
FRAME_BYTES: Final = 32 * 1024

_OPEN, _WE_ENDED, _PEER_ENDED, _ENDED, _RESET = State
_OVER = (_ENDED, _RESET)
_SEND_FIN, _RECEIVE_FIN, _SEND_RST, _RECEIVE_RST = Event


class Stream:
    """A conn whose bytes travel as frames of a session, which makes it.

    The session forgets the stream when both ends have ended it. Bytes that have arrived are kept until they
    are read; the receive window limits how many they are. A direction can go on over a conn `beside` the
    stream: whoever reads the stream reads on there, and whoever writes may `move`.
    """

    __slots__ = (
        "_first",
        "_flags",
        "_is_first_in_line",
        "_is_in_line",
        "_is_unaccepted",
        "_offset",
        "_on_readable",
        "_overtook_in",
        "_read_waiter",
        "_room",
        "_session",
        "_state",
        "_unread",
        "_why_reset",
        "_window",
        "_write_waiter",
        "beside",
        "chunks",
        "closed",
        "id",
        "is_new",
        "is_touched",
        "since_s",
        "was_read",
    )

    def __init__(self, session: Owner, stream_id: int, flags: int, first: bytes = b"") -> None:
        self.id = stream_id
        self.beside: Beside | None = None  # the conn on which bulk goes on; closed with the stream
        self.chunks: list[bytes | memoryview] = []  # received and unread; a memoryview is borrowed
        self.closed = False  # this end has called `close` or `abort`
        self.was_read = False  # a wait to read has ended since somebody set this to False
        self.is_touched = False  # a frame for this stream was among those of the present read
        self.is_new = False  # the peer has opened the stream, and nobody serves it yet
        self.since_s = monotonic()  # when either end opened the stream
        self._why_reset = "reset by the peer"  # what to say once the stream is reset
        self._session = session  # to which this stream belongs
        self._state = _OPEN  # changes in `_end` alone
        self._flags = flags  # SYN or ACK, until a frame has carried it to the peer
        self._first = first  # what the first Data frame carries before anything else
        self._room = 0 if flags & SYN else INITIAL_WINDOW_BYTES  # bytes that this end may send
        self._is_unaccepted = False  # the peer knows of the stream, and has not accepted it yet
        self._window = Window(session.path, self.since_s)  # what the peer may send
        self._offset = 0  # bytes of the first chunk that have been read
        self._unread = b""  # bytes that `unread` has put back
        self._on_readable: Callable[[], None] | None = None  # of `call_once_readable`
        self._read_waiter: greenlet | None = None  # the greenlet that waits to read
        self._write_waiter: greenlet | None = None  # the greenlet that waits to send
        self._is_in_line = False  # this stream is in the sender's line
        self._is_first_in_line = False  # this stream may send one frame, whatever else waits
        self._overtook_in = -1  # the epoch of the sender in which a small frame last overtook the line

    def __repr__(self) -> str:
        return f"<Stream {self} {'closed, ' if self.closed else ''}{self._state.value}>"

    def __str__(self) -> str:
        return f"{self._session} stream {self.id}"

    def getpeername(self) -> Sockaddr:
        """Return the address of the session's other end."""
        return self._session.getpeername()

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come any more, if the other end has gone without a word; else empty."""
        beside = self.beside
        if beside is not None and (reason := beside.conn.why_gone(now_s)):
            return reason
        is_broken = self._state is _RESET or (self._session.closed and self._state is not _ENDED)
        return f"{self}: {self._why_broken}" if is_broken and not self.chunks else ""

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        while (data := self.recv_now(size)) is None:
            if (conn := self._reads_on) is not None:
                return conn.recv(size)
            self._wait_to_read()
        return data

    def recv_now(self, size: int) -> bytes | None:
        """Return what is there without waiting: None when nothing is, `b""` at the end of the stream."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        if not self.chunks:
            if not self._is_at_end():
                return None
            return b"" if (conn := self._reads_on) is None else conn.recv_now(size)
        chunk, offset = self.chunks[0], self._offset
        if not offset and len(chunk) <= size:
            data = bytes(chunk)  # no copy if the chunk is bytes already
            del self.chunks[0]
        else:
            data = bytes(chunk[offset : offset + size])
            self._skip(len(data), len(chunk))
        self._consumed(len(data))
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; return the count, 0 at the end of the stream."""
        if self._unread:
            data = self.recv(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        chunks = self.chunks
        while not chunks:
            if self._is_at_end():
                return 0 if (conn := self._reads_on) is None else conn.recv_into(buffer)
            self._wait_to_read()
            chunks = self.chunks
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
        """Wait for bytes and return a chunk of them; the memory is reused as soon as any greenlet waits."""
        if self._unread:
            return self.recv(len(self._unread))
        while not self.chunks:
            if self._is_at_end():
                return b"" if (conn := self._reads_on) is None else conn.borrow()
            self._wait_to_read()
        chunk = self.chunks[0][self._offset :] if self._offset else self.chunks[0]
        del self.chunks[0]
        self._offset = 0
        self._consumed(len(chunk))
        return chunk

    def pass_on(self, send: Callable[[bytes | memoryview], int], counter: Counter) -> bytes | memoryview:
        """Give what comes to `send`, which never waits and returns how many bytes it took.

        Returns the bytes that `send` did not take, or `b""` at the end of the stream, or where the stream
        goes on beside. `counter` counts all that was given. The memory is reused as soon as any greenlet
        waits.
        """
        # `borrow` in turn with `send`, with everything at hand.
        chunks, session, window, switch = self.chunks, self._session, self._window, get_hub().switch
        while self._unread or self._offset:
            lent = self.borrow()
            counter.bytes += len(lent)
            if (sent := send(lent)) < len(lent):
                return lent[sent:]
        self._read_waiter = getcurrent()
        try:
            while True:
                if not chunks:
                    if (self._state is not _OPEN or session.closed) and self._is_at_end():
                        return b""
                    while (woken := switch()) is not self:
                        put_off(woken)
                    self.was_read = True
                    continue
                lent = chunks.pop(0)
                count = len(lent)
                counter.bytes += count
                session.stored_bytes -= count
                window.consumed += count
                if window.consumed >= window.half:
                    self._grant_more()
                sent = send(lent)
                if sent < count:
                    return lent[sent:]
        finally:
            self._read_waiter = None

    def unread(self, data: bytes) -> None:
        """Put bytes back: the next read returns them first."""
        self._unread = data + self._unread

    @property
    def has_unread(self) -> bool:
        """Whether `unread` has put bytes back that no read has returned yet."""
        return bool(self._unread)

    def _skip(self, count: int, size: int) -> None:
        """Take note that `count` more bytes of the first chunk, whose length is `size`, have been read."""
        self._offset += count
        if self._offset == size:
            del self.chunks[0]
            self._offset = 0

    def _is_at_end(self) -> bool:
        """Tell whether no more bytes come; raises `ConnClosed` if the stream was closed or broke off."""
        if self.closed:
            raise ConnClosed(f"{self}: closed")
        state = self._state
        if state is _PEER_ENDED or state is _ENDED:
            return True
        if state is _RESET or self._session.closed:
            raise ConnClosed(f"{self}: {self._why_broken}")
        return False

    @property
    def _why_broken(self) -> str:
        """Why nothing travels any more on a stream that this end has not closed."""
        return self._why_reset if self._state is _RESET else self._session.why_closed

    def _wait_to_read(self) -> None:
        self._read_waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._read_waiter = None
        self.was_read = True

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the hub when a read would not wait; never, if this end closes before."""
        if self.closed:
            raise ConnClosed(f"{self}: closed")
        if not self._unread and (conn := self._reads_on) is not None:
            conn.call_once_readable(callback)
            return
        self._on_readable = callback
        self._session.call_soon(self.wake)  # bytes may be there already

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if there is one. Only the hub may call this."""
        if self._read_waiter is not None and not self.closed:  # else `wake` is about to wake it
            self._read_waiter.throw(error)
        elif (conn := self._reads_on) is not None and not self.closed:
            if not conn.was_read:
                conn.interrupt(error)
            conn.was_read = False

    def _consumed(self, count: int) -> None:
        """Let the peer send more in place of the bytes that the reader took."""
        self._session.stored_bytes -= count
        window = self._window
        window.consumed += count
        if window.consumed >= window.half:
            self._grant_more()

    def _grant_more(self) -> None:
        """Half of the window has been read."""
        if self._state is _OPEN or self._state is _WE_ENDED:
            self._grant(self._window.grant())

    def _grant(self, count: int) -> None:
        self._session.send_window_update(pack(WINDOW_UPDATE, self._take_flags(), self.id, count))

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as fit without waiting, and return how many that were."""
        if self.beside is not None and self.beside.sends:
            return self.beside.conn.send_now(data)
        sender, total, sent = self._session.sender, len(data), 0
        view: bytes | bytearray | memoryview = data
        while sent < total:
            if self._state is not _OPEN:
                self._check_sending()
            count = total - sent
            if count > FRAME_BYTES or count > self._room:
                count = min(FRAME_BYTES, self._room)
                if not count:
                    self._check_sending()
                    break
            if not sender.has_room() and not self._may_send_all_the_same(count):
                break
            if count < total:
                view = memoryview(data)[sent : sent + count]
            self._room -= count
            if self._flags:
                self._send_with_flags(view)
            else:
                sender.send_data(pack(DATA, 0, self.id, count), view)
            sent += count
        return sent

    def _may_send_all_the_same(self, count: int) -> bool:
        """Tell whether a Data frame may be sent though the sender has no room: in turn, or as a small one."""
        self._check_sending()
        sender = self._session.sender
        if self._is_first_in_line:
            self._is_first_in_line = False
            return True
        if self._overtook_in == sender.epoch or not sender.may_overtake(count):
            return False
        self._overtook_in = sender.epoch
        return True

    def _send_with_flags(self, view: bytes | bytearray | memoryview = b"") -> None:
        """Send the first Data frame of a stream: the bytes that were given at its opening, then `view`."""
        first, self._first = self._first, b""
        header = pack(DATA, self._take_flags(), self.id, len(first) + len(view))
        self._session.sender.send_data(header, b"".join((first, view)) if first else view)

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""
        if self.beside is not None and self.beside.sends:
            self.beside.conn.sendall(data)
            return
        sent = self.send_now(data)
        if sent == len(data):
            if self._state is not _OPEN or self._session.closed:
                self._check_sending()
            return
        rest = memoryview(data)[sent:]
        while rest:
            self._wait_to_write()
            rest = rest[self.send_now(rest) :]
        self._check_sending()

    def send_flags(self) -> None:
        """Tell the peer that the stream is open or accepted, unless a frame has carried that already."""
        if self._first:
            self._send_with_flags()
        elif self._flags:
            self._tell(0)

    def on_first_in_line(self) -> None:
        """Let the greenlet that waits to send write one frame; runs in the hub."""
        self._is_in_line = False
        if self._write_waiter is not None:
            self._is_first_in_line = True
            self._write_waiter.switch(self)
            self._is_first_in_line = False

    def _wait_to_write(self) -> None:
        if self._room and not self._is_in_line:
            self._is_in_line = True
            self._session.sender.wait_in_line(self)
        self._write_waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._write_waiter = None

    def _check_sending(self) -> None:
        if self.closed:
            raise WriteError(f"{self}: closed")
        state = self._state
        if state is not _OPEN and state is not _PEER_ENDED and state is not _RESET:
            raise WriteError(f"{self}: shut down for writing")
        if state is _RESET or self._session.closed:
            raise WriteError(f"{self}: {self._why_broken}")

    def _take_flags(self) -> int:
        flags, self._flags = self._flags, 0
        return flags

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction (half-close): after `SHUT_WR` the peer reads the end. `SHUT_RD` does nothing."""
        if self.beside is not None and self.beside.sends:
            self.beside.conn.shutdown(how)
        elif how != socket.SHUT_RD and (self._state is _OPEN or self._state is _PEER_ENDED):
            self._end(_SEND_FIN)

    def abort(self) -> None:
        """Close with a reset."""
        if not self.closed:
            if self.beside is not None:
                self.beside.conn.abort()
            self._close()
            if self._state not in _OVER:
                self._end(_SEND_RST)

    def break_off(self, reason: str) -> None:
        """Reset on behalf of the session. Whoever has the stream is told the `reason`, and has to close."""
        if self._state not in _OVER:
            self._why_reset = reason
            self._forget_chunks()
            self._end(_SEND_RST)
            self._session.call_soon(self.wake)

    def close(self) -> None:
        """Close, in any state and more than once; a peer that goes on sending is reset."""
        if self._flags & SYN and not self._is_unaccepted:  # held: the peer need not hear of the stream
            self.abort()
        if self.closed:
            return
        self._close()
        if self._state is _OPEN or self._state is _PEER_ENDED:
            self._end(_SEND_FIN)
        if self._state is _WE_ENDED:
            self._session.on_half_gone(self.id)
            if grant := self._window.refill():
                self._grant(grant)

    def _close(self) -> None:
        self.closed = True
        if self.beside is not None:
            self.beside.close()
        self._on_readable = None
        if self.chunks or self._unread:
            self._forget_chunks()
        if self._read_waiter is not None or self._write_waiter is not None:
            self._session.call_soon(self.wake)

    @property
    def has_writer(self) -> bool:
        """Whether a greenlet waits until it may send."""
        return self._write_waiter is not None

    @property
    def is_readable(self) -> bool:
        """Whether a read would not wait: bytes have come, or none will come any more."""
        return bool(self.chunks) or self._has_ended

    @property
    def _has_ended(self) -> bool:
        """Whether nothing more comes on the stream itself."""
        return self._session.closed or not (self._state is _OPEN or self._state is _WE_ENDED)

    @property
    def has_hung_up(self) -> bool:
        """Whether the peer sends nothing more."""
        return self._has_ended if (conn := self._reads_on) is None else conn.has_hung_up

    def claim(self) -> None:
        """Take note that the stream has said what it is for: until then the peer may have few of them."""
        self._session.on_claimed(self.id)

    @property
    def stored_bytes(self) -> int:
        """How many bytes have been received that nobody has read."""
        return sum(len(chunk) for chunk in self.chunks) - self._offset

    def _forget_chunks(self) -> None:
        self._session.stored_bytes -= self.stored_bytes
        self.chunks.clear()
        self._offset, self._unread = 0, b""

    def _end(self, event: Event) -> None:
        """Change the state as the table says, tell the peer, and leave the session if all has ended."""
        state = TRANSITIONS.get((self._state, event))
        if state is None:
            raise ProtocolError(f"{self}: {event.value} in state {self._state.name}")
        self._state = state
        if self._session.closed:
            return
        if event is _SEND_FIN:
            self._tell(FIN)
        elif event is _SEND_RST and not self._flags & SYN:  # the peer knows of the stream
            self._tell(RST)
        if state is _ENDED or state is _RESET:
            self._flags = 0
            self._session.forget(self.id, is_new=self.is_new)
            if self._is_unaccepted:
                self._on_accepted()
            if self._window.size > INITIAL_WINDOW_BYTES:
                self._window.release()

    def _tell(self, flags: int) -> None:
        """Send a frame with flags and without data, behind the bytes that were given at the opening."""
        if self._first:
            self._send_with_flags()
        if self._flags:
            flags |= self._take_flags()
        self._session.sender.send(pack(WINDOW_UPDATE, flags, self.id, 0))

    # ---- the conn beside the stream ------------------------------------------------------------------------

    def ask_beside(self) -> None:
        """Have a conn brought beside this stream, unless there is one, or the ends do not do that."""
        if self.beside is not None or not self._session.moves or self._state in _OVER:
            return
        if not self._session.bring_beside(self.id):
            self._tell(ASK)

    def attach(self, conn: EventedConn, *, is_ready: bool) -> bool:
        """Keep `conn` beside this stream, which closes it; False if there is no use for it.

        `is_ready`: the peer has brought the conn, and is told that it is there.
        """
        if self.beside is not None or self.closed or self._state in _OVER or self._session.closed:
            return False
        self.beside = Beside(conn, is_ready=is_ready)
        if is_ready:
            self._tell(READY)
        return True

    def detach(self) -> bool:
        """Do without a conn beside this stream that the peer does not seem to have got; tell whether so."""
        if self.beside is None or self.beside.is_ready or self.closed:
            return False
        self.beside.conn.abort()
        self.beside = None
        return True

    def move(self) -> bool:
        """Send what follows over the conn beside the stream; False if there is none that both ends have."""
        beside = self.beside
        if beside is None or not beside.is_ready:
            return False
        self._check_sending()
        if beside.conn.has_hung_up and not beside.receives:  # the peer has given it up since
            beside.is_ready = False
            return False
        self._flags |= MOVED  # which the frame with FIN carries
        beside.sends = True
        self._end(_SEND_FIN)
        return True

    @property
    def goes_on_beside(self) -> bool:
        """Whether what the peer sends comes over the conn beside the stream, behind what the stream has."""
        return self.beside is not None and self.beside.receives

    @property
    def _reads_on(self) -> EventedConn | None:
        """The conn from which the next bytes come; None while they come from the stream itself."""
        beside = self.beside
        return None if beside is None or not beside.receives or self.chunks else beside.conn

    def _on_beside_flags(self, flags: int) -> None:
        """The peer asks for a conn, has got one, or goes on over it."""
        beside = self.beside
        if flags & MOVED:
            if beside is None or not flags & FIN:
                self.break_off("the peer goes on over a connection that is not there")
            else:
                beside.receives = True
        elif flags & READY:
            if beside is not None:
                beside.is_ready = True
        elif beside is None and self._session.moves:
            self._session.bring_beside(self.id)

    # ---- for the receiver and the session ------------------------------------------------------------------

    def on_flags(self, flags: int) -> None:
        """A frame has come with these flags: FIN and RST end the stream, ACK accepts it."""
        if self._state in _OVER:
            return
        if self._is_unaccepted and flags & ACK:
            self._on_accepted()
        if flags & BESIDE_FLAGS:
            self._on_beside_flags(flags)
            if self._state in _OVER:
                return
        if flags & FIN:
            self._end(_RECEIVE_FIN)
        if flags & RST and self._state is not _ENDED:
            self._end(_RECEIVE_RST)  # what came before it can still be read

    def _on_accepted(self) -> None:
        self._is_unaccepted = False
        self._session.on_accepted(self.id)

    def announce(self) -> bool:
        """Allow sending, with SYN in the first frame; return False if the stream has ended already."""
        if self._flags & SYN:
            self._room = INITIAL_WINDOW_BYTES - len(self._first)
            self._is_unaccepted = True
        return self._is_unaccepted

    def on_data_header(self, count: int) -> None:
        """A Data frame with `count` bytes has begun; raises `ProtocolError` if the peer may not send them."""
        if count and (self._state is _PEER_ENDED or self._state is _ENDED):
            raise ProtocolError(f"{self}: data after FIN")
        self._window.use_room(count)
        if self.closed and self._state is _WE_ENDED and self._window.room < self._window.size >> 1:
            self._end(_SEND_RST)  # the peer keeps sending to a closed stream

    def on_whole_frame(self, view: memoryview) -> None:
        """A Data frame has come; all else is as with `on_data_header` and `on_data`, for its parts."""
        window, count = self._window, len(view)
        if self._state is _OPEN and count <= window.room:
            window.room -= count
            self.chunks.append(view)
            self._session.stored_bytes += count
        else:
            self.on_data_header(count)
            self.on_data(view)

    def on_data(self, view: memoryview) -> None:
        """Bytes of a Data frame have come, in memory that is borrowed until `copy_borrowed`."""
        if not self.closed and self._state is not _RESET:
            self.chunks.append(view)
            self._session.stored_bytes += len(view)

    def on_window_update(self, count: int) -> None:
        """The peer allows `count` more bytes; raises `ProtocolError` if 32 bits cannot count them."""
        self._room += count
        if self._room > MAX_WINDOW_BYTES:
            raise ProtocolError(f"{self}: a window of {self._room} bytes")

    def copy_borrowed(self) -> None:
        """Copy the bytes that are borrowed and still unread: their memory is about to be reused."""
        self._offset = copy_borrowed(self.chunks, self._offset)

    def wake(self) -> None:
        """Switch to the greenlets whose wait is over: by bytes, room, an end or an error. Runs in the hub."""
        waiter, callback = self._read_waiter, self._on_readable
        if (waiter is not None or callback is not None) and (self.chunks or self._unread or self._reads_end):
            if waiter is not None:
                waiter.switch(self)
            elif callback is not None:
                self._on_readable = None
                callback()
        if self._write_waiter is not None and (
            (self._room and not self._is_in_line)
            or self.closed
            or self._session.closed
            or not (self._state is _OPEN or self._state is _PEER_ENDED)
        ):
            self._write_waiter.switch(self)

    @property
    def _reads_end(self) -> bool:
        """Whether a read of what the stream itself brings would not wait for bytes that may come."""
        return self.closed or self._has_ended
