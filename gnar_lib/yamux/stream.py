"""One stream of a session: a conn like any other, with a window in each direction."""

from __future__ import annotations

import socket
from typing import Final

from greenlet import getcurrent

from gnar_lib.errors import ProtocolError
from gnar_lib.net import EventedConn, wait_for
from gnar_lib.yamux.beside import ASK, BESIDE_FLAGS, MOVED, READY, Beside
from gnar_lib.yamux.frame import ACK, DATA, FIN, MAX_WINDOW_BYTES, RST, SYN, pack
from gnar_lib.yamux.incoming import Incoming
from gnar_lib.yamux.state import (
    ENDED,
    OPEN,
    OVER,
    PEER_ENDED,
    RECEIVE_FIN,
    RECEIVE_RST,
    SEND_FIN,
    SEND_RST,
    WE_ENDED,
)

# What one Data frame carries at most: all other streams wait while the frame is sent. 64 KiB and a header are
# more than loopback carries in one packet, and writing them costs up to twice as much for each byte.
FRAME_BYTES: Final = 32 * 1024


class Stream(Incoming):
    """A conn whose bytes travel as frames of a session, which makes it.

    A direction can go on over a conn `beside` the stream: whoever writes may `move`.
    """

    __slots__ = ()

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as fit without waiting, and return how many that were."""
        if self.beside is not None and self.beside.sends:
            return self.beside.conn.send_now(data)
        sender, total, sent = self._session.sender, len(data), 0
        view: bytes | bytearray | memoryview = data
        while sent < total:
            if self._state is not OPEN:
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

    def send_last(self, data: bytes | memoryview) -> bool:
        """Send bytes and end this direction behind them, in one frame.

        Returns False if one frame does not do, has to wait, or is not for this peer: then nothing has been
        sent or ended.
        """
        count, beside = len(data), self.beside
        if not (self._session.joins_end and 0 < count <= min(self._room, FRAME_BYTES)):
            return False
        if beside is not None and beside.sends:
            return False
        self._check_sending()
        if not self._session.sender.has_room():
            return False
        self._room -= count
        self._flags |= FIN
        self._send_with_flags(data)
        self._end(SEND_FIN, is_told=True)
        return True

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

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""
        if self.beside is not None and self.beside.sends:
            self.beside.conn.sendall(data)
            return
        sent = self.send_now(data)
        if sent == len(data):
            if self._state is not OPEN or self._session.closed:
                self._check_sending()
            return
        rest = memoryview(data)[sent:]
        while rest:
            self._wait_to_write()
            rest = rest[self.send_now(rest) :]
        self._check_sending()

    def on_first_in_line(self) -> None:
        """Let the greenlet that waits to send write one frame; runs in the hub."""
        self._is_in_line = False
        if self._write_waiter is not None:
            self._is_first_in_line = True
            self._write_waiter.switch(self)
            self._is_first_in_line = False

    @property
    def has_writer(self) -> bool:
        """Whether a greenlet waits until it may send."""
        return self._write_waiter is not None

    def _wait_to_write(self) -> None:
        if self._room and not self._is_in_line:
            self._is_in_line = True
            self._session.sender.wait_in_line(self)
        self._write_waiter = getcurrent()
        try:
            wait_for(self)
        finally:
            self._write_waiter = None

    def on_window_update(self, count: int) -> None:
        """The peer allows `count` more bytes; raises `ProtocolError` if 32 bits cannot count them."""
        self._room += count
        if self._room > MAX_WINDOW_BYTES:
            raise ProtocolError(f"{self}: a window of {self._room} bytes")

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction (half-close): after `SHUT_WR` the peer reads the end. `SHUT_RD` does nothing."""
        if (conn := self.sends_on) is not None:
            conn.shutdown(how)
        elif how != socket.SHUT_RD and (self._state is OPEN or self._state is PEER_ENDED):
            self._end(SEND_FIN)

    def abort(self) -> None:
        """Close with a reset."""
        if not self.closed:
            if self.beside is not None:
                self.beside.conn.abort()
            self._close()
            if self._state not in OVER:
                self._end(SEND_RST)

    def break_off(self, reason: str) -> None:
        """Reset on behalf of the session. Whoever has the stream is told the `reason`, and has to close."""
        if self._state not in OVER:
            self._why_reset = reason
            self._forget_chunks()
            self._end(SEND_RST)
            self._session.call_soon(self.wake)

    def close(self) -> None:
        """Close, in any state and more than once; a peer that goes on sending is reset."""
        if self._flags & SYN and not self._is_unaccepted:  # held: the peer need not hear of the stream
            self.abort()
        if self.closed:
            return
        self._close()
        if self._state is OPEN or self._state is PEER_ENDED:
            self._end(SEND_FIN)
        if self._state is WE_ENDED:
            self._session.on_half_gone(self.id)
            if grant := self._window.refill():
                self._grant(grant)

    def _close(self) -> None:
        self.closed = True
        if self.beside is not None:
            self.beside.close()
        self._on_readable = None
        if self.chunks:
            self._forget_chunks()
        if self._read_waiter is not None or self._write_waiter is not None:
            self._session.call_soon(self.wake)

    def on_flags(self, flags: int) -> None:
        """A frame has come with these flags: FIN and RST end the stream, ACK accepts it."""
        if self._state in OVER:
            return
        if self._is_unaccepted and flags & ACK:
            self._on_accepted()
        if flags & BESIDE_FLAGS:
            self._on_beside_flags(flags)
            if self._state in OVER:
                return
        if flags & FIN:
            self._end(RECEIVE_FIN)
        if flags & RST and self._state is not ENDED:
            self._end(RECEIVE_RST)  # what came before it can still be read

    # ---- the conn beside the stream ------------------------------------------------------------------------

    def ask_beside(self) -> None:
        """Have a conn brought beside this stream, unless there is one, or the ends do not do that."""
        if self.beside is not None or not self._session.moves or self._state in OVER:
            return
        if not self._session.bring_beside(self.id):
            self._tell(ASK)

    def attach(self, conn: EventedConn, *, is_ready: bool) -> bool:
        """Keep `conn` beside this stream, which closes it; False if there is no use for it.

        `is_ready`: the peer has brought the conn, and is told that it is there.
        """
        if self.beside is not None or self.closed or self._state in OVER or self._session.closed:
            return False
        self.beside = Beside(conn, is_ready=is_ready)
        if is_ready:
            self._tell(READY)
        return True

    def detach(self) -> bool:
        """Do without a conn beside this stream that the peer has not taken, but closed; tell whether so.

        A conn that is open stays: the peer may have it, and have said so behind much that is on the way.
        """
        if self.beside is None or self.beside.is_ready or self.closed or not self.beside.conn.has_hung_up:
            return False
        self.beside.conn.abort()
        self.beside = None
        return True

    @property
    def sends_on(self) -> EventedConn | None:
        """The conn over which this end sends since it has moved; None while it sends on the stream itself."""
        beside = self.beside
        return None if beside is None or not beside.sends else beside.conn

    def move(self) -> bool:
        """Send what follows over the conn beside the stream; False if there is none that both ends have."""
        beside = self.beside
        if beside is None or beside.sends or not beside.is_ready:
            return beside is not None and beside.sends
        self._check_sending()
        if beside.conn.has_hung_up and not beside.receives:  # the peer has given it up since
            beside.is_ready = False
            return False
        self._flags |= MOVED  # which the frame with FIN carries
        beside.sends = True
        self._end(SEND_FIN)
        return True

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
