"""Sessions: two of ours joined, and one against frames written by hand, whole and byte by byte."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest
from gevent.event import Event as Signal

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError, MuxError
from gnar_lib.yamux import sender
from gnar_lib.yamux import session as session_module
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    NORMAL,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from tests.peers.mux import (
    Frame,
    Peer,
    clean,
    conn_pair,
    encode,
    read_all,
    session_and_peer,
    session_pair,
    stream_pair,
    turn,
    wait_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gnar_lib.yamux import Stream

WIRE = Path(__file__).resolve().parent.parent / "wire"
TIMEOUT_S = 20.0
GONE: Frame = (GO_AWAY, 0, 0, PROTOCOL_ERROR)


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


def echo(stream: Stream) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)
    stream.close()


# ---- streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", [0, 1])
def test_either_end_opens_streams_that_carry_bytes_both_ways(opener: int) -> None:
    with session_pair() as pair:
        ours = pair[opener].open()
        assert ours.id == 1 + opener
        ours.sendall(b"ping")
        theirs = pair[1 - opener].accept()
        assert (theirs.id, theirs.recv(100)) == (ours.id, b"ping")
        theirs.sendall(b"pong")
        assert ours.recv(100) == b"pong"
        ours.close()
        theirs.close()
        turn()
        assert [session.stream_count for session in pair] == [0, 0]


def test_stream_is_a_conn_that_names_its_peer_and_itself() -> None:
    with stream_pair() as (ours, _):
        conn: net.Conn = ours
        assert conn is ours
        assert str(ours) == "192.0.2.1:4000 stream 1"
        assert ours.getpeername() == ("192.0.2.1", 4000)
        assert repr(ours) == "<Stream 192.0.2.1:4000 stream 1 open>"


def test_stream_that_is_only_opened_reaches_the_peer() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        session.open()
        assert peer.recv() == (WINDOW_UPDATE, SYN, 1, 0)


def test_first_bytes_open_and_accept_a_stream_without_a_frame_more() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        session.open().sendall(b"hello")
        assert peer.recv() == (DATA, SYN, 1, b"hello")
        peer.send((DATA, SYN, 2, b"to you"))
        stream = session.accept()
        stream.sendall(b"thanks")
        assert peer.recv() == (DATA, ACK, 2, b"thanks")


def test_accepted_stream_is_acknowledged_though_nothing_is_sent() -> None:
    with session_and_peer() as (session, peer):
        peer.send((WINDOW_UPDATE, SYN, 1, 0))
        session.accept()
        assert peer.recv() == (WINDOW_UPDATE, ACK, 1, 0)


def test_recv_variants_bring_what_is_there() -> None:
    with stream_pair() as (ours, theirs):
        assert theirs.recv_now(10) is None
        ours.sendall(b"0123456789")
        ours.sendall(b"abcdef")
        buffer = memoryview(bytearray(4))
        assert theirs.recv(3) == b"012"
        assert theirs.recv_into(buffer) == 4
        assert bytes(buffer) == b"3456"
        theirs.unread(b"456")
        assert theirs.recv_into(buffer) == 3
        assert theirs.recv_now(2) == b"78"
        rest = b""
        while len(rest) < 7:
            rest += theirs.recv(100)
        assert rest == b"9abcdef"
        ours.shutdown(socket.SHUT_WR)
        turn()
        assert theirs.recv_now(10) == theirs.recv(10) == b""
        assert theirs.recv_into(buffer) == 0


def test_borrowed_chunks_are_what_came_and_what_was_put_back() -> None:
    with stream_pair() as (ours, theirs):
        ours.sendall(b"0123456789")
        assert theirs.recv(4) == b"0123"
        theirs.unread(b"23")
        assert bytes(theirs.borrow()) == b"23"
        assert bytes(theirs.borrow()) == b"456789"
        ours.sendall(b"more")  # comes while it waits, so it lies in the session's buffer
        assert bytes(theirs.borrow()) == b"more"
        ours.shutdown(socket.SHUT_WR)
        assert theirs.borrow() == b""


def test_callback_takes_what_comes_and_what_was_there_before_it() -> None:
    with stream_pair() as (ours, theirs):
        seen: list[bytes | None] = []
        ours.sendall(b"early")
        turn()
        theirs.call_once_readable(lambda: seen.append(theirs.recv_now(100)))
        turn()
        ours.sendall(b"late")
        turn()
        assert seen == [b"early"]
        theirs.call_once_readable(lambda: seen.append(theirs.recv_now(100)))
        turn()
        theirs.call_once_readable(lambda: seen.append(theirs.recv_now(100)))
        ours.shutdown(socket.SHUT_WR)
        turn()
        assert seen == [b"early", b"late", b""]
        theirs.call_once_readable(lambda: seen.append(b"never"))
        theirs.close()
        turn()
        assert seen[3:] == []


def test_send_now_takes_no_more_than_the_window() -> None:
    with stream_pair() as (ours, theirs):
        data = bytes(range(256)) * 4096
        sent = 0
        while count := ours.send_now(data[sent:]):
            sent += count
            turn()
        assert sent == INITIAL_WINDOW_BYTES
        received = b""
        while len(received) < sent:
            received += theirs.recv(65536)
        assert received == data[:sent]
        turn()
        assert ours.send_now(b"x") == 1


def test_serve_runs_a_handler_for_each_stream_also_of_those_that_waited() -> None:
    crew = net.Crew("handlers")
    with session_pair() as (client, server):
        streams = [client.open() for _ in range(10)]
        turn()
        server.serve(crew, echo)
        streams += [client.open() for _ in range(10)]
        for stream in streams:
            stream.sendall(b"%d" % stream.id)
        assert [stream.recv(100) for stream in streams] == [b"%d" % stream.id for stream in streams]
        for stream in streams:
            stream.close()
        assert crew.wait_empty(5)
        turn()
        assert (client.stream_count, server.stream_count) == (0, 0)


def test_megabytes_arrive_whole_and_in_order_while_other_streams_go_on() -> None:
    crew = net.Crew("handlers")
    data = b"".join(number.to_bytes(4, "big") for number in range(1 << 20))
    with session_pair() as (client, server):
        server.serve(crew, echo)
        bulk, small = client.open(), client.open()

        def upload() -> None:
            bulk.sendall(data)
            bulk.shutdown(socket.SHUT_WR)

        crew.spawn(upload)
        for number in range(100):
            small.sendall(b"%d" % number)
            assert small.recv(10) == b"%d" % number
        assert read_all(bulk) == data
        small.close()
        assert crew.wait_empty(5)


def test_many_writers_of_bulk_take_turns() -> None:
    crew, done = net.Crew("writers"), []
    with session_pair() as (client, server):
        server.serve(crew, lambda stream: stream.sendall(b"%d" % len(read_all(stream))))

        def write(stream: Stream) -> None:
            for _ in range(8):
                stream.sendall(bytes(65536))
            stream.shutdown(socket.SHUT_WR)
            done.append(stream.recv(100))

        for _ in range(8):
            crew.spawn(write, client.open())
        assert crew.wait_empty(10)
        assert done == [b"524288"] * 8


# ---- ends --------------------------------------------------------------------------------------------------


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
        assert (client.stream_count, server.stream_count) == (1, 1)
        theirs.shutdown(socket.SHUT_WR)
        turn()
        assert (client.stream_count, server.stream_count) == (0, 0)


def test_window_grown_by_a_stream_returns_when_it_ends() -> None:
    with session_pair() as (client, server):
        spare = server.path.spare_bytes
        server.path.measured(60.0)
        ours = client.open()
        ours.sendall(bytes(INITIAL_WINDOW_BYTES))
        theirs = server.accept()
        for _ in range(4):
            theirs.recv(65536)
        assert server.path.spare_bytes < spare
        ours.close()
        theirs.close()
        turn()
        assert server.path.spare_bytes == spare


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
        assert session.stream_count == 0
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
        assert session.stream_count == 0


def test_bytes_in_the_frame_that_ends_the_stream_arrive_before_its_end() -> None:
    with session_and_peer() as (session, peer):
        data = encode(DATA, SYN | FIN, 1, b"all of it")
        peer.conn.sendall(data[:15])
        stream = session.accept()
        assert stream.recv(100) == b"all"
        peer.conn.sendall(data[15:])
        assert read_all(stream) == b" of it"


# ---- the peer breaks the rules -----------------------------------------------------------------------------

BROKEN: dict[str, list[bytes | Frame]] = {
    "unknown version": [b"\1" + bytes(11)],
    "unknown type": [b"\0\4" + bytes(10)],
    "stream opened twice": [(WINDOW_UPDATE, SYN, 1, 0), (DATA, SYN, 1, b"x")],
    "stream id of the wrong parity": [(WINDOW_UPDATE, SYN, 2, 0)],
    "stream id of the session": [(WINDOW_UPDATE, SYN, 0, 0)],
    "data beyond the window": [(DATA, SYN, 1, bytes(INITIAL_WINDOW_BYTES + 1))],
    "data beyond the window in parts": [(DATA, SYN, 1, bytes(INITIAL_WINDOW_BYTES)), (DATA, 0, 1, b"x")],
    "window that overflows": [(WINDOW_UPDATE, SYN, 1, 0xFFFFFFFF)],
    "second FIN": [(WINDOW_UPDATE, SYN | FIN, 1, 0), (WINDOW_UPDATE, FIN, 1, 0)],
    "data after FIN": [(WINDOW_UPDATE, SYN | FIN, 1, 0), (DATA, 0, 1, b"x")],
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cut", [False, True])
def test_peer_that_breaks_the_rules_is_told_and_left(name: str, cut: bool) -> None:
    data = b"".join(each if isinstance(each, bytes) else encode(*each) for each in BROKEN[name])
    with session_and_peer() as (session, peer):
        if cut and len(data) < 100:
            for at in range(len(data)):
                if not session.closed:  # it need not wait for a payload
                    peer.conn.sendall(data[at : at + 1])
                turn()
        else:
            send_in_background(peer, data)
        assert peer.recv_to_end()[-1] == GONE
        assert session.closed
        assert session.error is not None
        with pytest.raises(MuxError):
            session.open()


def send_in_background(peer: Peer, data: bytes) -> None:
    """Send, though the session may end meanwhile."""

    def send() -> None:
        with suppress(ConnError):
            peer.conn.sendall(data)

    gevent.spawn(send)


@pytest.mark.parametrize("odd_or_zero", [3, 0])
def test_session_for_a_client_takes_even_ids_only(odd_or_zero: int) -> None:
    with session_and_peer(is_client=True) as (_, peer):
        peer.send((DATA, SYN, 2, b"fine"), (DATA, SYN, odd_or_zero, b"not"))
        assert peer.recv_to_end()[-1] == GONE


def test_any_frame_type_may_open_and_flags_are_bits() -> None:
    with session_and_peer() as (session, peer):
        peer.send(
            (DATA, SYN | FIN, 1, b"one"),
            (WINDOW_UPDATE, SYN | FIN, 3, 5),
            (DATA, SYN | ACK, 5, b"three"),
            (WINDOW_UPDATE, FIN | ACK, 5, 0),
        )
        assert [read_all(session.accept()) for _ in range(3)] == [b"one", b"", b"three"]
        peer.send((WINDOW_UPDATE, SYN | RST, 7, 0))
        with pytest.raises(ConnClosed):
            session.accept().recv(1)


def test_session_that_took_bytes_with_its_conn_handles_them_first() -> None:
    ours, theirs = conn_pair()
    ours.unread(encode(DATA, SYN, 1, b"early")[:-2])
    session, peer = session_module.Session(ours, is_client=False), Peer(theirs)
    peer.conn.sendall(b"ly" + encode(DATA, FIN, 1, b" and late"))
    assert read_all(session.accept()) == b"early and late"
    session.close()
    theirs.close()


def test_write_that_fails_half_way_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "UNSENT_BYTES", 4096)
    with session_and_peer(is_client=True) as (session, peer):
        stream = session.open()
        crew = net.Crew("writer")
        crew.spawn(stream.sendall, bytes(200_000))
        crew.spawn(session.open().sendall, bytes(2_000_000))
        turn()
        peer.conn.abort()
        assert "reset" in wait_end(session) or "Broken pipe" in str(session.error)
        assert crew.wait_empty(5)
        with pytest.raises(ConnClosed):
            stream.sendall(b"x")


@pytest.mark.parametrize("size", [1, 30_000])
def test_write_that_fails_ends_the_session_while_nothing_can_be_read(size: int) -> None:
    with session_and_peer(is_client=True) as (session, peer):
        stream = session.open()
        turn()
        peer.conn.sock.shutdown(socket.SHUT_RD)
        stream.send_now(bytes(size))
        assert session.closed
        assert "Broken pipe" in str(session.error)


def test_reset_frees_what_nobody_has_read() -> None:
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, bytes(1000)))
        stream = session.accept()
        assert session.stored_bytes == 1000
        peer.send((WINDOW_UPDATE, RST, 1, 0))
        turn()
        assert session.stored_bytes == stream.stored_bytes == 0


def test_stream_that_is_reset_at_once_gets_no_handler() -> None:
    crew = net.Crew("handlers")
    handled: list[Stream] = []
    with session_and_peer() as (session, peer):
        session.serve(crew, handled.append)
        peer.send((DATA, SYN, 1, b"x"), (WINDOW_UPDATE, RST, 1, 0), (WINDOW_UPDATE, SYN, 3, 0))
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


@pytest.mark.parametrize("answer", [(WINDOW_UPDATE, ACK), (WINDOW_UPDATE, RST)])
def test_no_more_streams_are_announced_than_the_backlog_of_the_peer_takes(answer: tuple[int, int]) -> None:
    count, crew = session_module.ACCEPT_BACKLOG, net.Crew("writers")
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


# ---- limits ------------------------------------------------------------------------------------------------


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
    """What a sender needs of a conn: takes as many bytes as there is `room`."""

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
    """Counts its turns."""

    turns = 0

    def send_flags(self) -> None:
        pytest.fail("it has nothing to say")

    def take_turn(self) -> None:
        self.turns += 1


def test_writer_in_line_gets_a_turn_though_the_socket_stays_full() -> None:
    conn, writer = SlowConn(), WriterInLine()
    ours = sender.Sender(cast("net.SocketConn", conn), lambda error: pytest.fail(str(error)))
    ours.send_data(bytes(12), bytes(30_000))
    assert not ours.has_room()
    ours.wait_for_turn(writer)
    for turns in range(1, 4):
        epoch = ours.epoch
        conn.room = 1000
        assert conn.on_writable is not None
        conn.on_writable()
        assert (writer.turns, ours.epoch) == (turns, epoch + 1)
        ours.wait_for_turn(writer)


def next_data(peer: Peer) -> tuple[int, int, int, bytes]:
    """Return the next Data frame."""
    while each := peer.recv():
        kind, flags, stream_id, content = each
        if isinstance(content, bytes):
            return kind, flags, stream_id, content
    pytest.fail("the end, instead of data")


def data_frames_before(peer: Peer, content: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Return the Data frames that come before one with this content."""
    while (each := next_data(peer))[3] != content:
        yield each


def test_stream_past_the_backlog_is_refused() -> None:
    with session_and_peer() as (session, peer):
        count = session_module.ACCEPT_BACKLOG
        peer.send(*((DATA, SYN, 2 * number + 1, b"x") for number in range(count + 2)))
        assert [peer.recv(), peer.recv()] == [
            (WINDOW_UPDATE, RST, 2 * count + 1, 0),
            (WINDOW_UPDATE, RST, 2 * count + 3, 0),
        ]
        assert [session.accept().recv(1) for _ in range(count)] == [b"x"] * count


def test_streams_opened_and_reset_by_the_thousand_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_HANDLED", 50)
    crew, go = net.Crew("handlers"), Signal()
    with session_and_peer() as (session, peer):
        session.serve(crew, lambda _: wait_for_signal(go))
        for stream_id in range(1, 400, 2):
            peer.send((WINDOW_UPDATE, SYN, stream_id, 0))
            turn()
            peer.send((WINDOW_UPDATE, RST, stream_id, 0))
        peer.send((PING, SYN, 0, 1))
        seen = peer.recv_until((PING, ACK, 0, 1))
        assert len(crew) == 50
        assert sum(each[1] == RST for each in seen) == 150
        assert session.stream_count == 0
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
        assert len(stream._chunks) <= 4


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
        assert (session.stream_count, session.stored_bytes) == (0, 600_000)
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


# ---- the session itself ------------------------------------------------------------------------------------


def test_ping_measures_the_round_trip() -> None:
    with session_pair() as (client, server):
        assert 0 < client.ping() < 5
        assert client.rtt_s > 0
        assert server.rtt_s == 0
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
        ends: list[int] = []
        peer.send((DATA, SYN, 1, b"x"))
        stream = session.accept()
        session.on_end(lambda: ends.append(1))
        session.close()
        session.close()
        frames = peer.recv_to_end()
        assert frames[-1] == (GO_AWAY, 0, 0, NORMAL)
        turn()
        assert (ends, session.error, session.stream_count) == ([1], None, 0)
        session.on_end(lambda: ends.append(2))
        turn()
        assert ends == [1, 2]
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


def test_silent_peer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(session_module, "KEEPALIVE_TIMEOUT_S", 0.02)
    with session_and_peer() as (session, peer):
        assert "not been heard from" in wait_end(session)
        assert peer.recv() == (PING, SYN, 0, 0)


def test_peer_that_answers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(session_module, "KEEPALIVE_TIMEOUT_S", 0.5)
    with session_and_peer() as (session, peer):
        for number in range(4):  # longer than one answer may take
            assert peer.recv() == (PING, SYN, 0, number)
            peer.send((PING, ACK, 0, number))
        assert not session.closed
        assert session.rtt_s > 0


def test_keep_alive_that_cannot_be_written_ends_the_session_and_starts_no_timer() -> None:
    with session_pair() as (session, other):
        cast("Any", other._conn).sock.shutdown(socket.SHUT_RD)  # a write fails from here on
        session._keep_alive()
        assert session.closed
        assert not cast("Any", session._deadline).active


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
        session.path.measured(60.0)
        use(INITIAL_WINDOW_BYTES // 2)
        assert peer.recv() == (WINDOW_UPDATE, 0, 1, INITIAL_WINDOW_BYTES // 2 + INITIAL_WINDOW_BYTES)


# ---- recordings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", ["go-2024-tcp-multiplex", "go-2024-udp-multiplex"])
def test_what_a_go_client_sent_reaches_the_streams(name: str, cut: bool) -> None:
    chunks = json.loads((WIRE / f"{name}.json").read_text())
    data = b"".join(bytes.fromhex(chunk["hex"]) for chunk in chunks if chunk["from"] == "client")
    data = data[3 + int.from_bytes(data[1:3], "big") :]  # Login comes before the first frame
    with session_and_peer() as (session, peer):
        for piece in (data[at : at + 1] for at in range(len(data))) if cut else [data]:
            peer.conn.sendall(piece)
            if cut:
                turn()
        messages = [session.accept().recv(5) for _ in range(3)]
        assert [message[0] for message in messages] == [3, 6, 5]  # ProxyReq, Exchange, ProxyCancel


@pytest.mark.parametrize("name", ["go-2024-tcp-multiplex", "go-2024-udp-multiplex"])
def test_what_a_go_server_sent_reaches_the_streams(name: str) -> None:
    chunks = json.loads((WIRE / f"{name}.json").read_text())
    with session_and_peer(is_client=True) as (session, peer):
        control, data, cancel = session.open(), session.open(), session.open()
        turn()
        for chunk in chunks:
            if chunk["from"] == "server":
                peer.conn.sendall(bytes.fromhex(chunk["hex"]))
        assert control.recv(1) == b"\4"  # ProxyResp
        assert data.recv(1) in (b"h", b"\7")  # the user's bytes, or a datagram
        assert cancel.recv(1) == b""
        assert not session.closed
