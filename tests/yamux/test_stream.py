"""Streams carry bytes both ways: what each method of a stream does, alone and beside others."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed, WriteError
from gnar_lib.pio.flow import Flow
from gnar_lib.yamux import arrivals
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    INITIAL_WINDOW_BYTES,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from tests.helpers.loop import turn
from tests.peers.mux import (
    clean,
    read_all,
    session_and_peer,
    session_pair,
    stream_count,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnar_lib.yamux import Stream

TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


def echo(stream: Stream) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)
    stream.close()


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
        assert [stream_count(session) for session in pair] == [0, 0]


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


def test_first_bytes_that_are_given_at_opening_leave_in_one_frame_with_what_follows_at_once() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        session.open(b"first ").sendall(b"and second")
        assert peer.recv() == (DATA, SYN, 1, b"first and second")


def test_first_bytes_that_are_given_at_opening_wait_for_no_others() -> None:
    with session_and_peer(is_client=True) as (session, peer):
        stream = session.open(b"first")
        assert peer.recv() == (DATA, SYN, 1, b"first")
        stream.sendall(b"second")
        assert peer.recv() == (DATA, 0, 1, b"second")
        session.open(b"only").close()
        assert peer.recv() == (DATA, SYN, 3, b"only")
        assert peer.recv() == (WINDOW_UPDATE, FIN, 3, 0)


def test_first_bytes_use_up_room_of_the_window() -> None:
    crew = net.Crew("writer")
    with session_and_peer(is_client=True) as (session, peer):
        crew.spawn(session.open(b"first").sendall, bytes(2 * INITIAL_WINDOW_BYTES))
        count = 0
        while count < INITIAL_WINDOW_BYTES:
            frame = peer.recv()
            assert frame is not None
            assert isinstance(frame[3], bytes)
            count += len(frame[3])
        assert count == INITIAL_WINDOW_BYTES
        peer.send((WINDOW_UPDATE, RST, 1, 0))
        assert crew.wait_empty(5)


def test_accepted_stream_is_acknowledged_though_nothing_is_sent() -> None:
    with session_and_peer() as (session, peer):
        peer.send((WINDOW_UPDATE, SYN, 1, 0))
        session.accept()
        assert peer.recv() == (WINDOW_UPDATE, ACK, 1, 0)


def test_many_streams_that_are_accepted_at_once_are_acknowledged_without_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrivals, "ACK_AFTER_S", 1000.0)
    with session_and_peer() as (session, peer):
        peer.send(*[(DATA, SYN, 2 * number + 1, b"x") for number in range(arrivals.MAX_UNACKNOWLEDGED + 1)])
        streams = [session.accept() for _ in range(arrivals.MAX_UNACKNOWLEDGED + 1)]
        for stream in streams[:-1]:
            assert peer.recv() == (WINDOW_UPDATE, ACK, stream.id, 0)
        streams[-1].sendall(b"answer")
        assert peer.recv() == (DATA, ACK, streams[-1].id, b"answer")


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
        assert theirs.recv_into(buffer) == 4
        assert bytes(buffer) == b"4567"
        assert theirs.recv_now(2) == b"89"
        rest = b""
        while len(rest) < 6:
            rest += theirs.recv(100)
        assert rest == b"abcdef"
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


def test_chunks_are_passed_on_to_the_end_and_counted_and_what_is_not_taken_comes_back() -> None:
    taken, counter = list[bytes](), Flow()

    def take(data: bytes | memoryview) -> int:
        taken.append(bytes(data[:6]))
        return len(taken[-1])

    with stream_pair() as (ours, theirs):
        ours.sendall(b"xxone")
        assert theirs.recv(1) == b"x"
        theirs.unread(b"x")
        crew = net.Crew("writer")

        def write() -> None:
            for piece in (b"two", b"a long one", b"three"):
                turn()
                ours.sendall(piece)
            turn()
            ours.shutdown(socket.SHUT_WR)

        crew.spawn(write)
        assert bytes(theirs.pass_on(take, counter)) == b" one"
        assert theirs.pass_on(take, counter) == b""
        assert taken == [b"x", b"xone", b"two", b"a long", b"three"]
        assert counter.bytes == len(b"xxonetwoa long onethree")
        assert theirs.pass_on(take, counter) == b""
        theirs.close()
        with pytest.raises(ConnClosed):
            theirs.pass_on(take, counter)


def test_whoever_passes_on_is_woken_by_what_is_not_taken_by_an_error_and_by_the_end_alone() -> None:
    counter, taken = Flow(), list[bytes]()

    def take(data: bytes | memoryview) -> int:
        if bytes(data) == b"fail":
            raise WriteError("no more")
        taken.append(bytes(data))
        return min(len(data), 5)

    with stream_pair() as (ours, theirs):
        said: list[bytes] = []

        def run() -> str:
            try:
                while rest := bytes(theirs.pass_on(take, counter)):
                    said.append(rest)
            except WriteError as exc:
                return str(exc)
            return "the end"

        runner = gevent.spawn(run)
        for piece in (b"a", b"b", b"too long", b"c"):
            turn()
            theirs.was_read = False
            ours.sendall(piece)
            turn()
            assert theirs.was_read
        assert taken == [b"a", b"b", b"too long", b"c"]
        assert said == [b"ong"]
        ours.sendall(b"fail")
        assert runner.get() == "no more"
        assert counter.bytes == len(b"abtoo longcfail")
        ours.sendall(b"behind the error")
        assert theirs.recv(100) == b"behind the error"


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
        assert (stream_count(client), stream_count(server)) == (0, 0)


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
