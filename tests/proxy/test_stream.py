"""Two conns are joined: every way of copying, with any sizes, limits, resets, and readers that stop."""

from __future__ import annotations

import gc
import hashlib
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.net.conn import socket_class
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket
from gnar_lib.proxy import buffer, splice, ways
from gnar_lib.proxy import stream as stream_module
from gnar_lib.yamux import Session
from gnar_lib.yamux.frame import ACK, DATA, FIN, RST, SYN, WINDOW_UPDATE
from tests.helpers.conns import accept
from tests.helpers.loop import turn, wait_until
from tests.helpers.moving import moving_pair
from tests.helpers.wrapped import WrappedConn
from tests.peers.mux import session_and_peer

MIB = 1 << 20
BULK_BYTES = 8 * MIB
TIMEOUT_S = 20.0
WAYS = [
    "spliced",
    "buffered",
    "without a pipe",
    "unix",
    "stream behind",
    "stream in front",
    "wrapped",
    "stream over a wrapped conn",
    "moving",
]


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


def tcp_pair() -> tuple[net.SocketConn, net.SocketConn]:
    listener = net.listen("127.0.0.1", 0)
    near = net.dial(socket.AF_INET, ("127.0.0.1", listener.port))
    far = accept(listener)
    listener.close()
    return near, far


def unix_pair() -> tuple[net.SocketConn, net.SocketConn]:
    near, far = (
        net.SocketConn(socket_class(socket.AF_UNIX, socket.SOCK_STREAM, fileno=sock.detach()), "pair")
        for sock in socket.socketpair(socket.AF_UNIX)
    )
    return near, far


@dataclass
class Joined:
    """A user and a service, the flows of both directions, and the errors of the join."""

    user: net.Conn
    service: net.Conn
    up: Flow = field(default_factory=Flow)
    down: Flow = field(default_factory=Flow)
    crew: net.Crew = field(default_factory=lambda: net.Crew("joined"))
    errors: list[ConnError] = field(default_factory=list)

    joined_user: net.Conn | None = None  # the conn by which the user is joined

    def start(self, a: net.Conn, b: net.Conn) -> None:
        self.joined_user = a

        def run() -> None:
            try:
                stream_module.stream(a, b, self.up, self.down)
            except ConnError as exc:
                self.errors.append(exc)

        self.crew.spawn(run)

    def wait_end(self) -> None:
        assert self.crew.wait_empty(TIMEOUT_S)


@contextmanager
def joined(way: str, monkeypatch: pytest.MonkeyPatch, up: Flow | None = None) -> Iterator[Joined]:
    """Join a user and a service by one way of copying, and check behind the block that nothing is left."""
    if way == "buffered":
        monkeypatch.setattr(splice.Pipe, "can_splice", False)
    if way == "without a pipe":
        monkeypatch.setattr(splice.Pipe, "take", lambda: None)
    make = unix_pair if way == "unix" else tcp_pair
    user, a = make()
    b, service = make()
    crew = net.Crew("joined")
    if way == "moving":  # two pairs are joined, as in a tunnel
        monkeypatch.setattr(ways, "BULK_READS", 1)
        tunnel = moving_pair(crew)
        sessions = [tunnel.server, tunnel.client]
        ends: Ends = (user, a, tunnel.server.open(), service)
        Joined(user, service, crew=crew).start(tunnel.client.accept(), b)
    else:
        ends, sessions = ends_of(way, user, a, b, service)
    pair = Joined(ends[0], ends[3], up or Flow(), crew=crew)
    pair.start(ends[1], ends[2])
    try:
        yield pair
    finally:
        for conn in (pair.user, pair.service):
            conn.close()
        for session in sessions:
            session.close()
        pair.crew.kill()
        pair.wait_end()
        for conn in (user, a, b, service):
            conn.close()


Ends = tuple[net.Conn, net.Conn, net.Conn, net.Conn]


def ends_of(
    way: str, user: net.SocketConn, a: net.SocketConn, b: net.SocketConn, service: net.SocketConn
) -> tuple[Ends, list[Session]]:
    """Return what `way` makes of two pairs of conns: the user, the two that are joined, and the service."""
    if way == "stream behind":
        sessions = [Session(b, is_client=True), Session(service, is_client=False)]
        return (user, a, sessions[0].open(), sessions[1].accept()), sessions
    if way == "stream in front":
        sessions = [Session(user, is_client=True), Session(a, is_client=False)]
        return (sessions[0].open(), sessions[1].accept(), b, service), sessions
    if way == "stream over a wrapped conn":
        sessions = [
            Session(WrappedConn(b), is_client=True),
            Session(WrappedConn(service), is_client=False),
        ]
        return (user, a, sessions[0].open(), sessions[1].accept()), sessions
    if way == "wrapped":
        return (WrappedConn(user), WrappedConn(a), WrappedConn(b), WrappedConn(service)), []
    return (user, a, b, service), []


def send_much(conn: net.Conn) -> None:
    """Write more than buffers and windows take."""
    conn.sendall(bytes(64 * MIB))  # no argument: gevent shows the arguments of what fails


def send_random(conn: net.Conn, total: int, seed: int, largest: int = 300_000) -> str:
    """Write in pieces of random sizes, end the stream, and return the hash of all of it."""
    sizes, digest = random.Random(seed), hashlib.sha256()  # noqa: S311  (the same every time)
    block = sizes.randbytes(largest)
    while total:
        piece = block[: min(total, sizes.choice([1, 100, 4096, 65536, largest]))]
        conn.sendall(piece)
        digest.update(piece)
        total -= len(piece)
    conn.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def recv_random(conn: net.Conn, seed: int) -> str:
    """Read in pieces of random sizes to the end of the stream, and return the hash of all of it."""
    sizes, digest = random.Random(seed), hashlib.sha256()  # noqa: S311  (the same every time)
    while data := conn.recv(sizes.choice([1, 100, 4096, 65536, MIB])):
        digest.update(data)
        gevent.sleep(0)  # the others have their turn
    return digest.hexdigest()


@pytest.mark.parametrize("end_first", ["service", "user"])
@pytest.mark.parametrize("way", WAYS)
def test_half_closed_pair_costs_nothing_while_nothing_comes(
    way: str, end_first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as pair:
        ends = (pair.service, pair.user) if end_first == "service" else (pair.user, pair.service)
        for here, there in (ends, ends[::-1]):  # so that both directions wait for more
            here.sendall(b"hello")
            assert there.recv(100) == b"hello"
        ends[0].shutdown(socket.SHUT_WR)
        assert ends[1].recv(100) == b""
        loop = get_hub().loop
        before = loop.iteration
        gevent.sleep(0.1)  # in which a loop that spins turns thousands of times
        assert loop.iteration - before < 20
        ends[1].sendall(b"bye")
        assert ends[0].recv(100) == b"bye"


@pytest.mark.parametrize("way", WAYS)
def test_bytes_of_any_sizes_arrive_both_ways_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(way, monkeypatch) as pair:
        sent_up = gevent.spawn(send_random, pair.user, BULK_BYTES, 1)
        sent_down = gevent.spawn(send_random, pair.service, BULK_BYTES // 2, 3)
        got_up = gevent.spawn(recv_random, pair.service, 2)
        assert recv_random(pair.user, 4) == sent_down.get()
        assert got_up.get() == sent_up.get()
        pair.wait_end()
        assert (pair.up.bytes, pair.down.bytes) == (BULK_BYTES, BULK_BYTES // 2)
        assert pair.errors == []


@pytest.mark.parametrize("way", WAYS)
def test_small_messages_go_back_and_forth_after_bulk(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(way, monkeypatch) as pair:
        sender = gevent.spawn(pair.user.sendall, b"x" * BULK_BYTES)
        left = BULK_BYTES
        while left:
            left -= len(pair.service.recv(MIB))
        sender.get()
        for number in range(300):  # more than it takes to leave the way of bulk again
            question = b"%d" % number
            pair.user.sendall(question)
            assert pair.service.recv(100) == question
            pair.service.sendall(question * 2)
            assert pair.user.recv(100) == question * 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", ["user", "service"])
def test_half_close_in_either_order_keeps_the_other_direction_open(
    way: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as pair:
        ends = [pair.user, pair.service]
        early, late = ends if first == "user" else reversed(ends)
        early.sendall(b"last words")
        early.shutdown(socket.SHUT_WR)
        assert late.recv(100) == b"last words"
        assert late.recv(100) == b""
        sender = gevent.spawn(send_random, late, 2 * MIB, 5)
        assert recv_random(early, 6) == sender.get()
        pair.wait_end()
        assert pair.errors == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["user", "service"])
@pytest.mark.parametrize("amount", [1, 4 * MIB])
def test_reset_in_the_middle_tears_the_other_side_down(
    way: str, who: str, amount: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as pair:
        ends = [pair.user, pair.service]
        gone, left = ends if who == "user" else reversed(ends)
        sender = gevent.spawn(send_much, left)
        got = 0
        while got < amount:
            got += len(gone.recv(min(amount - got, 65536)))
        gone.abort()
        with pytest.raises(ConnClosed):
            sender.get()
        pair.wait_end()
        if way != "unix":  # there a close is no reset, and the writer's error is all there is
            assert len(pair.errors) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["user", "service"])
def test_answer_given_in_the_middle_of_an_upload_arrives_before_the_reset(
    way: str, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as pair:
        ends = [pair.user, pair.service]
        uploader, answerer = ends if who == "user" else reversed(ends)
        upload = gevent.spawn(send_and_ignore_errors, uploader, b"x" * (64 * MIB))
        answerer.recv(1000)
        answer = bytes(range(256)) * 400
        answerer.sendall(answer)
        answerer.abort()  # as the kernel does when a program closes before it has read all
        got = b""
        with suppress(ConnError):
            while more := uploader.recv(65536):
                got += more
        assert got == answer
        upload.join()
        pair.wait_end()
        assert len(pair.errors) == 1


def send_and_ignore_errors(conn: net.Conn, data: bytes) -> None:
    with suppress(ConnError):
        conn.sendall(data)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_sent_before_a_reset_arrives_though_the_reader_is_late(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as pair:
        sent = bytes(range(256)) * 800
        sender = gevent.spawn(pair.service.sendall, sent)
        sender.join()
        pair.service.abort()
        turn()
        got = b""
        with suppress(ConnError):
            while more := pair.user.recv(10_000):
                got += more
                gevent.sleep(0.001)  # a slow reader
        assert got == sent


@pytest.mark.parametrize("way", WAYS)
def test_reader_that_stops_holds_the_writer_up_and_nobody_else(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as slow, joined(way, monkeypatch) as other:
        sender = gevent.spawn(send_random, slow.user, 64 * MIB, 7)
        taken = -1
        while taken != slow.up.bytes:  # until it stands still
            taken = slow.up.bytes
            turn()
        assert not sender.dead
        assert taken < 48 * MIB
        other.user.sendall(b"ping")
        assert other.service.recv(100) == b"ping"
        assert recv_random(slow.service, 8) == sender.get()


@pytest.mark.parametrize("way", WAYS)
def test_limit_holds_under_every_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 20 * MIB
    began = time.monotonic()  # before the bucket, which earns tokens from its first moment on
    bucket = Bucket(rate)
    assert bucket.take_now(rate)  # the burst; it is paid back by two seconds at half the rate
    count, at_least_s = rate // 4, 0.5
    with joined(way, monkeypatch, Flow(bucket)) as pair:
        sender = gevent.spawn(pair.user.sendall, b"x" * count)
        left = count
        while left:
            left -= len(pair.service.recv(MIB))
        sender.get()
        took_s = time.monotonic() - began
    assert 0.95 * at_least_s <= took_s <= 20 * at_least_s  # a busy machine is late


class SteadyClock:
    """A clock that stands still while the process does, since one connection alone would profit."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._seen_s = time.monotonic()

    def __call__(self) -> float:
        seen_s = time.monotonic()
        self.now_s += min(seen_s - self._seen_s, 0.05)
        self._seen_s = seen_s
        return self.now_s


def test_limited_connections_of_a_proxy_share_fairly_and_an_unlimited_one_is_not_slowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, clock = time.monotonic(), SteadyClock()
    bucket = Bucket(4 * MIB, clock)
    assert bucket.take_now(4 * MIB)  # the burst: who comes first would have it
    flows = [Flow(bucket), Flow(bucket)]
    with (
        joined("spliced", monkeypatch, flows[0]) as one,
        joined("stream behind", monkeypatch, flows[1]) as two,
        joined("spliced", monkeypatch) as free,
    ):

        def read(conn: net.Conn) -> None:
            with suppress(ConnClosed):
                while conn.recv(MIB):
                    pass

        def write(conn: net.Conn) -> None:
            with suppress(ConnClosed):
                conn.sendall(b"x" * (64 * MIB))

        for pair in (one, two):
            gevent.spawn(write, pair.user)
            gevent.spawn(read, pair.service)
        sender = gevent.spawn(send_random, free.user, 32 * MIB, 9)
        assert recv_random(free.service, 10) == sender.get()
        elapsed = time.monotonic() - began
        assert elapsed < 8  # what the limit would make of it
        before = [flow.bytes for flow in flows]  # from here on both want all that there is
        wait_until(lambda: sum(flow.bytes for flow in flows) - sum(before) > 24 * MIB, "both had many turns")
        allowed = (clock.now_s - 1) * 4 * MIB
        assert 0.5 * allowed < sum(flow.bytes for flow in flows) < 1.1 * allowed
        shares = [flow.bytes - earlier for flow, earlier in zip(flows, before, strict=True)]
        assert min(shares) / max(shares) > 0.8


@pytest.mark.parametrize("way", ["spliced", "buffered"])
def test_bulk_gives_way_to_others_though_nothing_in_it_waits(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def give_way() -> None:
        given.append(1)
        net.give_way()

    for module in (splice, buffer):
        monkeypatch.setattr(module, "give_way", give_way)
    with joined(way, monkeypatch) as pair:
        sender = gevent.spawn(send_random, pair.user, BULK_BYTES, 1)
        assert recv_random(pair.service, 2) == sender.get()
    assert len(given) >= BULK_BYTES // (4 * MIB)


def test_end_of_the_greenlet_that_joins_resets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined("spliced", monkeypatch) as pair:
        pair.user.sendall(b"x")
        assert pair.service.recv(1) == b"x"
        pair.crew.kill()
        for conn in (pair.user, pair.service):
            with pytest.raises(ConnClosed):
                conn.recv(1)


@pytest.mark.parametrize("way", WAYS)
def test_pair_whose_user_is_closed_by_somebody_else_ends(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an administrator ends a user."""
    with joined(way, monkeypatch) as pair:
        pair.user.sendall(b"x")
        assert pair.service.recv(1) == b"x"
        assert pair.joined_user is not None
        pair.joined_user.abort()
        pair.wait_end()
        assert pair.errors
    turn()


def test_pair_that_breaks_just_before_it_is_looked_at_ends() -> None:
    user, a = tcp_pair()
    b, service = tcp_pair()
    pair = Joined(user, service, down=Flow(Bucket(1 << 30)))  # with a limit, the way back has a greenlet
    pair.start(a, b)
    service.sendall(b"awake")
    assert user.recv(100) == b"awake"

    def break_and_look() -> None:
        b.was_read = False
        a.interrupt(ConnClosed("broken"))
        stream_module._awake._look()

    get_hub().loop.run_callback(break_and_look)
    pair.wait_end()
    assert [str(error) for error in pair.errors] == ["broken"]
    for conn in (user, service):
        conn.close()


def test_bytes_put_back_into_a_conn_are_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for can_splice in (True, False):
        monkeypatch.setattr(splice.Pipe, "can_splice", can_splice)
        user, a = tcp_pair()
        b, service = tcp_pair()
        user.sendall(b"header, body")
        assert a.recv(100) == b"header, body"
        a.unread(b"body")
        pair = Joined(user, service)
        pair.start(a, b)
        user.sendall(b" and more")
        user.shutdown(socket.SHUT_WR)
        got = b""
        while data := service.recv(100):
            got += data
        assert got == b"body and more"
        service.close()
        pair.wait_end()
        user.close()


class EndlessConn:
    """A conn that always has as much as a read can bring, until it has been read `reads` times."""

    def __init__(self, reads: int) -> None:
        self.left = reads

    def borrow(self) -> memoryview:
        self.left -= 1
        return memoryview(bytes(net.LENT_BYTES if self.left >= 0 else 0))

    def send_now(self, data: memoryview) -> int:
        return len(data)


def test_conns_that_never_wait_let_others_have_their_turn() -> None:
    source, turns = EndlessConn(100), 0

    def count() -> None:
        nonlocal turns
        while source.left > 0:
            turns += 1
            net.give_way()

    counting = gevent.spawn(count)
    buffer.copy_buffered(source, EndlessConn(0), Flow())  # type: ignore[arg-type]
    counting.join()
    assert turns > 10


class IdlePair:
    """A pair on which nothing comes."""

    moved = 0

    def __init__(self, parked: list[int], now: list[int]) -> None:
        self._parked, self._now = parked, now

    def park_if_idle(self) -> None:
        self._parked.append(self._now[0])


def test_thousands_of_idle_pairs_are_parked_a_few_at_a_time() -> None:
    sweep, parked, now = stream_module._Sweep(), list[int](), [0]
    pairs: list[Any] = [IdlePair(parked, now) for _ in range(1000)]
    for pair in pairs:
        sweep.add(pair)
    sweep._look()
    sweep._look()  # as on a slow machine, on which the next round is due before this one has ended
    sweep.discard(pairs[0])  # this one has ended
    while len(parked) < 999:
        now[0] += 1
        net.give_way()
    for pair in pairs:
        sweep.discard(pair)
    assert max(map(parked.count, parked)) <= stream_module.PARK_AT_ONCE


def test_many_joined_conns_leave_no_descriptor_and_no_greenlet(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_files() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    with joined("spliced", monkeypatch):
        pass
    turn()
    files, greenlets = open_files(), net.busy_greenlets()
    for number in range(100):
        with joined(WAYS[number % len(WAYS)], monkeypatch) as pair:
            pair.user.sendall(b"x" * (200_000 if number % 3 else 1))
            assert pair.service.recv(1) == b"x"
            if number % 2:
                pair.user.abort()
        monkeypatch.undo()
    wait_until(lambda: open_files() <= files + 2 * splice.SPARE_PIPES, "the descriptors are closed")
    wait_until(lambda: net.busy_greenlets() <= greenlets, "the greenlets have ended")
    assert not stream_module.busy_pairs()


@pytest.mark.parametrize("way", ["spliced", "unix", "stream behind", "stream in front"])
def test_small_messages_need_one_greenlet_for_both_directions(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(way, monkeypatch) as pair:
        wait_until(lambda: len(pair.crew), "the pair is joined")
        turn()
        greenlets = net.busy_greenlets()
        for number in range(3):
            for here, there in ((pair.user, pair.service), (pair.service, pair.user)):
                here.sendall(bytes([number]))
                assert there.recv(100) == bytes([number])
        assert net.busy_greenlets() <= greenlets
        assert pair.up.bytes == pair.down.bytes == 3


def test_pair_is_busy_no_longer_when_its_way_back_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined("spliced", monkeypatch) as pair:
        pair.service.sendall(b"x")
        assert pair.user.recv(100) == b"x"
        assert stream_module.busy_pairs() == 1
        pair.service.shutdown(socket.SHUT_WR)
        assert pair.user.recv(100) == b""
        wait_until(lambda: not stream_module.busy_pairs(), "the pair is not busy")


def test_conns_that_ended_with_an_error_are_freed_without_the_collector() -> None:
    def held() -> int:
        return sum(isinstance(thing, net.SocketConn) for thing in gc.get_objects())

    def reset_one() -> None:
        user, a = tcp_pair()
        b, service = tcp_pair()
        crew.spawn(stream_module.stream, a, b)
        user.sendall(b"x")
        assert service.recv(1) == b"x"
        user.abort()
        with suppress(ConnError):
            assert service.recv(1) == b""
        service.close()
        assert crew.wait_empty(TIMEOUT_S)

    crew = net.Crew("reset")
    gc.collect()
    gc.disable()
    try:
        reset_one()
        before = held()
        for _ in range(20):
            reset_one()
        assert held() <= before + 4  # those of the last one may still be at hand
    finally:
        gc.enable()


def test_whether_users_of_tcp_are_busy_is_told_by_a_look_at_few_of_them() -> None:
    looked: list[int] = []

    class Pair:
        def __init__(self, number: int) -> None:
            self.number = number
            self.bytes = 0

        @property
        def moved(self) -> int:
            looked.append(self.number)
            return self.bytes

    sweep = stream_module._Sweep()
    pairs = [Pair(number) for number in range(1000)]
    for pair in pairs:
        sweep.add(pair)  # type: ignore[arg-type]
    looked.clear()
    assert not sweep.any_has_moved()
    assert len(looked) == stream_module.LOOK_AT
    pairs[-1].bytes += 1
    looks = 1
    while not sweep.any_has_moved():
        looks += 1
    assert set(looked) == set(range(1000))  # each has its turn
    assert len(looked) <= 1000 + stream_module.LOOK_AT
    for pair in pairs:
        sweep.discard(pair)  # type: ignore[arg-type]


def test_short_answer_and_its_end_leave_a_stream_in_one_frame() -> None:
    (near, far), crew = tcp_pair(), net.Crew("test")
    with session_and_peer() as (session, peer):
        session.joins_end = True
        peer.send((DATA, SYN, 1, b"question"))
        data = session.accept()
        far.sendall(b"answer")
        far.shutdown(socket.SHUT_WR)
        crew.spawn(stream_module.stream, data, near)
        assert peer.recv() == (DATA, ACK | FIN, 1, b"answer")
        peer.send((WINDOW_UPDATE, FIN, 1, 0))
        assert far.recv(100) == b"question"
        assert far.recv(100) == b""
        assert crew.wait_empty(TIMEOUT_S)
    far.close()


def test_short_answer_arrives_though_a_reset_has_come_right_behind_it() -> None:
    (near, far), crew = tcp_pair(), net.Crew("test")
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, b"question"))
        crew.spawn(stream_module.stream, session.accept(), near)
        assert far.recv(100) == b"question"
        far.sendall(b"answer")
        far.abort()
        assert peer.recv() == (DATA, ACK, 1, b"answer")
        assert peer.recv() == (WINDOW_UPDATE, RST, 1, 0)
        assert crew.wait_empty(TIMEOUT_S)


def test_answer_that_ends_later_ends_in_a_frame_of_its_own() -> None:
    (near, far), crew = tcp_pair(), net.Crew("test")
    with session_and_peer() as (session, peer):
        peer.send((DATA, SYN, 1, b"question"))
        data = session.accept()
        far.sendall(b"answer")
        crew.spawn(stream_module.stream, data, near)
        assert peer.recv() == (DATA, ACK, 1, b"answer")
        assert far.recv(100) == b"question"
        far.close()
        assert peer.recv() == (WINDOW_UPDATE, FIN, 1, 0)
        peer.send((WINDOW_UPDATE, FIN, 1, 0))
        assert crew.wait_empty(TIMEOUT_S)
