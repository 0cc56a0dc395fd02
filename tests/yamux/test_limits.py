"""What a peer can make a session hold is limited: streams, stored bytes, handlers and answers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from gevent.event import Event as Signal

from gnar_lib import net
from gnar_lib.errors import ConnClosed, MuxError
from gnar_lib.yamux import arrivals, opening
from gnar_lib.yamux import session as session_module
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from tests.helpers.loop import turn
from tests.peers.mux import (
    Frame,
    clean,
    encode,
    session_and_peer,
    stream_count,
    wait_end,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


@pytest.mark.parametrize("answer", [(WINDOW_UPDATE, ACK), (WINDOW_UPDATE, RST)])
def test_no_more_streams_are_announced_than_the_backlog_of_the_peer_takes(answer: tuple[int, int]) -> None:
    count, crew = opening.ACCEPT_BACKLOG, net.Crew("writers")
    with session_and_peer(is_client=True) as (session, peer):
        streams = [session.open() for _ in range(count + 3)]
        streams[count].abort()
        crew.spawn(streams[count + 1].sendall, b"x")
        assert [peer.recv() for _ in range(count)] == [
            (WINDOW_UPDATE, SYN, stream.id, 0) for stream in streams[:count]
        ]
        peer.send((PING, SYN, 0, 1))
        assert peer.recv() == (PING, ACK, 0, 1)
        peer.send((*answer, 1, 0))
        assert peer.recv() == (WINDOW_UPDATE, SYN, streams[count + 1].id, 0)
        assert peer.recv() == (DATA, 0, streams[count + 1].id, b"x")
        assert crew.wait_empty(5)
        peer.send((*answer, 3, 0))
        assert peer.recv() == (WINDOW_UPDATE, SYN, streams[count + 2].id, 0)


def test_stream_past_the_backlog_is_refused() -> None:
    with session_and_peer() as (session, peer):
        count = arrivals.MAX_UNCLAIMED
        peer.send(*((DATA, SYN, 2 * number + 1, b"x") for number in range(count + 2)))
        assert [peer.recv(), peer.recv()] == [
            (WINDOW_UPDATE, RST, 2 * count + 1, 0),
            (WINDOW_UPDATE, RST, 2 * count + 3, 0),
        ]
        assert [session.accept().recv(1) for _ in range(count)] == [b"x"] * count


def test_streams_opened_and_reset_by_the_thousand_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_HANDLED", 50)
    crew, go = net.Crew("handlers"), Signal()
    with session_and_peer() as (session, peer):
        session.serve(crew, lambda _: wait_for_signal(go))
        for stream_id in range(1, 400, 2):
            peer.send((DATA, SYN, stream_id, b"x"))
            turn()
            peer.send((WINDOW_UPDATE, RST, stream_id, 0))
        peer.send((PING, SYN, 0, 1))
        seen = peer.recv_until((PING, ACK, 0, 1))
        assert len(crew) == 50
        assert sum(each[1] == RST for each in seen) == 150
        assert stream_count(session) == 0
        go.set()
        assert crew.wait_empty(5)


def wait_for_signal(signal: Signal) -> None:
    signal.wait()


@pytest.mark.parametrize(
    "flood",
    [
        [(PING, SYN, 0, 1)],
        [(DATA, SYN | FIN, 2, b"")],  # refused each time, since the session takes none
    ],
)
def test_peer_that_floods_without_reading_ends_its_session(flood: list[Frame]) -> None:
    with session_and_peer(is_client=True) as (session, peer):
        session.go_away()
        piece = b"".join(encode(*each) for each in flood) * 5000
        with pytest.raises(ConnClosed):
            peer.conn.sendall(piece * 100)
        assert "does not read" in str(session.error)


def test_single_bytes_that_nobody_reads_are_kept_in_few_pieces() -> None:
    with session_and_peer() as (session, peer):
        peer.send((WINDOW_UPDATE, SYN, 1, 0))
        stream = session.accept()
        for _ in range(50):
            peer.send(*[(DATA, 0, 1, b"x")] * 100)
            turn()
        assert stream.stored_bytes == 5000
        assert len(stream.chunks) <= 4


def test_what_all_streams_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_STORED_BYTES", 500_000)
    with session_and_peer() as (session, peer):
        for stream_id, size in ((1, 100_000), (3, 200_000), (5, 150_000)):
            peer.send((DATA, SYN, stream_id, bytes(size)))
        peer.send((DATA, 0, 1, bytes(90_000)))
        peer.recv_until((WINDOW_UPDATE, RST | ACK, 3, 0))
        assert session.stored_bytes == 340_000


def test_streams_that_ended_unread_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with session_and_peer() as (session, peer):
        for stream_id in (1, 3, 5):
            peer.send((DATA, SYN | FIN, stream_id, bytes(200_000)))
            session.accept().shutdown(socket.SHUT_WR)
        turn()
        assert (stream_count(session), session.stored_bytes) == (0, 600_000)
        monkeypatch.setattr(session_module, "MAX_STORED_BYTES", 500_000)
        peer.send((PING, ACK, 0, 1))
        assert "still unread" in wait_end(session)


def test_stream_ids_run_out_with_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with session_and_peer(is_client=True) as (session, _):
        monkeypatch.setattr(session, "_next_id", 0xFFFFFFFD)
        assert session.open().id == 0xFFFFFFFD
        assert session.open().id == 0xFFFFFFFF
        with pytest.raises(MuxError, match="used up"):
            session.open()
