"""The session itself: pings, keep-alive, going away, closing, and the window that a round trip calls for."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError, MuxError
from gnar_lib.net import options, rota
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    NORMAL,
    PING,
    SYN,
    WINDOW_UPDATE,
)
from tests.helpers.loop import turn
from tests.peers.mux import (
    clean,
    encode,
    session_and_peer,
    session_pair,
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


def test_ping_measures_the_round_trip() -> None:
    with session_pair() as (client, server):
        assert 0 < client.ping() < 5
        assert client.path.rtt_s > 0
        assert server.path.rtt_s == 0
        assert server.ping() > 0


def test_ping_of_the_peer_is_answered_with_its_number() -> None:
    with session_and_peer() as (_, peer):
        peer.send((PING, ACK, 0, 5), (PING, SYN, 0, 0xDEADBEEF))
        assert peer.recv() == (PING, ACK, 0, 0xDEADBEEF)


def test_ping_waits_no_longer_than_the_session_lives() -> None:
    with session_and_peer() as (session, peer):

        def answer() -> None:
            peer.recv()
            peer.conn.close()

        gevent.spawn(answer)
        with pytest.raises(MuxError, match="the peer closed"):
            session.ping()


def test_ping_may_be_given_up() -> None:
    with session_and_peer() as (session, peer):
        with pytest.raises(ConnError), net.deadline(0.01, "the ping"):
            session.ping()
        peer.send((PING, ACK, 0, 0))
        peer.send((DATA, SYN, 1, b"x"))
        assert session.accept().recv(1) == b"x"


def test_after_go_away_streams_go_on_and_no_new_ones_come() -> None:
    with session_pair() as (client, server):
        ours = client.open()
        theirs = server.accept()
        server.go_away()
        late = client.open()  # before it has heard
        with pytest.raises(ConnClosed):
            late.recv(1)
        with pytest.raises(MuxError, match="no further streams"):
            client.open()
        ours.sendall(b"still")
        assert theirs.recv(10) == b"still"
        assert server.open().id == 2


def test_close_says_so_and_ends_everything_once() -> None:
    with session_and_peer() as (session, peer):
        crew, ends = net.Crew("waiters"), []

        def wait() -> None:
            session.wait_end()
            ends.append(session.error)

        peer.send((DATA, SYN, 1, b"x"))
        stream = session.accept()
        crew.spawn(wait)
        turn()
        assert ends == []
        session.close()
        session.close()
        frames = peer.recv_to_end()
        assert frames[-1] == (GO_AWAY, 0, 0, NORMAL)
        session.wait_end()
        assert crew.wait_empty(5)
        assert (ends, stream_count(session)) == ([None], 0)
        for action in (lambda: stream.sendall(b"x"), session.accept, session.open, session.ping):
            with pytest.raises((ConnClosed, MuxError), match="closed"):
                action()


def test_last_bytes_and_ends_of_streams_leave_before_the_session_closes() -> None:
    with session_and_peer() as (session, peer):
        for number in (1, 3):
            peer.send((DATA, SYN, number, b"x"))
        streams = [session.accept(), session.accept()]
        for stream in streams:
            stream.sendall(b"bye")
            stream.close()
        session.close()
        ends = [each for each in peer.recv_to_end() if each[1] & FIN]
        assert ends == [(WINDOW_UPDATE, FIN, 1, 0), (WINDOW_UPDATE, FIN, 3, 0)]


def test_greenlets_that_accept_learn_that_the_session_ended() -> None:
    with session_and_peer() as (session, peer):
        crew, errors = net.Crew("acceptors"), []

        def accept() -> None:
            try:
                session.accept()
            except MuxError as exc:
                errors.append(str(exc))

        crew.spawn(accept)
        crew.spawn(accept)
        turn()
        peer.conn.close()
        assert crew.wait_empty(5)
        assert errors == ["192.0.2.1:4000: the peer closed the connection"] * 2


@pytest.mark.parametrize("reason", [1, 2, 9])
def test_peer_that_goes_because_of_an_error_ends_the_session(reason: int) -> None:
    with session_and_peer() as (session, peer):
        peer.send((GO_AWAY, 0, 0, reason))
        assert "the peer ended the session" in wait_end(session)


@pytest.fixture
def patience_s() -> Iterator[float]:
    """Have sessions give silent peers up after 0.2 s."""
    options.set_dead_after(0.2)
    yield 0.2
    options.set_dead_after(options.DEFAULT_DEAD_AFTER_S)


def test_pause_of_this_process_is_no_silence_of_the_peer(
    patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rota, "SLACK_S", patience_s)
    with session_and_peer() as (session, peer):
        time.sleep(3 * patience_s)  # all of the process stands still, as after SIGSTOP
        assert peer.recv() == (PING, SYN, 0, 0)
        assert not session.closed
        assert "not been heard from" in wait_end(session)  # it has had its time since


@pytest.mark.usefixtures("patience_s")
def test_silent_peer_is_asked_and_given_up() -> None:
    with session_and_peer() as (session, peer):
        assert "not been heard from" in wait_end(session)
        assert peer.recv() == (PING, SYN, 0, 0)


def test_any_byte_is_a_sign_of_life(patience_s: float) -> None:
    with session_and_peer() as (session, peer):
        began = time.monotonic()
        peer.send((DATA, SYN, 1, b""))
        piece = encode(DATA, 0, 1, b"in pieces, as over a slow line, for longer than a peer may be silent")
        for number in range(len(piece) - 1):
            peer.conn.sendall(piece[number : number + 1])
            gevent.sleep(patience_s / 40)
        assert time.monotonic() - began > patience_s
        assert not session.closed


def test_peer_that_answers_is_kept(patience_s: float) -> None:
    with session_and_peer() as (session, peer):
        began, number = time.monotonic(), 0
        while time.monotonic() - began < 2 * patience_s:
            assert peer.recv() == (PING, SYN, 0, number)
            peer.send((PING, ACK, 0, number))
            number += 1
        assert not session.closed
        assert session.path.rtt_s > 0


@pytest.mark.usefixtures("patience_s")
def test_question_that_cannot_be_written_ends_the_session() -> None:
    with session_pair() as (session, other):
        cast("Any", other._conn).sock.shutdown(socket.SHUT_RD)  # a write fails from here on
        assert "not been heard" not in wait_end(session)


def test_round_trip_is_measured_when_a_window_relies_on_it_and_the_window_grows() -> None:
    with session_and_peer() as (session, peer):
        peer.send((WINDOW_UPDATE, SYN, 1, 0))
        stream = session.accept()
        peer.recv()

        def use(count: int) -> None:
            peer.send((DATA, 0, 1, bytes(count)))
            while count:
                count -= len(stream.recv(count))

        use(INITIAL_WINDOW_BYTES // 2)
        assert [peer.recv(), peer.recv()] == [
            (WINDOW_UPDATE, 0, 1, INITIAL_WINDOW_BYTES // 2),
            (PING, SYN, 0, 0),
        ]
        peer.send((PING, ACK, 0, 0))
        turn()
        session.path.set_rtt(60.0)
        use(INITIAL_WINDOW_BYTES // 2)
        assert peer.recv() == (WINDOW_UPDATE, 0, 1, INITIAL_WINDOW_BYTES // 2 + INITIAL_WINDOW_BYTES)
