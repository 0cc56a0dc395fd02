"""What both directions of a stream have in common: how they end, and what the peer is told of that."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from greenlet import greenlet

from gnar_lib.errors import ConnError, ProtocolError, WriteError
from gnar_lib.net import EventedConn, Sockaddr
from gnar_lib.net.contract import Counter
from gnar_lib.yamux.beside import Beside
from gnar_lib.yamux.frame import DATA, FIN, INITIAL_WINDOW_BYTES, RST, SYN, WINDOW_UPDATE, pack
from gnar_lib.yamux.owner import Owner
from gnar_lib.yamux.state import (
    ENDED,
    OPEN,
    PEER_ENDED,
    RESET,
    SEND_FIN,
    SEND_RST,
    TRANSITIONS,
    WE_ENDED,
    Event,
)
from gnar_lib.yamux.window import Window

Sink = tuple[Callable[[bytes | memoryview], int], Counter]
"""Takes bytes without waiting and returns how many it took; and counts what it was given."""


class Ends:
    """A stream of a session, without its bytes; forgotten by the session when both ends have ended it."""

    __slots__ = (
        "_first",
        "_flags",
        "_handed",
        "_is_first_in_line",
        "_is_in_line",
        "_is_unaccepted",
        "_offset",
        "_on_readable",
        "_overtook_in",
        "_read_waiter",
        "_room",
        "_session",
        "_sink",
        "_state",
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
        self._state = OPEN  # changes in `_end` alone
        self._flags = flags  # SYN or ACK, until a frame has carried it to the peer
        self._first = first  # what the first Data frame carries before anything else
        self._room = 0 if flags & SYN else INITIAL_WINDOW_BYTES  # bytes that this end may send
        self._is_unaccepted = False  # the peer knows of the stream, and has not accepted it yet
        self._window = Window(session.path, self.since_s)  # what the peer may send
        self._offset = 0  # bytes of the first chunk that have been read
        self._sink: Sink | None = None  # where `pass_on` has the receiver send what comes, while it waits
        self._handed: bytes | ConnError | None = None  # what the sink did not take, or with what it failed
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

    def claim(self) -> None:
        """Take note that the stream has said what it is for: until then the peer may have few of them."""
        self._session.on_claimed(self.id)

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come any more, if the other end has gone without a word; else empty."""
        beside = self.beside
        has_moved = beside is not None and (beside.sends or beside.receives)
        if beside is not None and has_moved and (reason := beside.conn.why_gone(now_s)):
            return reason
        is_broken = self._state is RESET or (self._session.closed and self._state is not ENDED)
        return f"{self}: {self._why_broken}" if is_broken and not self.chunks else ""

    @property
    def _why_broken(self) -> str:
        """Why nothing travels any more on a stream that this end has not closed."""
        return self._why_reset if self._state is RESET else self._session.why_closed

    @property
    def _has_ended(self) -> bool:
        """Whether nothing more comes on the stream itself."""
        return self._session.closed or not (self._state is OPEN or self._state is WE_ENDED)

    @property
    def has_hung_up(self) -> bool:
        """Whether the peer sends nothing more."""
        return self._has_ended if (conn := self.reads_on) is None else conn.has_hung_up

    @property
    def reads_on(self) -> EventedConn | None:
        """The conn from which the next bytes come; None while they come from the stream itself."""
        beside = self.beside
        return None if beside is None or not beside.receives or self.chunks else beside.conn

    # ---- telling the peer ----------------------------------------------------------------------------------

    def send_flags(self) -> None:
        """Tell the peer that the stream is open or accepted, unless a frame has carried that already."""
        if self._first:
            self._send_with_flags()
        elif self._flags:
            self._tell(0)

    def announce(self) -> bool:
        """Allow sending, with SYN in the first frame; return False if the stream has ended already."""
        if self._flags & SYN:
            self._room = INITIAL_WINDOW_BYTES - len(self._first)
            self._is_unaccepted = True
        return self._is_unaccepted

    def _on_accepted(self) -> None:
        self._is_unaccepted = False
        self._session.on_accepted(self.id)

    def _check_sending(self) -> None:
        if self.closed:
            raise WriteError(f"{self}: closed")
        state = self._state
        if state is not OPEN and state is not PEER_ENDED and state is not RESET:
            raise WriteError(f"{self}: shut down for writing")
        if state is RESET or self._session.closed:
            raise WriteError(f"{self}: {self._why_broken}")

    def _end(self, event: Event, *, is_told: bool = False) -> None:
        """Change the state as the table says, tell the peer, and leave the session if all has ended.

        `is_told`: a frame with bytes has told the peer.
        """
        state = TRANSITIONS.get((self._state, event))
        if state is None:
            raise ProtocolError(f"{self}: {event.value} in state {self._state.name}")
        self._state = state
        if self._session.closed:
            return
        if event is SEND_FIN:
            if not is_told:
                self._tell(FIN)
        elif event is SEND_RST and not self._flags & SYN:  # the peer knows of the stream
            self._tell(RST)
        if state is ENDED or state is RESET:
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

    def _send_with_flags(self, view: bytes | bytearray | memoryview = b"") -> None:
        """Send the first Data frame of a stream: the bytes that were given at its opening, then `view`."""
        first, self._first = self._first, b""
        header = pack(DATA, self._take_flags(), self.id, len(first) + len(view))
        self._session.sender.send_data(header, b"".join((first, view)) if first else view)

    def _take_flags(self) -> int:
        flags, self._flags = self._flags, 0
        return flags
