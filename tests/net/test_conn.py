"""Reading from a conn and writing to one: what waits, what does not, and in which order bytes come."""

from __future__ import annotations

import os
import socket

import gevent
import pytest

from gnar_lib.errors import ConnError
from tests.helpers.conns import MIB, Pair, Waiter, read_all, tcp_pair
from tests.helpers.loop import turn, wait_until


def test_recv_waits_for_the_first_byte_and_takes_no_more_than_asked(pair: Pair) -> None:
    near, far = pair
    waiter = Waiter(lambda: near.recv(3))
    far.sendall(b"hello")
    assert waiter.result() == b"hel"
    assert near.recv(100) == b"lo"


def test_recv_after_a_short_read_still_sees_what_had_come(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"a")
    assert near.recv(100) == b"a"
    far.sendall(b"b")
    far.shutdown(socket.SHUT_WR)
    assert near.recv(100) == b"b"
    assert near.recv(100) == b""
    assert near.recv(100) == b""


def test_unread_bytes_come_first_in_every_way_of_reading(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"ef")
    near.wait_readable()
    near.unread(b"d")
    near.unread(b"abc")
    assert near.has_unread
    assert near.recv(2) == b"ab"
    buffer = memoryview(bytearray(10))
    assert near.recv_into(buffer[:1]) == 1
    assert near.recv_now(1) == b"d"
    assert bytes(buffer[:1]) == b"c"
    near.unread(b"x")
    assert near.recv_into_now(buffer) == 1
    assert near.recv_into(buffer) == 2
    assert bytes(buffer[:2]) == b"ef"


def test_now_does_not_wait(pair: Pair) -> None:
    near, far = pair
    buffer = memoryview(bytearray(10))
    assert near.recv_now(10) is None
    assert near.recv_into_now(buffer) is None
    far.sendall(b"x")
    near.wait_readable()
    assert near.recv_into_now(buffer) == 1
    far.shutdown(socket.SHUT_WR)
    near.wait_readable()
    assert near.recv_now(10) == b""


def test_reader_that_keeps_its_watcher_started_sees_every_byte(pair: Pair) -> None:
    near, far = pair
    near.keep_reading = True
    sent = [os.urandom(1 + number % 50) for number in range(200)]

    def send() -> None:
        for part in sent:
            far.sendall(part)
            turn()
        far.shutdown(socket.SHUT_WR)

    sender = gevent.spawn(send)
    assert read_all(near) == b"".join(sent)
    sender.get()


def test_two_conns_of_one_greenlet_with_started_watchers_do_not_mix(pair: Pair) -> None:
    near, far = pair
    other_near, other_far = tcp_pair()
    near.keep_reading = other_near.keep_reading = True

    def send() -> None:
        far.sendall(b"a")
        turn()
        far.sendall(b"b")  # an event of the conn that nobody waits on then
        turn()
        other_far.sendall(b"c")

    sender = gevent.spawn(send)
    assert [near.recv(1), other_near.recv(1), near.recv(1)] == [b"a", b"c", b"b"]
    sender.get()
    other_near.close()
    other_far.close()


def test_send_now_takes_what_fits_and_then_nothing(pair: Pair) -> None:
    near, far = pair
    taken = 0
    while sent := near.send_now(b"x" * MIB):
        taken += sent
    assert near.sendmsg_now([b"a", b"b"]) == 0
    near.shutdown(socket.SHUT_WR)
    assert len(read_all(far)) == taken


def test_sendmsg_now_sends_many_buffers_in_order(pair: Pair) -> None:
    near, far = pair
    buffers: list[bytes | bytearray | memoryview] = [b"a", memoryview(b"bc"), b"d"]
    assert near.sendmsg_now(buffers) == 4
    assert far.recv(10) == b"abcd"


def test_unacknowledged_counts_down_to_nothing() -> None:
    near, far = tcp_pair()
    near.sendall(b"x" * 1000)
    wait_until(lambda: not near.unacknowledged(), "the peer has acknowledged all")
    assert far.recv(2000) == b"x" * 1000
    near.close()
    far.close()
    with pytest.raises(ConnError):
        near.unacknowledged()
