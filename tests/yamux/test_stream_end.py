"""How streams end: half-close, close and reset, from either side, and what comes late."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed, WriteError
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    INITIAL_WINDOW_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from gnar_lib.yamux.stream import FRAME_BYTES
from tests.helpers.loop import turn
from tests.peers.mux import (
    clean,
    encode,
    read_all,
    session_and_peer,
    session_pair,
    stream_count,
    stream_pair,
    wait_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gnar_lib.yamux import Stream

TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


def test_last_bytes_and_the_end_behind_them_leave_in_one_frame() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, b"question"))
        stream = session.accept()
        assert not stream.send_last(b"answer")  # hashicorp's would read the end, and miss the answer
        session.joins_end = True
        assert stream.send_last(b"answer")
        assert peer.recv() == (DATA, ACK | FIN, 1, b"answer")
        for write in (stream.sendall, stream.send_last):
            with pytest.raises(WriteError):
                write(b"more")
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(100) == b"question"
        peer.send((DATA, FIN, 1, b"thanks"))
        assert read_all(stream) == b"thanks"
        assert stream_count(session) == 0


def test_last_bytes_that_do_not_fit_into_one_frame_are_not_sent_as_such() -> None:
    with stream_pair() as (ours, theirs):
        assert not ours.send_last(bytes(FRAME_BYTES + 1))
        ours.sendall(bytes(INITIAL_WINDOW_BYTES - 1))
        assert not ours.send_last(b"two")
        ours.shutdown(socket.SHUT_WR)
        assert len(read_all(theirs)) == INITIAL_WINDOW_BYTES - 1


@pytest.mark.parametrize("first", [0, 1])
def test_half_close_keeps_the_other_direction_open(first: int) -> None:
    with stream_pair() as pair:
        ended, other = pair[first], pair[1 - first]
        ended.sendall(b"last words")
        ended.shutdown(socket.SHUT_WR)
        ended.shutdown(socket.SHUT_WR)
        assert read_all(other) == b"last words"
        with pytest.raises(ConnClosed, match="shut down"):
            ended.sendall(b"more")
        for _ in range(3):
            other.sendall(bytes(100_000))
            received = 0
            while received < 100_000:
                received += len(ended.recv(65536))
        other.shutdown(socket.SHUT_WR)
        assert ended.recv(10) == b""


def test_stream_is_forgotten_when_both_ends_have_ended_it_and_not_before() -> None:
    with session_pair() as (client, server):
        ours = client.open()
        theirs = server.accept()
        ours.close()
        turn()
        assert (stream_count(client), stream_count(server)) == (1, 1)
        theirs.shutdown(socket.SHUT_WR)
        turn()
        assert (stream_count(client), stream_count(server)) == (0, 0)


def test_window_grown_by_a_stream_returns_when_it_ends() -> None:
    with session_pair() as (client, server):
        server.path.set_rtt(60.0)
        ours = client.open()
        ours.sendall(bytes(INITIAL_WINDOW_BYTES))
        theirs = server.accept()
        for _ in range(4):
            theirs.recv(65536)
        assert server.path.grown_bytes > 0
        ours.close()
        theirs.close()
        turn()
        assert server.path.grown_bytes == 0


@pytest.mark.parametrize("what", ["close", "abort"])
def test_whoever_waits_on_a_stream_learns_that_it_was_closed(what: str) -> None:
    with stream_pair() as (ours, _):
        crew, errors = net.Crew("waiters"), []

        def wait(action: Callable[[], object]) -> None:
            try:
                action()
            except ConnClosed as exc:
                errors.append(str(exc))

        crew.spawn(wait, lambda: ours.recv(10))
        crew.spawn(wait, lambda: ours.sendall(bytes(2 * INITIAL_WINDOW_BYTES)))
        turn()
        getattr(ours, what)()
        getattr(ours, what)()
        assert crew.wait_empty(5)
        assert errors == ["192.0.2.1:4000 stream 1: closed"] * 2
        for action in (lambda: ours.recv(1), lambda: ours.sendall(b"x"), lambda: ours.send_now(b"x")):
            with pytest.raises(ConnClosed):
                action()


def test_reset_reaches_reader_and_writer_of_the_peer() -> None:
    with stream_pair() as (ours, theirs):
        crew, errors = net.Crew("waiters"), []

        def wait(action: Callable[[], object]) -> None:
            try:
                action()
            except ConnClosed as exc:
                errors.append(str(exc))

        crew.spawn(wait, lambda: ours.recv(10))
        crew.spawn(wait, lambda: ours.sendall(bytes(2 * INITIAL_WINDOW_BYTES)))
        turn()
        theirs.abort()
        assert crew.wait_empty(5)
        assert errors == ["192.0.2.1:4000 stream 1: reset by the peer"] * 2


def test_stream_aborted_before_the_peer_heard_of_it_costs_no_frame() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        session.open().abort()
        session.open()
        assert peer.recv() == (WINDOW_UPDATE, SYN, 3, 0)


def test_late_frames_of_a_closed_stream_are_drained_and_ignored() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        closed, aborted = session.open(), session.open()
        turn()
        closed.close()
        aborted.abort()
        peer.send(
            (DATA, ACK, 1, bytes(1000)),
            (WINDOW_UPDATE, 0, 1, 1000),
            (DATA, ACK, 3, bytes(1000)),
            (WINDOW_UPDATE, RST, 3, 0),
            (DATA, FIN, 1, b"last"),
            (DATA, 0, 1, b"and more"),
            (DATA, FIN, 99, b"never heard of"),
            (PING, SYN, 0, 7),
        )
        peer.recv_until((PING, ACK, 0, 7))
        assert stream_count(session) == 0
        assert not session.closed


def test_peer_that_does_not_stop_sending_to_a_closed_stream_is_told_to() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        session.open().close()
        for _ in range(5):
            peer.send((DATA, 0, 1, bytes(32768)))
        assert [each[:2] for each in peer.recv_until((WINDOW_UPDATE, RST, 1, 0))][-1] == (
            WINDOW_UPDATE,
            SYN | FIN,
        )
        assert stream_count(session) == 0


def test_bytes_in_the_frame_that_ends_the_stream_arrive_before_its_end() -> None:
    with session_and_peer() as (session, peer):
        data = encode(DATA, SYN | FIN, 1, b"all of it")
        peer.conn.sendall(data[:15])
        stream = session.accept()
        assert stream.recv(100) == b"all"
        peer.conn.sendall(data[15:])
        assert read_all(stream) == b" of it"


def test_what_came_before_a_reset_is_read_before_the_error() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, b"the whole "))
        stream = session.accept()
        peer.send((DATA, 0, 1, b"answer"), (WINDOW_UPDATE, RST, 1, 0))
        turn()
        with pytest.raises(WriteError, match="reset by the peer"):
            stream.sendall(b"x")
        assert stream.recv(100) == b"the whole answer"
        with pytest.raises(ConnClosed, match="reset by the peer"):
            stream.recv(100)


def test_closing_frees_what_nobody_has_read_of_a_stream_that_was_reset() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, bytes(1000)))
        stream = session.accept()
        peer.send((WINDOW_UPDATE, RST, 1, 0))
        turn()
        assert session.stored_bytes == 1000
        stream.close()
        assert session.stored_bytes == stream.stored_bytes == 0


def test_reset_frees_a_stream_that_nobody_has_accepted() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, bytes(1000)), (WINDOW_UPDATE, RST, 1, 0))
        turn()
        assert (session.stored_bytes, stream_count(session)) == (0, 0)


def test_stream_that_is_reset_at_once_gets_no_handler() -> None:
    crew = net.Crew("handlers")
    handled: list[Stream] = []
    with session_and_peer() as (session, peer):
        session.serve(crew, handled.append)
        peer.send((DATA, SYN, 1, b"x"), (WINDOW_UPDATE, RST, 1, 0), (DATA, SYN, 3, b"x"))
        turn()
        assert [stream.id for stream in handled] == [3]


def test_end_of_the_conn_ends_streams_with_an_error_unless_they_had_ended() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN | FIN, 1, b"whole"), (DATA, SYN, 3, b"part"))
        whole, part = session.accept(), session.accept()
        peer.recv_until((WINDOW_UPDATE, ACK, 3, 0))
        peer.conn.close()
        wait_end(session)
        assert read_all(whole) == b"whole"
        assert part.recv(100) == b"part"
        with pytest.raises(ConnClosed, match="the peer closed the connection"):
            part.recv(100)
