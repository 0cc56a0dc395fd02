"""Sessions for tests: two of ours joined by a socket pair, or one of ours against frames written by hand."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.hub import get_hub

from gnar_lib import net
from gnar_lib.net.conn import socket_class
from gnar_lib.yamux import Session, frame
from tests.helpers.loop import turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnar_lib.yamux import Stream

ADDRESS = ("192.0.2.1", 4000)


def conn_pair() -> tuple[net.SocketConn, net.SocketConn]:
    """Return two conns that are joined."""
    ours, theirs = socket.socketpair()
    conns = [
        net.SocketConn(socket_class(sock.family, sock.type, sock.proto, fileno=sock.detach()), ADDRESS)
        for sock in (ours, theirs)
    ]
    return conns[0], conns[1]


@contextmanager
def clean(timeout_s: float) -> Iterator[None]:
    """Fail if the block takes longer than `timeout_s`, leaves a greenlet, or raises an error in the hub."""
    hub = get_hub()
    errors: list[object] = []
    turn()
    before = net.busy_greenlets()
    with pytest.MonkeyPatch.context() as patch, gevent.Timeout(timeout_s):
        patch.setattr(hub, "handle_error", lambda *error: errors.append(error))
        yield
        turn()
        while net.busy_greenlets() > before:  # a thousand of them end in more than one turn
            turn()
    assert errors == []
    assert net.busy_greenlets() <= before


@contextmanager
def session_pair() -> Iterator[tuple[Session, Session]]:
    """Yield two sessions that are joined, the client's first; both are closed behind the block."""
    ours, theirs = conn_pair()
    client, server = Session(ours, is_client=True), Session(theirs, is_client=False)
    client.joins_end = server.joins_end = True
    try:
        yield client, server
    finally:
        client.close()
        server.close()
        turn()


@contextmanager
def stream_pair() -> Iterator[tuple[Stream, Stream]]:
    """Yield both ends of one stream, the opener's first."""
    with session_pair() as (client, server):
        ours = client.open()
        yield ours, server.accept()


def wait_end(session: Session) -> str:
    """Wait until a session has ended; return its error as text."""
    session.wait_end()
    return str(session.error)


def stream_count(session: Session) -> int:
    """Return how many streams the session knows: those that have not been ended by both ends."""
    return len(session.streams)


def read_all(stream: Stream) -> bytes:
    """Read to the end of the stream."""
    return b"".join(iter(lambda: stream.recv(65536), b""))


Frame = tuple[int, int, int, bytes | int]
"""Kind, flags, stream id, and the payload of Data or the length of any other."""


class Peer:
    """The other end of a session of ours: a test sends and receives single frames."""

    def __init__(self, conn: net.SocketConn) -> None:
        self.conn = conn

    def send(self, *frames: Frame) -> None:
        """Send frames, all in one piece."""
        self.conn.sendall(b"".join(encode(*each) for each in frames))

    def recv(self) -> Frame | None:
        """Return the next frame, or None at the end of the stream."""
        header = self._recv_exactly(frame.HEADER_BYTES)
        if not header:
            return None
        kind, flags, stream_id, length = frame.unpack(header)
        return kind, flags, stream_id, self._recv_exactly(length) if kind == frame.DATA else length

    def recv_until(self, wanted: Frame) -> list[Frame]:
        """Receive frames until `wanted` comes, and return those before it."""
        found: list[Frame] = []
        while (each := self.recv()) != wanted:
            assert each is not None, f"the end, instead of {wanted}; before it {found}"
            found.append(each)
        return found

    def recv_to_end(self) -> list[Frame]:
        """Return all frames up to the end of the stream."""
        return list(iter(self.recv, None))

    def _recv_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.conn.recv(size - len(data))
            if not more:
                assert not data, "the end in the middle of a frame"
                return b""
            data += more
        return data


def encode(kind: int, flags: int, stream_id: int, content: bytes | int) -> bytes:
    """Return the bytes of one frame."""
    if isinstance(content, int):
        return frame.pack(kind, flags, stream_id, content)
    return frame.pack(kind, flags, stream_id, len(content)) + content


@contextmanager
def session_and_peer(*, is_client: bool = False) -> Iterator[tuple[Session, Peer]]:
    """Yield a session of ours and the peer that the test plays; both are closed behind the block."""
    ours, theirs = conn_pair()
    session = Session(ours, is_client=is_client)
    try:
        yield session, Peer(theirs)
    finally:
        session.close()
        theirs.close()
        turn()
