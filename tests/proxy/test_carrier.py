"""The data connection of a UDP proxy: what it queues, drops and hands on, and its part of the process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.hub import get_hub

from gnar_lib import logger, net
from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.net import Datagram
from gnar_lib.net.datagram import BATCH
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import (
    BinaryFraming,
    Framing,
    JsonFraming,
)
from gnar_lib.proxy.share import Share
from gnar_lib.proxy.udp import MAX_QUEUED_BYTES, Carrier
from tests.helpers.conns import accept
from tests.helpers.datagrams import LOG, LOOPBACK, TIMEOUT_S, USER, parse_all
from tests.helpers.loop import wait_until


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


class StuckConn:
    """A conn that takes `room` bytes; a write of more waits for `make_room`."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.sent = b""
        self.writes = 0
        self._has_room = Event()

    def recv(self, _: int) -> bytes:
        return b""

    def make_room(self) -> None:
        """Have the conn take everything from now on."""
        self.room = 1 << 30
        self._has_room.set()

    def send_now(self, data: bytes | memoryview) -> int:
        self.writes += 1
        count = min(self.room, len(data))
        self.room -= count
        self.sent += bytes(data[:count])
        return count

    def sendall(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest := rest[self.send_now(rest) :]:
            self._has_room.wait()


def stuck_carrier(framing: Framing, room: int = 0) -> tuple[StuckConn, Carrier, Meter]:
    conn, meter = StuckConn(room), Meter()
    return conn, Carrier(conn, framing, meter, LOG), meter  # type: ignore[arg-type]  # all it uses


def test_slow_data_connection_holds_1_mib_and_drops_the_rest() -> None:
    framing = BinaryFraming()
    conn, carrier, meter = stuck_carrier(framing)
    sent = [(USER, number.to_bytes(4, "big") * 250) for number in range(5000)]
    for each in sent:
        carrier.send([each])
        gevent.sleep(0)  # its greenlet begins to write
    assert meter.dropped > 3000
    assert conn.sent == b""
    conn.make_room()
    wait_until(lambda: not carrier._is_writing, "the queue is written")
    found, used = parse_all(framing, conn.sent)
    assert used == len(conn.sent) <= MAX_QUEUED_BYTES + 2048
    assert found == sent[: len(found)]
    assert len(found) == 5000 - meter.dropped
    carrier.send([(USER, b"again")])
    assert conn.sent.endswith(b"again")


def test_empty_datagrams_are_bounded_as_well() -> None:
    conn, carrier, meter = stuck_carrier(BinaryFraming())
    for _ in range(1500):
        carrier.send([(USER, b"")] * 64)
        gevent.sleep(0)  # its greenlet begins to write
    assert meter.dropped > 1500 * 64 - 2 * MAX_QUEUED_BYTES // 25
    conn.make_room()
    wait_until(lambda: not carrier._is_writing, "the queue is written")


def test_datagram_too_large_for_json_is_dropped_alone_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    framing = JsonFraming(with_address=True)
    conn, carrier, meter = stuck_carrier(framing, 1 << 30)
    logger._root.addHandler(caplog.handler)
    try:
        for _ in range(3):
            carrier.send([(USER, b"before"), (USER, b"x" * 60_000), (USER, b"behind")])
    finally:
        logger._root.removeHandler(caplog.handler)
    assert meter.dropped == 3
    assert framing.parse(conn.sent)[0] == [(USER, b"before"), (USER, b"behind")] * 3
    assert caplog.text.count("dropped") == 1


def test_datagrams_of_one_turn_leave_together_a_batch_at_a_time() -> None:
    conn, carrier, _ = stuck_carrier(BinaryFraming(), 1 << 30)
    sent = [(USER, number.to_bytes(4, "big")) for number in range(BATCH + 10)]
    timers = [get_hub().loop.timer(0.0) for _ in sent]
    for timer, each in zip(timers, sent, strict=True):
        timer.start(carrier.send, [each])
    wait_until(lambda: len(parse_all(BinaryFraming(), conn.sent)[0]) == len(sent), "all are sent")
    assert conn.writes <= 4  # not one for each; the timers may be of two turns
    carrier.send([])
    assert conn.writes <= 4


def test_carrier_hands_on_what_comes_and_closes_its_conn() -> None:
    near, far = _pair()
    got: list[Datagram] = []
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    running = gevent.spawn(carrier.run, got.extend)
    sent = [(USER, os.urandom(size % 3000)) for size in range(0, 70_000, 70)]
    gevent.spawn(far.sendall, BinaryFraming().frame(sent))
    wait_until(lambda: len(got) == len(sent), "all have come")
    assert got == sent
    far.close()
    running.get()
    assert near.closed


@pytest.mark.parametrize("framing", [BinaryFraming(), JsonFraming(with_address=True)])
def test_others_have_their_turn_between_the_batches_of_one_read(framing: Framing) -> None:
    stream = framing.frame([(USER, b"")] * 1000)
    conn = PouringConn(stream + stream[:10])
    others, turns = 0, list[int]()

    def go_on() -> None:
        nonlocal others
        while len(turns) < 1000 // BATCH:
            others += 1
            net.give_way()

    going_on = gevent.spawn(go_on)
    carrier = Carrier(conn, framing, Meter(), LOG)  # type: ignore[arg-type]
    count = 0

    def deliver(datagrams: list[Datagram]) -> None:
        nonlocal count
        count += len(datagrams)
        assert len(datagrams) <= BATCH
        turns.append(others)

    carrier.run(deliver)
    going_on.join()
    assert count == 1000
    assert len({*turns}) > len(turns) // 2


class PouringConn(StuckConn):
    """A conn on which all comes at once."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        get_hub().loop.run_callback(callback)

    def recv(self, _: int) -> bytes:
        content, self._content = self._content, b""
        return content

    def close(self) -> None:
        self._content = b""


def test_carrier_that_is_closed_ends_where_it_waits() -> None:
    for end in (Carrier.close, Carrier.abort):
        near, far = _pair()
        carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
        running = gevent.spawn(carrier.run, lambda _: None)
        far.sendall(BinaryFraming().frame([(USER, b"half")])[:-2])
        wait_until(lambda carrier=carrier: carrier._rest != b"", "half a datagram has come")  # type: ignore[misc]
        end(carrier)
        with pytest.raises(ConnClosed):
            running.get()
        assert near.closed
        far.close()


def test_carrier_that_was_closed_before_it_ran_ends_at_once() -> None:
    near, far = _pair()
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    carrier.close()
    with pytest.raises(ConnClosed):
        carrier.run(lambda _: None)
    far.close()


def test_defect_behind_a_carrier_ends_it() -> None:
    near, far = _pair()
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    far.sendall(BinaryFraming().frame([(USER, b"")]))

    def deliver(_: list[Datagram]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        carrier.run(deliver)
    assert near.closed
    far.close()


def test_bytes_that_were_put_back_are_received_first() -> None:
    near, far = _pair()
    got: list[Datagram] = []
    near.unread(BinaryFraming().frame([(USER, b"one")]))
    far.sendall(BinaryFraming().frame([(USER, b"two")]))
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    running = gevent.spawn(carrier.run, got.extend)
    wait_until(lambda: len(got) == 2, "both have come")
    far.close()
    running.get()
    assert got == [(USER, b"one"), (USER, b"two")]


def test_carrier_ends_on_what_is_no_datagram() -> None:
    near, far = _pair()
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    far.sendall(b"\x02\x00\x02{}")
    with pytest.raises(ProtocolError):
        carrier.run(lambda _: None)
    assert near.closed
    far.close()


def _pair() -> tuple[net.SocketConn, net.SocketConn]:
    listener = net.listen(LOOPBACK, 0)
    near = net.dial(socket.AF_INET, (LOOPBACK, listener.port))
    far = accept(listener)
    listener.close()
    return near, far


def test_datagrams_pause_for_users_of_tcp_that_are_busy_and_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, moved = [0], [True]
    monkeypatch.setattr("gnar_lib.proxy.share.busy_pairs", lambda: pairs[0])
    monkeypatch.setattr("gnar_lib.proxy.share.any_has_moved", lambda: moved[0])
    monkeypatch.setattr("gnar_lib.proxy.share.LOOK_EVERY_S", 0.0)
    share = Share()

    def work() -> float:
        """Use up more than the credit, and return the pause that follows."""
        return share.pause_after(time.monotonic() - 0.01)

    assert work() == 0  # no TCP at all
    pairs[0] = 1
    assert work() > 0.005
    moved[0] = False
    monkeypatch.setattr("gnar_lib.proxy.share.BUSY_FOR_S", 0.0)
    assert work() == 0  # connected, and silent
