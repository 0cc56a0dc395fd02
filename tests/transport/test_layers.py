"""What layers over layers add to what `tests/net/test_contract.py` says of every conn."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.net.options import DEFAULT_DEAD_AFTER_S, set_dead_after
from gnar_lib.transport import outgoing
from gnar_lib.transport.outgoing import lingering
from gnar_lib.transport.tls import TlsConn
from tests.helpers.conns import MIB, Waiter, read_all, tcp_pair
from tests.helpers.loop import turn, wait_until
from tests.helpers.tls import shake_hands


class Tower:
    """Three layers at both ends of a connection."""

    def __init__(self) -> None:
        self.bottom, self.far_bottom = tcp_pair()
        self.layers = [shake_hands(self.bottom, self.far_bottom)]
        for _ in range(2):
            self.layers.append(shake_hands(*self.layers[-1]))
        self.near, self.far = self.layers[-1]

    def fill(self) -> bytes:
        """Send until nothing fits any more, and return what counts as sent."""
        sent, data = bytearray(), os.urandom(MIB)
        while count := self.near.send_now(data):
            sent += data[:count]
        return bytes(sent)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def tower() -> Iterator[Tower]:
    tower = Tower()
    yield tower
    tower.close()
    turn()


def test_what_counts_as_sent_arrives_through_all_layers_although_its_sender_has_closed(tower: Tower) -> None:
    sent = tower.fill()
    tower.near.close()
    assert read_all(tower.far) == sent
    wait_until(lambda: tower.bottom.closed, "the conn at the bottom is closed")
    assert not len(lingering)


def test_half_close_ends_each_layer_behind_what_counts_as_sent(tower: Tower) -> None:
    sent = tower.fill()
    tower.near.shutdown(socket.SHUT_WR)
    assert read_all(tower.far) == sent
    tower.far.sendall(b"answer")
    assert tower.near.recv(MIB) == b"answer"
    assert [layer[1].recv(1) for layer in tower.layers] == [b""] * 3
    assert read_all(tower.far_bottom) == b""


def test_peer_that_takes_nothing_is_given_up_with_all_layers_at_once(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "LOOK_EVERY_S", 0.01)
    tower.fill()
    set_dead_after(0.05)
    try:
        tower.near.close()
        assert len(lingering) == 1
        wait_until(lambda: not len(lingering), "the peer is given up")
        assert tower.bottom.closed
    finally:
        set_dead_after(DEFAULT_DEAD_AFTER_S)
    with pytest.raises(ConnError):
        read_all(tower.far)


def test_few_conns_linger_however_many_layers_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MAX_LINGERING", 2)
    towers = [Tower() for _ in range(3)]
    for tower in towers:
        tower.fill()
        tower.near.close()
    assert len(lingering) == 2
    assert [tower.bottom.closed for tower in towers] == [True, False, False]
    for tower in towers[1:]:
        read_all(tower.far)
    wait_until(lambda: not len(lingering), "the others are closed")
    for tower in towers:
        tower.close()


def test_reader_at_the_top_is_woken_by_a_close_that_lingers(tower: Tower) -> None:
    reader = Waiter(lambda: tower.near.recv(1))
    sent = tower.fill()
    tower.near.close()
    assert isinstance(reader.result(), ConnClosed)
    assert read_all(tower.far) == sent


@pytest.mark.parametrize("ending", [0, 1])
def test_end_of_a_layer_below_without_that_of_the_top_is_an_error_in_one_line(
    tower: Tower, ending: int
) -> None:
    tower.far.sendall(b"all that came")
    tower.layers[ending][1].shutdown(socket.SHUT_WR)
    assert tower.near.recv(MIB) == b"all that came"
    with pytest.raises(ConnError) as caught:
        tower.near.recv(MIB)
    assert str(caught.value).count(str(tower.bottom)) == 1
    assert "gone without the end of TLS" in str(caught.value)


def test_bytes_inside_each_layer_call_back(tower: Tower) -> None:
    """They are in no socket any more, so that no event of the loop tells of them."""
    heard: list[bytes | None] = []
    tower.far.sendall(b"abc")
    tower.far.sendall(b"def")
    turn()
    assert tower.near.recv(1) == b"a"
    tower.near.call_when_readable(lambda: heard.append(tower.near.recv_now(1)))
    wait_until(lambda: len(heard) == 5, "five callbacks")
    turn()
    assert b"".join(each or b"" for each in heard) == b"bcdef"


def test_bytes_that_were_put_back_below_call_back() -> None:
    """Whoever has looked at the first bytes puts them back before a layer stands on the conn."""
    near, below = tcp_pair()
    client, server = shake_hands(near, below)
    client.sendall(b"hello")
    below.unread(below.recv(MIB))
    heard: list[bytes | None] = []
    top = TlsConn(below, server._engine, "")
    top.call_when_readable(lambda: heard.append(top.recv_now(MIB)))
    turn()
    assert heard == [b"hello"]
    top.close()
    client.close()


def test_nobody_is_called_for_room_once_a_writer_has_closed(tower: Tower) -> None:
    closed: list[bool] = []

    def write_and_close() -> None:
        tower.near.sendall(bytes(8 * MIB))
        tower.near.close()

    writer = Waiter(write_and_close)
    tower.near.call_when_writable(lambda: closed.append(tower.near.closed))
    read_all(tower.far)
    assert writer.result() is None
    assert True not in closed


def test_options_reach_the_conn_at_the_bottom(tower: Tower) -> None:
    def lingers() -> int:
        option = tower.bottom.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        return int(struct.unpack("ii", option)[0])

    tower.near.reset_if_killed(wanted=True)
    assert lingers() == 1
    tower.near.reset_if_killed(wanted=False)
    assert lingers() == 0
    assert tower.near.getpeername() == tower.bottom.getpeername()
    assert not tower.near.has_hung_up
    tower.far_bottom.close()
    turn()
    assert tower.near.has_hung_up
