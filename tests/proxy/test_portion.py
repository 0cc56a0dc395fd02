"""A part of what a conn brings is copied, to the byte, and what follows stays unread."""

from __future__ import annotations

import random
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.http.chunks import Chunks
from gnar_lib.net import Crew, SocketConn, recv_exactly
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket
from gnar_lib.proxy import splice
from gnar_lib.proxy.portion import BULK_BYTES, copy_chunked, copy_length
from tests.helpers.moving import moving_pair
from tests.helpers.wrapped import WrappedConn
from tests.proxy.test_stream import tcp_pair

MIB = 1 << 20
REST = b"what follows"


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


@pytest.fixture
def ends() -> Iterator[tuple[SocketConn, SocketConn, SocketConn, SocketConn]]:
    """Return whoever sends, the source, the destination, and whoever receives."""
    sender, src = tcp_pair()
    dst, receiver = tcp_pair()
    yield sender, src, dst, receiver
    for conn in (sender, src, dst, receiver):
        conn.close()


Ends = tuple[SocketConn, SocketConn, SocketConn, SocketConn]


@pytest.mark.parametrize("way", ["sockets", "no splice", "wrapped", "limited"])
@pytest.mark.parametrize("size", [1, 70_000, BULK_BYTES, 3 * MIB + 7])
def test_as_many_bytes_are_copied_as_wanted(
    way: str, size: int, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, src, dst, receiver = ends
    if way == "no splice":
        monkeypatch.setattr(splice.Pipe, "can_splice", False)
    source, sends = (WrappedConn(src), WrappedConn(sender)) if way == "wrapped" else (src, sender)
    flow = Flow(Bucket(64 * MIB) if way == "limited" else None)
    body = random.Random(size).randbytes(size)  # noqa: S311  (no secret)
    sending = gevent.spawn(sends.sendall, body + REST)
    receiving = gevent.spawn(recv_exactly, receiver, size)
    copy_length(source, dst, size, flow)
    assert receiving.get() == body
    assert flow.bytes == size
    assert recv_exactly(source, len(REST)) == REST
    sending.get()


def test_a_conn_that_ends_too_early_is_an_error(ends: Ends) -> None:
    sender, src, dst, _receiver = ends
    sender.sendall(b"abc")
    sender.close()
    with pytest.raises(ConnClosed, match="ended within a body"):
        copy_length(src, dst, 4, Flow())


@pytest.mark.parametrize("chunk", [1, 100, 100_000])
def test_a_chunked_body_is_copied_as_it_is(chunk: int, ends: Ends) -> None:
    sender, src, dst, receiver = ends
    body = b"".join(b"%x\r\n%b\r\n" % (chunk, b"x" * chunk) for _ in range(min(200_000 // chunk, 20_000)))
    body += b"0\r\nX: y\r\n\r\n"
    sending = gevent.spawn(sender.sendall, body + REST)
    receiving = gevent.spawn(recv_exactly, receiver, len(body))
    flow = Flow()
    copy_chunked(src, dst, Chunks(), flow)
    assert receiving.get() == body
    assert flow.bytes == len(body)
    assert recv_exactly(src, len(REST)) == REST
    sending.get()


def test_nothing_of_a_malformed_chunk_is_copied(ends: Ends) -> None:
    sender, src, dst, receiver = ends
    sender.sendall(b"5\r\nhello")
    copying = gevent.spawn(copy_chunked, src, dst, Chunks(), Flow())
    assert recv_exactly(receiver, 8) == b"5\r\nhello"
    sender.sendall(b"XX3\r\nabc\r\n")
    with pytest.raises(ProtocolError):
        copying.get()
    dst.close()
    assert receiver.recv(10) == b""


def test_bodies_on_a_stream_move_both_ways_and_what_follows_is_read_behind_them(ends: Ends) -> None:
    sender, src, dst, receiver = ends
    crew = Crew("moving")
    sessions = moving_pair(crew)
    to_client, at_client = sessions.server.open(), sessions.client.accept()
    bodies = [random.Random(n).randbytes(16 * MIB + n) for n in range(3)]  # noqa: S311  (no secret)

    def at_the_other_end() -> None:
        for body in bodies:
            copy_length(at_client, dst, len(body), Flow())

    crew.spawn(at_the_other_end)
    for body in bodies:
        sending = gevent.spawn(sender.sendall, body)
        receiving = gevent.spawn(recv_exactly, receiver, len(body))
        copy_length(src, to_client, len(body), Flow())
        assert receiving.get() == body
        sending.get()
    assert at_client.reads_on is not None
    to_client.sendall(REST)
    assert recv_exactly(at_client, len(REST)) == REST
    for conn in (to_client, at_client):
        conn.close()
    assert crew.wait_empty(20)
    sessions.close()
