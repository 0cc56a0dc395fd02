"""What `Conn` and `EventedConn` promise, tried on everything that fulfils them.

`Conn`: a TCP socket, a Unix socket, a stream of a session, a conn wrapped in another, both ends of TLS and of
a WebSocket, TLS over each of them, and a tapped one. `EventedConn`: all of these but the stream and the
tapped one.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.event import Event
from gevent.hub import get_hub

from gnar_lib.errors import ConnError
from gnar_lib.inspect import Inspector
from gnar_lib.net import Conn, EventedConn, give_way
from tests.helpers.conns import LOOPBACK, MIB, Waiter, tcp_pair, unix_pair
from tests.helpers.tls import shake_hands, tls_pair
from tests.helpers.websocket import websocket_pair
from tests.helpers.wrapped import WrappedConn
from tests.peers.mux import session_pair

Pair = tuple[Conn, Conn]
EventedPair = tuple[EventedConn, EventedConn]


@contextmanager
def tcp() -> Generator[EventedPair, None, None]:
    yield tcp_pair()


@contextmanager
def unix() -> Generator[EventedPair, None, None]:
    yield unix_pair()


@contextmanager
def wrapped() -> Generator[EventedPair, None, None]:
    near, far = tcp_pair()
    yield WrappedConn(near), WrappedConn(far)


@contextmanager
def tls_client() -> Generator[EventedPair, None, None]:
    yield tls_pair()


@contextmanager
def tls_server() -> Generator[EventedPair, None, None]:
    far, near = tls_pair(ssl.TLSVersion.TLSv1_2)
    yield near, far


@contextmanager
def tls_over_tls() -> Generator[EventedPair, None, None]:
    yield shake_hands(*tls_pair())


@contextmanager
def ws_client() -> Generator[EventedPair, None, None]:
    yield websocket_pair()


@contextmanager
def ws_server() -> Generator[EventedPair, None, None]:
    far, near = websocket_pair()
    yield near, far


@contextmanager
def tls_over_ws() -> Generator[EventedPair, None, None]:
    yield shake_hands(*websocket_pair())


@contextmanager
def tapped() -> Generator[Pair, None, None]:
    inspector = Inspector(1000)
    near, far = tcp_pair()
    yield inspector.tapped(near, "", "web"), inspector.tapped(far, "", "web")


@contextmanager
def stream() -> Generator[Pair, None, None]:
    with session_pair() as (client, server):
        near = client.open()
        near.sendall(b"hello")
        far = server.accept()
        assert far.recv(5) == b"hello"
        yield near, far


EVENTED = [tcp, unix, wrapped, tls_client, tls_server, tls_over_tls, ws_client, ws_server, tls_over_ws]


@pytest.fixture(params=[*EVENTED, stream, tapped], ids=lambda make: make.__name__)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Yield two conns that are joined, of each kind."""
    with request.param() as conns:
        yield conns
        for conn in conns:
            conn.close()


@pytest.fixture(params=EVENTED, ids=lambda make: make.__name__)
def evented(request: pytest.FixtureRequest) -> Iterator[EventedPair]:
    """Yield two conns that are joined, of each kind that calls back."""
    with request.param() as conns:
        yield conns
        for conn in conns:
            conn.close()


def turn() -> None:
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(4):
        give_way()


def in_hub(call: Callable[[], object]) -> None:
    """Call something in a callback of the hub, and return when that is done."""
    done = Event()

    def callback() -> None:
        call()
        done.set()

    get_hub().loop.run_callback(callback)
    done.wait()


def called_when(make_ready: Callable[[], object], register: Callable[[Callable[[], None]], None]) -> None:
    """Register a callback, make the conn ready, and return when the callback has been called, in the hub."""
    called, callers = Event(), list[object]()

    def callback() -> None:
        callers.append(gevent.getcurrent())
        called.set()

    register(callback)
    make_ready()
    called.wait()
    assert callers == [get_hub()]


def _recv_into(conn: Conn) -> bytes:
    buffer = bytearray(MIB)
    return bytes(buffer[: conn.recv_into(memoryview(buffer))])


READS: list[Callable[[Conn], bytes]] = [
    lambda conn: conn.recv(MIB),
    lambda conn: bytes(conn.borrow()),
    _recv_into,
]


def read_all(conn: Conn, read: Callable[[Conn], bytes] = READS[0]) -> bytes:
    data = bytearray()
    while more := read(conn):
        data += more
    return bytes(data)


each_read = pytest.mark.parametrize("read", READS, ids=["recv", "borrow", "recv_into"])

# ---- Conn: reading -----------------------------------------------------------------------------------------


@each_read
def test_read_waits_for_the_first_byte_and_for_no_more(pair: Pair, read: Callable[[Conn], bytes]) -> None:
    near, far = pair
    waiter = Waiter(lambda: read(near))
    far.sendall(b"hello")
    assert waiter.result() == b"hello"


@each_read
def test_every_read_brings_all_bytes_in_order_and_then_the_end_again_and_again(
    pair: Pair, read: Callable[[Conn], bytes]
) -> None:
    near, far = pair
    data = os.urandom(2 * MIB)

    def send() -> None:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)

    sender = gevent.spawn(send)
    assert read_all(near, read) == data
    assert [read(near), read(near)] == [b"", b""]
    sender.get()


def test_recv_takes_no_more_than_asked(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"hello")
    assert [near.recv(3), near.recv(3)] == [b"hel", b"lo"]


@each_read
def test_bytes_that_were_put_back_come_first(pair: Pair, read: Callable[[Conn], bytes]) -> None:
    near, far = pair
    far.sendall(b"cd")
    assert near.recv(1) == b"c"
    near.unread(b"c")
    near.unread(b"ab")
    far.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b"a"
    assert read_all(near, read) == b"bcd"


def test_was_read_says_that_a_wait_to_read_has_ended(pair: Pair) -> None:
    near, far = pair
    seen: list[bool] = []
    near.was_read = False
    waiter = Waiter(lambda: near.recv(1))
    seen.append(near.was_read)
    far.sendall(b"x")
    assert waiter.result() == b"x"
    seen.append(near.was_read)
    near.was_read = False
    seen.append(near.was_read)
    assert seen == [False, True, False]


# ---- Conn: callbacks ---------------------------------------------------------------------------------------


def test_call_once_readable_calls_when_bytes_come_and_not_again(pair: Pair) -> None:
    near, far = pair
    calls: list[int] = []
    near.call_once_readable(lambda: calls.append(1))
    turn()
    assert calls == []
    far.sendall(b"x")
    while not calls:
        give_way()
    assert near.recv(10) == b"x"
    far.sendall(b"y")
    turn()
    assert calls == [1]
    assert near.recv(10) == b"y"


def test_call_once_readable_calls_at_once_when_there_is_something(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"xy")
    assert near.recv(1) == b"x"
    called_when(lambda: None, near.call_once_readable)  # y is there
    assert near.recv(1) == b"y"
    near.unread(b"z")
    called_when(lambda: None, near.call_once_readable)
    assert near.recv(1) == b"z"


def test_call_once_readable_calls_at_the_end_of_the_stream(pair: Pair) -> None:
    near, far = pair
    called_when(lambda: far.shutdown(socket.SHUT_WR), near.call_once_readable)
    assert near.recv(1) == b""


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("unread", [b"", b"x"])
def test_call_once_readable_does_not_call_after_this_end_has_closed(
    pair: Pair, end: str, unread: bytes
) -> None:
    near, far = pair
    calls: list[int] = []
    near.unread(unread)
    near.call_once_readable(lambda: calls.append(1))
    far.sendall(b"x")
    getattr(near, end)()
    turn()
    assert calls == []


def test_interrupt_raises_in_the_greenlet_that_reads_and_loses_no_byte(pair: Pair) -> None:
    near, far = pair

    class Interrupted(ConnError):
        pass

    in_hub(lambda: near.interrupt(Interrupted()))  # nobody reads
    waiter = Waiter(lambda: near.recv(1))
    in_hub(lambda: near.interrupt(Interrupted()))
    assert isinstance(waiter.result(), Interrupted)
    far.sendall(b"x")
    assert near.recv(10) == b"x"


@pytest.mark.parametrize("end", ["close", "abort"])
def test_interrupt_comes_too_late_once_this_end_has_closed(pair: Pair, end: str) -> None:
    near, _ = pair

    class Interrupted(ConnError):
        pass

    def close_and_interrupt() -> None:
        getattr(near, end)()
        near.interrupt(Interrupted())

    waiter = Waiter(lambda: near.recv(1))
    in_hub(close_and_interrupt)
    error = waiter.result()
    assert isinstance(error, ConnError)
    assert not isinstance(error, Interrupted)


# ---- Conn: writing -----------------------------------------------------------------------------------------


def test_send_now_takes_what_fits_and_then_nothing_without_waiting(pair: Pair) -> None:
    near, far = pair
    data = os.urandom(MIB)
    taken = 0
    while sent := near.send_now(memoryview(data * 2)[taken % MIB :][:MIB]):
        taken += sent
    assert taken
    near_reader = Waiter(lambda: near.recv(1))  # reading goes on while writing stands still
    far.sendall(b"x")
    assert near_reader.result() == b"x"
    received = bytearray()
    while len(received) < taken:
        received += far.recv(MIB)
    assert received == (data * (taken // MIB + 1))[:taken]


def test_sendall_waits_for_room_and_loses_nothing(pair: Pair) -> None:
    near, far = pair
    data = os.urandom(8 * MIB)  # more than kernels keep
    waiter = Waiter(lambda: near.sendall(data))
    received = bytearray()
    while len(received) < len(data):
        received += far.recv(100_000)
    assert waiter.result() is None
    assert received == data


def test_both_directions_carry_at_the_same_time(pair: Pair) -> None:
    data = os.urandom(2 * MIB), os.urandom(2 * MIB)

    def send(conn: Conn, sent: bytes) -> None:
        conn.sendall(sent)
        conn.shutdown(socket.SHUT_WR)

    senders = [gevent.spawn(send, *each) for each in zip(pair, data, strict=True)]
    readers = [gevent.spawn(read_all, conn) for conn in pair]
    assert [reader.get() for reader in readers] == [data[1], data[0]]
    for sender in senders:
        sender.get()


# ---- Conn: ending ------------------------------------------------------------------------------------------


def test_half_close_leaves_the_other_direction_open(pair: Pair) -> None:
    near, far = pair
    near.sendall(b"request")
    near.shutdown(socket.SHUT_WR)
    assert read_all(far) == b"request"
    far.sendall(b"answer")
    far.shutdown(socket.SHUT_WR)
    assert read_all(near) == b"answer"
    near.shutdown(socket.SHUT_WR)  # more than once, and after the peer's end, is no error


def test_sending_after_a_half_close_is_an_error(pair: Pair) -> None:
    near, _ = pair
    near.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnError):
        near.sendall(b"x")


def test_close_is_the_end_of_the_stream_for_the_peer(pair: Pair) -> None:
    near, far = pair
    near.sendall(b"all")
    near.close()
    assert read_all(far) == b"all"


def test_abort_tells_the_peer_at_once(pair: Pair, request: pytest.FixtureRequest) -> None:
    near, far = pair
    waiter = Waiter(lambda: far.recv(1))
    near.abort()
    if "unix" in request.node.name:  # these have no reset
        assert waiter.result() == b""
    else:
        assert isinstance(waiter.result(), ConnError)


@pytest.mark.parametrize("end", ["close", "abort"])
def test_end_wakes_the_reader_and_the_writer_of_this_end(pair: Pair, end: str) -> None:
    near, _ = pair
    reader = Waiter(lambda: near.recv(1))
    writer = Waiter(lambda: near.sendall(b"x" * 32 * MIB))
    getattr(near, end)()
    assert isinstance(reader.result(), ConnError)
    assert isinstance(writer.result(), ConnError)


CALLS: dict[str, Callable[[Conn], object]] = {
    "recv": lambda conn: conn.recv(1),
    "recv_into": lambda conn: conn.recv_into(memoryview(bytearray(1))),
    "borrow": lambda conn: conn.borrow(),
    "send_now": lambda conn: conn.send_now(b"x"),
    "sendall": lambda conn: conn.sendall(b"x"),
    "call_once_readable": lambda conn: conn.call_once_readable(lambda: None),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("end", ["close", "abort"])
def test_whatever_carries_bytes_is_an_error_once_closed(pair: Pair, end: str, call: str) -> None:
    getattr(pair[0], end)()
    with pytest.raises(ConnError):
        CALLS[call](pair[0])


@pytest.mark.parametrize("end", ["close", "abort"])
def test_ending_more_than_once_does_no_harm(pair: Pair, end: str) -> None:
    near, _ = pair
    getattr(near, end)()
    near.close()
    near.abort()
    near.shutdown(socket.SHUT_WR)
    in_hub(lambda: near.interrupt(ConnError()))


def test_peer_has_a_name_also_when_it_is_gone(pair: Pair, request: pytest.FixtureRequest) -> None:
    near, far = pair
    name = near.getpeername()
    if "unix" not in request.node.name and "stream" not in request.node.name:
        assert name[0] == LOOPBACK
    far.abort()
    turn()
    assert near.getpeername() == name


# ---- EventedConn -------------------------------------------------------------------------------------------


def test_now_reads_what_is_there_and_does_not_wait(evented: EventedPair) -> None:
    near, far = evented
    buffer = memoryview(bytearray(10))
    assert near.recv_now(10) is None
    assert near.recv_into_now(buffer) is None
    called_when(lambda: far.sendall(b"abcd"), near.call_once_readable)
    assert near.recv_now(2) == b"ab"
    assert near.recv_into_now(buffer) == 2
    assert bytes(buffer[:2]) == b"cd"
    called_when(lambda: far.shutdown(socket.SHUT_WR), near.call_once_readable)
    assert near.recv_now(10) == b""
    assert near.recv_into_now(buffer) == 0


def test_now_reads_what_was_put_back_first_and_has_unread_tells_of_it(evented: EventedPair) -> None:
    near, far = evented
    buffer = memoryview(bytearray(1))
    called_when(lambda: far.sendall(b"d"), near.call_once_readable)
    tells = [near.has_unread]
    near.unread(b"abc")
    assert near.recv_now(1) == b"a"
    assert near.recv_into_now(buffer) == 1
    assert bytes(buffer) == b"b"
    tells.append(near.has_unread)
    assert near.recv_now(1) == b"c"
    tells.append(near.has_unread)
    assert tells == [False, True, False]
    assert near.recv_now(10) == b"d"


def test_call_when_readable_calls_for_as_long_as_there_is_something(evented: EventedPair) -> None:
    near, far = evented
    heard: list[bytes | None] = []
    near.call_when_readable(lambda: heard.append(near.recv_now(1)))
    far.sendall(b"abc")
    while len(heard) < 3:
        give_way()
    near.call_when_readable(None)
    far.sendall(b"d")
    turn()
    assert heard == [b"a", b"b", b"c"]
    assert near.recv(10) == b"d"


def test_call_when_writable_calls_once_there_is_room(evented: EventedPair) -> None:
    near, far = evented
    taken = 0
    while sent := near.send_now(b"x" * MIB):
        taken += sent
    calls: list[int] = []
    near.call_when_writable(lambda: calls.append(1))
    turn()
    assert calls == []
    while taken:
        taken -= len(far.recv(MIB))
    while not calls:
        give_way()
    near.call_when_writable(None)
    calls.clear()
    turn()
    assert calls == []


@pytest.mark.parametrize("end", ["close", "abort"])
def test_no_callback_comes_after_this_end_has_closed(evented: EventedPair, end: str) -> None:
    near, far = evented
    calls: list[str] = []
    near.call_when_readable(lambda: calls.append("readable"))
    near.call_when_writable(lambda: calls.append("writable"))
    far.sendall(b"x")
    getattr(near, end)()
    assert near.closed
    near.call_when_readable(lambda: calls.append("readable"))  # no error either
    near.call_when_writable(lambda: calls.append("writable"))
    turn()
    assert calls == []


def test_sendmsg_now_sends_the_buffers_in_order_as_far_as_they_fit(evented: EventedPair) -> None:
    near, far = evented
    buffers: list[bytes | bytearray | memoryview] = [b"a", memoryview(b"bc"), bytearray(b"d")]
    assert near.sendmsg_now(buffers) == 4
    assert far.recv(10) == b"abcd"
    while near.sendmsg_now([b"x" * MIB, b"y" * MIB]):
        pass
    assert near.sendmsg_now(buffers) == 0


def test_sent_bytes_are_acknowledged_once_the_peer_has_read_them(evented: EventedPair) -> None:
    near, far = evented
    near.limit_unsent(64 * 1024)
    near.set_user_timeout(10.0)
    near.sendall(b"x" * 1000)
    assert far.recv(2000) == b"x" * 1000
    while near.unacknowledged():
        give_way()
    near.close()


def test_once_closed_the_evented_methods_that_carry_bytes_are_errors(evented: EventedPair) -> None:
    near, _ = evented
    tells = [near.closed]
    near.close()
    assert [*tells, near.closed] == [False, True]
    for call in (
        lambda: near.recv_now(1),
        lambda: near.recv_into_now(memoryview(bytearray(1))),
        lambda: near.sendmsg_now([b"x"]),
        near.unacknowledged,
    ):
        with pytest.raises(ConnError):
            call()
