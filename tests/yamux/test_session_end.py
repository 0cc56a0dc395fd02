"""A session ends without a loss: what was sent last arrives, whatever the session was kept open for."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed
from gnar_lib.net.options import SocketOption
from gnar_lib.yamux import Session, Stream
from gnar_lib.yamux import parting as parting_module
from gnar_lib.yamux import session as session_module
from gnar_lib.yamux.frame import DATA, FIN, GO_AWAY, NORMAL, PING, RST, SYN, WINDOW_UPDATE
from gnar_lib.yamux.parting import parting
from gnar_lib.yamux.sender import MAX_QUEUE_BYTES
from tests.helpers.loop import turn, wait_until
from tests.peers.mux import clean, encode, read_all, session_and_peer, session_pair, stream_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 20.0
MUCH = b"z" * 200_000


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SETTLE_S", 0.02)
    monkeypatch.setattr(session_module, "HALF_GONE_S", 0.02)
    monkeypatch.setattr(session_module, "LOOK_EVERY_S", 0.01)


@pytest.fixture
def narrow() -> Iterator[tuple[Session, Session]]:
    """Return a client's and a server's session over TCP that holds little on its way."""
    few = [SocketOption("rcvbuf", socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    crew, accepted = net.Crew("service"), list[net.SocketConn]()
    listener = net.listen("127.0.0.1", 0, few)
    listener.serve(crew, accepted.append)
    ours = net.dial(socket.AF_INET, ("127.0.0.1", listener.port))
    wait_until(lambda: accepted, "the session's conn is accepted")
    client, server = Session(ours, is_client=True), Session(accepted[0], is_client=False)
    yield client, server
    client.abort()
    server.abort()
    listener.close()
    turn()


def half_closed_by_the_server(client: Session, server: Session) -> tuple[Stream, Stream]:
    """Return both ends of a stream of which the server's has ended its direction."""
    ours = client.open()
    ours.sendall(b"x")
    theirs = server.accept()
    assert theirs.recv(1) == b"x"
    theirs.shutdown(socket.SHUT_WR)
    assert ours.recv(1) == b""
    return ours, theirs


def drain_before(client: Session, send: Callable[[], None]) -> None:
    client.drain()
    send()


def close_behind(client: Session, send: Callable[[], None]) -> None:
    send()
    client.close()


@pytest.mark.parametrize("end", [drain_before, close_behind])
def test_what_was_sent_last_arrives_whole_although_the_session_ends(
    narrow: tuple[Session, Session], end: Callable[[Session, Callable[[], None]], None]
) -> None:
    client, server = narrow
    ours, theirs = half_closed_by_the_server(client, server)
    conn = server._receiver._conn
    conn.call_when_readable(None)  # a slow peer

    def send() -> None:
        ours.sendall(MUCH)
        ours.close()

    sending = gevent.spawn(end, client, send)
    turn()
    conn.call_when_readable(server._receiver._on_readable)
    assert read_all(theirs) == MUCH
    sending.join()
    assert client.closed
    theirs.close()
    wait_until(lambda: not len(parting), "the conn is closed")
    assert server.closed


def test_peer_that_never_ends_is_waited_for_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting_module, "PART_S", 0.05)
    with session_and_peer() as (session, peer):
        session.close()
        assert peer.recv_to_end() == [(GO_AWAY, 0, 0, NORMAL)]
        assert len(parting) == 1
        sending = gevent.spawn(keep_sending, peer.conn)
        wait_until(lambda: not len(parting), "nobody waits for the peer")
        sending.join()
        assert session._conn.closed


def keep_sending(conn: net.SocketConn) -> None:
    """Send until the conn breaks."""
    with suppress(ConnClosed):
        while True:
            conn.sendall(bytes(65536))
            net.give_way()


def test_conns_that_wait_for_their_peers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting_module, "MAX_PARTING", 1)
    with session_and_peer() as (first, _), session_and_peer() as (second, _):
        first.close()
        second.close()
        assert (first._conn.closed, second._conn.closed) == (False, True)


def test_silent_peer_is_not_waited_for() -> None:
    with session_and_peer() as (session, _):
        session._receiver.heard_s -= 2 * session_module._ask_after_s()
        session.close()
        assert not len(parting)
        assert session._conn.closed


def test_thousands_of_streams_are_told_of_the_end_a_few_at_a_time() -> None:
    told: list[int] = []
    with session_and_peer() as (session, peer):
        session.serve(net.Crew("handlers"), lambda _: None)
        for number in range(1000):
            peer.send((DATA, SYN, 2 * number + 1, b"x"))
            turn()
        for stream in session.streams.values():
            stream.call_once_readable(lambda: told.append(len(session.streams)))
        turn()
        told.clear()
        for stream in [*session.streams.values()]:
            stream.recv(1)
            stream.call_once_readable(lambda: told.append(len(session.streams)))
        turn()
        assert not told
        peer.conn.close()
        session._end(None)
        session._loop.run_callback(told.append, -1)  # behind the first few
        session.wait_end()
    assert told.index(-1) == session_module.WAKE_AT_ONCE
    assert len(told) == 1001


# ---- streams that only this end has ended ------------------------------------------------------------------


@pytest.mark.usefixtures("_hurried")
def test_closed_stream_that_the_peer_does_not_end_is_reset() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, b"x"))
        stream = session.accept()
        stream.close()
        frames = peer.recv_until((WINDOW_UPDATE, RST, 1, 0))
        assert FIN & frames[0][1]
        assert stream_count(session) == 0
        wait_until(lambda: session._settler is None, "nobody looks any more")


def test_closed_streams_that_the_peer_does_not_end_are_few() -> None:
    most = session_module.MAX_HALF_GONE
    with session_and_peer() as (session, peer):
        session.serve(net.Crew("handlers"), Stream.close)
        for number in range(2 * most):
            peer.send((DATA, SYN, 2 * number + 1, b"x"))
            turn()
        assert stream_count(session) == most
        for number in range(most, 2 * most):
            peer.send((WINDOW_UPDATE, FIN, 2 * number + 1, 0))
            turn()
        assert stream_count(session) == 0


@pytest.mark.usefixtures("_hurried")
def test_streams_that_were_closed_before_the_peer_has_accepted_them_give_their_places_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with session_and_peer(is_client=True) as (session, peer):
        with monkeypatch.context() as patch:  # however long this takes, no place is given back meanwhile
            patch.setattr(session_module, "SETTLE_S", 3600.0)
            patch.setattr(session_module, "HALF_GONE_S", 3600.0)
            for _ in range(300):
                stream = session.open()
                turn()
                stream.close()
        wait_until(lambda: stream_count(session) == 0, "all are reset")
        last = session.open()
        turn()
        frames = peer.recv_until((WINDOW_UPDATE, SYN, last.id, 0))
        opened = {each[2] for each in frames if each[1] & SYN}
        assert len(opened) == 256  # the others were held, and the peer has not heard of them
        last.abort()


# ---- what a peer can do at the end -------------------------------------------------------------------------


def test_frames_behind_the_end_of_the_session_start_nothing() -> None:
    handled: list[Stream] = []
    with session_and_peer() as (session, peer):
        session.serve(net.Crew("handlers"), handled.append)
        while not session.sender.queued_bytes:  # the peer reads no answers
            peer.send(*[(PING, SYN, 0, 1)] * 200)
            turn()
        few_left = (MAX_QUEUE_BYTES - session.sender.queued_bytes) // 12 - 100
        for _ in range(few_left // 200):
            peer.send(*[(PING, SYN, 0, 1)] * 200)
            turn()
        assert not session.closed
        for _ in range(2):
            peer.send(*[(PING, SYN, 0, 1)] * 240, (DATA, SYN, 1, b"x"))
        wait_until(lambda: session.closed, "the session has ended")
        turn()
        assert session._settler is None
        assert handled == []


def test_lost_measurement_is_followed_by_another() -> None:
    with session_pair() as (client, _):
        client._is_measuring = True
        client._send_ping(None)
        client.tick(time.monotonic())
        assert client.path.is_stale
        client.send_window_update(encode(WINDOW_UPDATE, 0, 1, 0))
        wait_until(lambda: client.path.rtt_s, "the round trip is measured")
