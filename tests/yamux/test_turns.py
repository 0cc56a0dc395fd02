"""Streams of one session take turns: no stream holds another up, however much it sends."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

import pytest

from gnar_lib import net
from gnar_lib.yamux import sender
from gnar_lib.yamux.frame import (
    INITIAL_WINDOW_BYTES,
)
from tests.helpers.loop import turn
from tests.peers.mux import (
    Peer,
    clean,
    session_and_peer,
    session_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gnar_lib.yamux import Stream

TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


def next_data(peer: Peer) -> tuple[int, int, int, bytes]:
    """Return the next Data frame of a peer's session; fails the test at the end of the stream."""
    while each := peer.recv():
        kind, flags, stream_id, content = each
        if isinstance(content, bytes):
            return kind, flags, stream_id, content
    pytest.fail("the end, instead of data")


def data_frames_before(peer: Peer, content: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the Data frames that come before the one with this content."""
    while (each := next_data(peer))[3] != content:
        yield each


def test_stopped_reader_holds_its_window_and_no_other_stream() -> None:
    with session_pair() as (client, server):
        stopped, other = client.open(), client.open()
        crew = net.Crew("writer")
        crew.spawn(stopped.sendall, bytes(2 * INITIAL_WINDOW_BYTES))
        far_stopped, far_other = server.accept(), server.accept()
        for number in range(100):
            other.sendall(b"%d" % number)
            assert far_other.recv(10) == b"%d" % number
        assert far_stopped.stored_bytes == server.stored_bytes == INITIAL_WINDOW_BYTES
        received = 0
        while received < 2 * INITIAL_WINDOW_BYTES:
            received += len(far_stopped.recv(65536))
        assert crew.wait_empty(5)


def test_small_frame_is_not_behind_megabytes_of_bulk() -> None:
    crew = net.Crew("writers")
    with session_and_peer(is_client=True) as (session, peer):
        for _ in range(16):
            crew.spawn(session.open().sendall, bytes(INITIAL_WINDOW_BYTES))
        turn()
        session.open().sendall(b"urgent")
        before = sum(len(content) for _, _, _, content in data_frames_before(peer, b"urgent"))
        assert before < peer.conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + sender.FULL_BYTES
        left = 16 * INITIAL_WINDOW_BYTES - before
        while left:
            left -= len(next_data(peer)[3])
        assert crew.wait_empty(5)


def test_small_frames_of_others_do_not_hold_up_bulk_for_ever() -> None:
    crew, size = net.Crew("writers"), 100_000

    def write_small(stream: Stream) -> None:
        for _ in range(INITIAL_WINDOW_BYTES // 4096):
            stream.sendall(bytes(4096))

    with session_and_peer(is_client=True) as (session, peer):
        for _ in range(8):
            crew.spawn(write_small, session.open())
        bulk = session.open()
        crew.spawn(bulk.sendall, bytes(size))
        small = bulk_bytes = 0
        while bulk_bytes < size:
            _, _, stream_id, content = next_data(peer)
            if stream_id == bulk.id:
                bulk_bytes += len(content)
            else:
                small += len(content)
        assert small < 6 * INITIAL_WINDOW_BYTES  # of 8
        while small < 8 * INITIAL_WINDOW_BYTES:
            small += len(next_data(peer)[3])
        assert crew.wait_empty(5)


class SlowConn:
    """The part of a conn that a sender needs; takes as many bytes as there is `room`."""

    closed = False
    room = 0
    on_writable: Callable[[], None] | None = None

    def limit_unsent(self, limit_bytes: int) -> None:
        assert limit_bytes == sender.UNSENT_BYTES

    def send_now(self, data: bytes) -> int:
        sent = min(self.room, len(data))
        self.room -= sent
        return sent

    def sendmsg_now(self, buffers: list[bytes]) -> int:
        return self.send_now(b"".join(buffers))

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        self.on_writable = callback


class WriterInLine:
    """A writer that counts its turns."""

    turns = 0

    def send_flags(self) -> None:
        pytest.fail("it has nothing to say")

    def on_first_in_line(self) -> None:
        self.turns += 1


def test_writer_in_line_gets_a_turn_though_the_socket_stays_full() -> None:
    conn, writer = SlowConn(), WriterInLine()
    ours = sender.Sender(cast("net.SocketConn", conn), lambda error: pytest.fail(str(error)))
    ours.send_data(bytes(12), bytes(30_000))
    assert not ours.has_room()
    ours.wait_in_line(writer)
    for turns in range(1, 4):
        epoch = ours.epoch
        conn.room = 1000
        assert conn.on_writable is not None
        conn.on_writable()
        assert (writer.turns, ours.epoch) == (turns, epoch + 1)
        ours.wait_in_line(writer)
