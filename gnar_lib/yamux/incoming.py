"""The direction of a stream that this end reads, with its window; knows nothing of what this end sends."""

from __future__ import annotations

from collections.abc import Callable

from gevent.hub import get_hub
from greenlet import getcurrent

from gnar_lib.errors import ConnClosed, ConnError, ProtocolError
from gnar_lib.net import wait_for
from gnar_lib.net.contract import Counter
from gnar_lib.net.switching import put_off
from gnar_lib.yamux.chunks import copy_borrowed
from gnar_lib.yamux.ends import Ends, Sink
from gnar_lib.yamux.frame import WINDOW_UPDATE, pack
from gnar_lib.yamux.state import ENDED, OPEN, PEER_ENDED, RESET, SEND_RST, WE_ENDED


class Incoming(Ends):
    """A stream that can be read. Bytes that have arrived are kept until then; the window limits how many.

    Where the direction goes on over a conn beside the stream, whoever reads the stream reads on there.
    """

    __slots__ = ()

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        while (data := self.recv_now(size)) is None:
            if (conn := self.reads_on) is not None:
                return conn.recv(size)
            self._wait_to_read()
        return data

    def recv_now(self, size: int) -> bytes | None:
        """Return what is there without waiting: None when nothing is, `b""` at the end of the stream."""
        if not self.chunks:
            if not self._is_at_end():
                return None
            return b"" if (conn := self.reads_on) is None else conn.recv_now(size)
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
        chunks = self.chunks
        while not chunks:
            if self._is_at_end():
                return 0 if (conn := self.reads_on) is None else conn.recv_into(buffer)
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
        while not self.chunks:
            if self._is_at_end():
                return b"" if (conn := self.reads_on) is None else conn.borrow()
            self._wait_to_read()
        self._cut_what_was_read()
        chunk = self.chunks.pop(0)
        self._consumed(len(chunk))
        return chunk

    def pass_on(self, send: Callable[[bytes | memoryview], int], counter: Counter) -> bytes | memoryview:
        """Give what comes to `send`, which never waits and returns how many bytes it took.

        Returns the bytes that `send` did not take, or `b""` at the end of the stream, or where the stream
        goes on beside. `counter` counts all that was given. The memory is reused as soon as any greenlet
        waits. While this greenlet waits, the receiver itself calls `send`, for as long as that takes all.
        """
        # `borrow` in turn with `send`, with everything at hand.
        chunks, session, window, switch = self.chunks, self._session, self._window, get_hub().switch
        token: object = self
        self._cut_what_was_read()
        self._read_waiter = getcurrent()
        try:
            while True:
                if not chunks:
                    if (self._state is not OPEN or session.closed) and self._is_at_end():
                        return b""
                    self._sink = send, counter
                    while (woken := switch()) is not token:
                        put_off(woken)
                    self._sink, self.was_read = None, True
                    if self._handed is not None:
                        return self._take_handed()
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
            self._read_waiter = self._sink = None

    def _take_handed(self) -> bytes:
        """Return what the sink of `pass_on` did not take; raises the error with which it has failed."""
        handed, self._handed = self._handed, None
        if isinstance(handed, ConnError):
            raise handed
        return handed or b""

    def unread(self, data: bytes) -> None:
        """Put bytes back: the next read returns them first."""
        if data and not self.closed:
            self._cut_what_was_read()
            self.chunks.insert(0, data)
            self._session.stored_bytes += len(data)
            self._window.consumed -= len(data)

    def _cut_what_was_read(self) -> None:
        """Have the first chunk be all unread."""
        if self._offset:
            self.chunks[0], self._offset = self.chunks[0][self._offset :], 0

    @property
    def has_unread(self) -> bool:
        """Whether there are bytes that no read has returned yet: put back, or just come."""
        return bool(self.chunks)

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
        if state is PEER_ENDED or state is ENDED:
            return True
        if state is RESET or self._session.closed:
            raise ConnClosed(f"{self}: {self._why_broken}")
        return False

    @property
    def is_readable(self) -> bool:
        """Whether a read would not wait: bytes have come, or none will come any more."""
        return bool(self.chunks) or self._has_ended

    @property
    def stored_bytes(self) -> int:
        """How many bytes have been received that nobody has read."""
        return sum(len(chunk) for chunk in self.chunks) - self._offset

    # ---- waiting -------------------------------------------------------------------------------------------

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
        if (conn := self.reads_on) is not None:
            conn.call_once_readable(callback)
            return
        self._on_readable = callback
        self._session.call_soon(self.wake)  # bytes may be there already

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if there is one. Only the hub may call this."""
        if self._read_waiter is not None and not self.closed:  # else `wake` is about to wake it
            self._read_waiter.throw(error)
        elif (conn := self.reads_on) is not None and not self.closed:
            if not conn.was_read:
                conn.interrupt(error)
            conn.was_read = False

    def wake(self) -> None:
        """Switch to the greenlets whose wait is over: by bytes, room, an end or an error. Runs in the hub."""
        waiter, callback, state = self._read_waiter, self._on_readable, self._state
        is_over = self.closed or self._session.closed
        if (waiter is not None or callback is not None) and (
            self.chunks or is_over or self._handed is not None or not (state is OPEN or state is WE_ENDED)
        ):
            if waiter is not None:
                waiter.switch(self)
            elif callback is not None:
                self._on_readable = None
                callback()
        if self._write_waiter is not None and (
            (self._room and not self._is_in_line)
            or self.closed
            or self._session.closed
            or not (self._state is OPEN or self._state is PEER_ENDED)
        ):
            self._write_waiter.switch(self)

    # ---- the window ----------------------------------------------------------------------------------------

    def _consumed(self, count: int) -> None:
        """Let the peer send more in place of the bytes that the reader took."""
        self._session.stored_bytes -= count
        window = self._window
        window.consumed += count
        if window.consumed >= window.half:
            self._grant_more()

    def _grant_more(self) -> None:
        """Half of the window has been read."""
        if self._state is OPEN or self._state is WE_ENDED:
            self._grant(self._window.grant())

    def _grant(self, count: int) -> None:
        self._session.send_window_update(pack(WINDOW_UPDATE, self._take_flags(), self.id, count))

    # ---- for the receiver ----------------------------------------------------------------------------------

    def on_data_header(self, count: int) -> None:
        """A Data frame with `count` bytes has begun; raises `ProtocolError` if the peer may not send them."""
        if count and (self._state is PEER_ENDED or self._state is ENDED):
            raise ProtocolError(f"{self}: data after FIN")
        self._window.use_room(count)
        if self.closed and self._state is WE_ENDED and self._window.room < self._window.size >> 1:
            self._end(SEND_RST)  # the peer keeps sending to a closed stream

    def on_whole_frame(self, view: memoryview) -> bool:
        """A Data frame has come; all else is as with `on_data_header` and `on_data`, for its parts.

        Returns whether somebody has to be woken.
        """
        window, count = self._window, len(view)
        if self._state is OPEN and count <= window.room:
            window.room -= count
            if self._sink is not None and self._handed is None and not self.chunks:
                return self._give(self._sink, view)
            self.chunks.append(view)
            self._session.stored_bytes += count
        else:
            self.on_data_header(count)
            self.on_data(view)
        return True

    def _give(self, sink: Sink, view: memoryview) -> bool:
        """Give bytes to whoever waits in `pass_on`, without a switch; return whether that has to go on."""
        send, counter = sink
        window, count = self._window, len(view)
        counter.bytes += count
        window.consumed += count
        if window.consumed >= window.half:
            self._grant_more()
        self.was_read = True
        try:
            sent = send(view)
        except ConnError as exc:
            self._handed = exc
            return True
        if sent < count:
            self._handed = bytes(view[sent:])
        return sent < count

    def on_data(self, view: memoryview) -> None:
        """Bytes of a Data frame have come, in memory that is borrowed until `copy_borrowed`."""
        if not self.closed and self._state is not RESET:
            self.chunks.append(view)
            self._session.stored_bytes += len(view)

    def copy_borrowed(self) -> None:
        """Copy the bytes that are borrowed and still unread: their memory is about to be reused."""
        self._offset = copy_borrowed(self.chunks, self._offset)

    def _forget_chunks(self) -> None:
        self._session.stored_bytes -= self.stored_bytes
        self.chunks.clear()
        self._offset = 0
