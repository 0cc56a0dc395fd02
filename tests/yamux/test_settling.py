"""Streams that nobody claims, accepts or ends: what they cost, how many there may be, and for how long."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import gevent.event
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed
from gnar_lib.yamux import Stream, arrivals, opening, receiver
from gnar_lib.yamux import session as session_module
from gnar_lib.yamux.frame import ACK, DATA, FIN, GO_AWAY, NORMAL, PING, RST, SYN, WINDOW_UPDATE
from gnar_lib.yamux.holdings import STREAM_BYTES, holdings
from tests.helpers.loop import turn
from tests.peers.mux import clean, encode, session_and_peer, session_pair, stream_count, wait_end

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    before = holdings.streams, holdings.spare_growth, len(holdings.holders)
    with clean(TIMEOUT_S):
        yield
    assert (holdings.streams, holdings.spare_growth, len(holdings.holders)) == before


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SETTLE_S", 0.02)
    monkeypatch.setattr(session_module, "LOOK_EVERY_S", 0.01)


def opened(count: int, content: bytes = b"") -> list[tuple[int, int, int, bytes]]:
    """Return the frames that open so many streams."""
    return [(DATA, SYN, 2 * number + 1, content) for number in range(count)]


# ---- streams of the peer -----------------------------------------------------------------------------------


def test_stream_costs_no_greenlet_before_its_first_bytes_are_there() -> None:
    crew, handled = net.Crew("handlers"), list[bytes]()
    with session_and_peer() as (session, peer):
        session.serve(crew, lambda stream: handled.append(stream.recv(100)))
        before = net.busy_greenlets()
        peer.send(*opened(100))
        piece = encode(DATA, 0, 1, b"all")
        peer.conn.sendall(piece[:-4])
        turn()
        assert net.busy_greenlets() <= before
        assert handled == []
        peer.conn.sendall(piece[-4:])
        turn()
        assert handled == [b"all"]


def test_streams_past_the_limit_are_refused_until_others_are_claimed() -> None:
    crew, streams = net.Crew("handlers"), list[Stream]()
    with session_and_peer() as (session, peer):
        session.serve(crew, streams.append)
        most = arrivals.MAX_UNCLAIMED
        peer.send(*opened(most), (DATA, SYN, 2 * most + 1, b""), (PING, SYN, 0, 1))
        assert (WINDOW_UPDATE, RST, 2 * most + 1, 0) in peer.recv_until((PING, ACK, 0, 1))

        def handle(stream: Stream) -> None:
            stream.claim()
            streams.append(stream)
            stream.recv(1)

        session.serve(crew, handle)
        peer.send((DATA, 0, 1, b"x"))
        turn()
        peer.send((DATA, SYN, 2 * most + 3, b""), (PING, SYN, 0, 2))
        assert not any(frame[1] & RST for frame in peer.recv_until((PING, ACK, 0, 2)))
        assert [stream.id for stream in streams] == [1]


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize("content", [b"", b"part"])
def test_stream_that_is_not_claimed_in_time_is_reset(content: bytes) -> None:
    crew, errors = net.Crew("handlers"), list[str]()

    def handle(stream: Stream) -> None:
        try:
            while stream.recv(10):
                pass
        except ConnClosed as exc:
            errors.append(str(exc))

    with session_and_peer() as (session, peer):
        session.serve(crew, handle)
        peer.send((DATA, SYN, 1, content))
        peer.recv_until((WINDOW_UPDATE, RST | ACK, 1, 0))
        assert crew.wait_empty(5)
        assert (stream_count(session), len(session._arrivals)) == (0, 0)
        assert errors == ["192.0.2.1:4000 stream 1: the first message of the stream took too long"] * bool(
            content
        )


@pytest.mark.usefixtures("_hurried")
def test_stream_that_was_claimed_has_all_the_time_in_the_world() -> None:
    crew = net.Crew("handlers")

    def handle(stream: Stream) -> None:
        stream.recv(1)
        stream.claim()
        stream.sendall(stream.recv(1))

    with session_and_peer() as (session, peer):
        session.serve(crew, handle)
        peer.send((DATA, SYN, 1, b"x"), (DATA, SYN, 3, b""))
        peer.recv_until((WINDOW_UPDATE, RST | ACK, 3, 0))  # which came later
        peer.send((DATA, 0, 1, b"y"))
        assert peer.recv() == (DATA, ACK, 1, b"y")


def test_streams_of_all_sessions_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "limit_bytes", 2 * 10 * STREAM_BYTES)
    with session_and_peer() as (_, first), session_and_peer() as (_, second):
        first.send(*opened(8), (PING, SYN, 0, 1))
        assert first.recv() == (PING, ACK, 0, 1)
        second.send(*opened(3), (PING, SYN, 0, 1))
        assert second.recv_until((PING, ACK, 0, 1)) == [(WINDOW_UPDATE, RST, 5, 0)]
        first.send((WINDOW_UPDATE, RST, 1, 0))
        turn()
        second.send((DATA, SYN, 7, b""), (PING, SYN, 0, 2))
        assert second.recv() == (PING, ACK, 0, 2)


def test_bytes_of_all_sessions_share_one_limit_and_whoever_holds_most_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holdings, "limit_bytes", 800_000)
    with session_and_peer() as (little, first), session_and_peer() as (much, second):
        first.send((DATA, SYN, 1, bytes(150_000)))
        turn()
        second.send((DATA, SYN, 1, bytes(200_000)), (DATA, SYN, 3, bytes(100_000)))
        second.recv_until((WINDOW_UPDATE, RST | ACK, 1, 0))
        assert (little.stored_bytes, much.stored_bytes) == (150_000, 100_000)


def test_peer_that_reads_nothing_pays_when_all_sessions_hold_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holdings, "limit_bytes", 400_000)
    with session_and_peer() as (session, peer):
        pings = b"".join(encode(PING, SYN, 0, number) for number in range(5000))
        with pytest.raises(ConnClosed):
            peer.conn.sendall(pings * 100)
        assert "does not read" in wait_end(session)


# ---- streams of this end -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hurried")
def test_stream_that_the_peer_does_not_accept_in_time_is_reset() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        streams = [session.open() for _ in range(300)]  # more than a peer is told of at once
        streams[0].sendall(b"x")
        for stream in streams:
            with pytest.raises(ConnClosed, match="not accepted the stream in time"):
                stream.recv(1)
        assert (stream_count(session), len(session._opening)) == (0, 0)
        session.close()
        assert len([frame for frame in peer.recv_to_end() if frame[1] & RST]) >= opening.ACCEPT_BACKLOG


@pytest.mark.usefixtures("_hurried")
def test_whoever_waits_for_bytes_in_the_hub_is_called_when_the_session_resets_the_stream() -> None:
    with session_and_peer(is_client=True) as (session, _peer):
        stream, called = session.open(), gevent.event.Event()
        stream.call_once_readable(called.set)
        assert called.wait(TIMEOUT_S)
        with pytest.raises(ConnClosed, match="not accepted the stream in time"):
            stream.recv(1)
        assert not stream.closed  # whoever has it closes it


@pytest.mark.usefixtures("_hurried")
def test_stream_that_the_peer_has_accepted_stays() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        accepted, other = session.open(), session.open()
        peer.send((WINDOW_UPDATE, ACK, 1, 0))
        with pytest.raises(ConnClosed):
            other.recv(1)
        peer.send((DATA, 0, 1, b"late"))
        assert accepted.recv(10) == b"late"


# ---- turns of the loop -------------------------------------------------------------------------------------


def test_flood_of_small_frames_leaves_others_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pings = 0

    with session_and_peer() as (flooded, peer), session_pair() as (client, server):
        other = client.open()
        other.sendall(b"x")
        far = server.accept()

        def count(_flags: int, _number: int) -> None:
            nonlocal pings
            pings += 1

        monkeypatch.setattr(flooded, "on_ping", count)
        peer.conn.sendall(encode(PING, SYN, 0, 1) * 10_000)
        seen = [0]
        while pings < 10_000:
            far.recv(1)
            other.sendall(b"x")
            seen.append(pings)
        assert max(after - before for before, after in pairwise(seen)) <= 4 * receiver.MAX_FRAMES


# ---- draining ----------------------------------------------------------------------------------------------


def test_session_that_drains_ends_with_its_last_stream() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, b"x"))
        stream = session.accept()
        session.drain()
        peer.send((DATA, SYN, 3, b"x"))
        assert [frame for frame in peer.recv_until((WINDOW_UPDATE, RST, 3, 0)) if frame[0] == GO_AWAY] == [
            (GO_AWAY, 0, 0, NORMAL)
        ]
        stream.sendall(b"goes on")
        assert peer.recv() == (DATA, ACK, 1, b"goes on")
        stream.close()
        peer.send((WINDOW_UPDATE, FIN, 1, 0))
        session.wait_end()
        assert session.error is None


def test_session_without_streams_drains_at_once() -> None:
    with session_and_peer() as (session, _):
        session.drain()
        assert session.closed
