"""How a conn ends: half-close, close, reset, and who is woken by it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.net import SocketConn
from tests.helpers.conns import MIB, Pair, Waiter, read_all, tcp_pair
from tests.helpers.loop import turn, wait_until


def test_shutdown_of_a_closed_conn_is_no_error(pair: Pair) -> None:
    near, _ = pair
    near.close()
    near.shutdown(socket.SHUT_WR)
    near.close()
    near.abort()
    assert near.closed
    assert near.fileno() == -1
    assert "closed" in repr(near)


def test_abort_is_a_reset_at_the_peer() -> None:
    near, far = tcp_pair()
    near.sendall(b"x")
    near.abort()
    with pytest.raises(ConnClosed, match="reset by peer") as caught:
        read_all(far)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    far.close()


def test_writing_to_a_peer_that_has_gone_is_our_error() -> None:
    near, far = tcp_pair()
    far.abort()
    near.wait_readable()
    with pytest.raises(ConnError):
        near.recv(1)
    with pytest.raises(ConnError):
        near.sendall(b"x")
    near.close()


@pytest.mark.parametrize("end", ["close", "abort"])
def test_close_wakes_the_reader_and_the_writer(pair: Pair, end: str) -> None:
    near, _ = pair
    reader = Waiter(lambda: near.recv(1))
    writer = Waiter(lambda: near.sendall(b"x" * 32 * MIB))
    getattr(near, end)()
    assert isinstance(reader.result(), ConnClosed)
    assert isinstance(writer.result(), ConnClosed)


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.recv(1),
        lambda conn: conn.recv_now(1),
        lambda conn: conn.recv_into(memoryview(bytearray(1))),
        lambda conn: conn.recv_into_now(memoryview(bytearray(1))),
        lambda conn: conn.sendall(b"x"),
        lambda conn: conn.send_now(b"x"),
        lambda conn: conn.sendmsg_now([b"x"]),
        lambda conn: conn.wait_readable(),
        lambda conn: conn.wait_writable(),
    ],
)
def test_everything_on_a_closed_conn_is_conn_closed(pair: Pair, call: Callable[[SocketConn], object]) -> None:
    pair[0].close()
    with pytest.raises(ConnClosed):
        call(pair[0])


def test_callbacks_are_called_in_the_hub_until_close(pair: Pair) -> None:
    near, far = pair
    heard: list[bytes | None] = []
    near.call_when_readable(lambda: heard.append(near.recv_now(10)))
    far.sendall(b"a")
    wait_until(lambda: heard, "the callback has read")
    near.call_when_readable(None)
    far.sendall(b"b")
    turn()
    assert heard == [b"a"]
    writable: list[int] = []

    def once() -> None:
        writable.append(1)
        near.call_when_writable(None)

    near.call_when_writable(once)
    wait_until(lambda: writable, "the conn is writable")
    near.close()
    near.call_when_readable(lambda: heard.append(b"never"))
    near.call_when_writable(lambda: writable.append(2))
    turn()
    assert (heard, writable) == ([b"a"], [1])
