"""The outbox: no caller waits, nothing is lost or out of order, and an idle one has no greenlet."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gnar_lib.errors import ConnClosed
from gnar_lib.net import Crew, SocketConn
from gnar_lib.net.conn import socket_class
from gnar_lib.proto import Heartbeat, ProxyCancel, recv
from gnar_lib.proto import outbox as outbox_module
from gnar_lib.proto.outbox import Outbox
from tests.helpers.loop import turn, wait_until

MANY = 200  # messages of 1 KiB: more than fits into the small buffers below
TEXT = "x" * 1000


@pytest.fixture
def crew() -> Crew:
    return Crew("outbox")


@pytest.fixture
def ends() -> Iterator[tuple[SocketConn, SocketConn]]:
    """Return two conns that are joined, with small buffers in between."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    conns = [SocketConn(socket_class(fileno=sock.detach())) for sock in (ours, theirs)]
    yield conns[0], conns[1]
    for conn in conns:
        conn.close()


def test_message_needs_no_greenlet(crew: Crew, ends: tuple[SocketConn, SocketConn]) -> None:
    outbox = Outbox(ends[0], crew, ends[0].abort)
    outbox.post_heartbeat()
    outbox.post(ProxyCancel("blog", 1))
    turn()
    assert not len(crew)
    assert [recv(ends[1]), recv(ends[1])] == [Heartbeat(), ProxyCancel("blog", 1)]


def test_messages_for_a_peer_that_reads_late_come_in_order(
    crew: Crew, ends: tuple[SocketConn, SocketConn]
) -> None:
    outbox = Outbox(ends[0], crew, ends[0].abort)
    for number in range(MANY):
        outbox.post(ProxyCancel(TEXT, number))
    turn()
    assert len(crew) == 1
    outbox.post(ProxyCancel("last", MANY))
    got = [recv(ends[1]) for _ in range(MANY + 1)]
    assert [each.remote_port for each in got if isinstance(each, ProxyCancel)] == [*range(MANY + 1)]
    wait_until(lambda: not len(crew), "the greenlet has ended")


def test_peer_that_reads_nothing_is_given_up(
    crew: Crew, ends: tuple[SocketConn, SocketConn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_QUEUED_BYTES", 100_000)
    outbox = Outbox(ends[0], crew, ends[0].abort)
    for number in range(MANY):
        outbox.post(ProxyCancel(TEXT, number))
    assert ends[0].closed
    turn()
    assert not len(crew)


def test_conn_that_fails_is_aborted(crew: Crew, ends: tuple[SocketConn, SocketConn]) -> None:
    ends[1].close()
    outbox = Outbox(ends[0], crew, ends[0].abort)
    outbox.post_heartbeat()
    wait_until(lambda: ends[0].closed, "the conn is aborted")
    outbox.post_heartbeat()
    turn()


def test_nothing_is_sent_once_it_is_closed(crew: Crew, ends: tuple[SocketConn, SocketConn]) -> None:
    outbox = Outbox(ends[0], crew, ends[0].abort)
    outbox.post_heartbeat()
    outbox.close()
    outbox.post_heartbeat()
    turn()
    ends[0].close()
    with pytest.raises(ConnClosed):
        recv(ends[1])
