"""Datagram sockets: listening, answering from the right address, and connected ones."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing

import pytest

from gnar_lib import net
from gnar_lib.errors import ConnError, DialError, PortTakenError
from gnar_lib.net import Datagram, Sockaddr, datagram, descriptors
from gnar_lib.net.datagram import BATCH, pack_address
from gnar_lib.net.datagram_conn import connect_udp
from gnar_lib.net.target import DatagramTarget
from tests.helpers.datagrams import LOOPBACK, EchoService, echoing, udp_user
from tests.helpers.loop import wait_until


@pytest.mark.parametrize("bind", ["", "0.0.0.0", "::"])
@pytest.mark.parametrize("asked", [LOOPBACK, "127.0.0.2", "127.0.0.3"])
def test_answer_leaves_from_the_address_that_the_question_came_to(bind: str, asked: str) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on loopback")
    with echoing(net.bind_udp(bind, 0)) as sock, udp_user() as user:
        for each in (asked, LOOPBACK, asked):
            user.sendto(b"question", (each, sock.port))
            assert user.recvfrom(100) == (b"question", (each, sock.port))


def test_ipv6_and_ipv4_users_are_answered_by_one_socket() -> None:
    with echoing(net.bind_udp("", 0)) as sock, udp_user("::1") as six, udp_user() as four:
        six.sendto(b"six", ("::1", sock.port))
        four.sendto(b"four", (LOOPBACK, sock.port))
        assert six.recvfrom(100)[0] == b"six"
        assert four.recvfrom(100)[0] == b"four"
        assert sock.recent_peers(60) == 2


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 65507])
def test_datagram_of_any_size_arrives_whole(size: int) -> None:
    payload = os.urandom(size)
    with echoing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as user:
        user.sendto(payload, (LOOPBACK, sock.port))
        assert user.recv(65536) == payload


class CountingSocket:
    """A bound socket, and how often it was read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.reads = 0

    def recvfrom(self, size: int) -> tuple[bytes, Sockaddr]:
        self.reads += 1
        return self._sock.recvfrom(size)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_datagrams_that_come_one_by_one_are_read_once_each() -> None:
    with echoing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as user:
        sock.sock = counting = CountingSocket(sock.sock)  # type: ignore[assignment]  # all it uses
        for _ in range(100):
            user.sendto(b"question", (LOOPBACK, sock.port))
            assert user.recv(100) == b"question"
        assert counting.reads < 100 + 100 // 5  # not each, nor every second one, and a read in vain


def test_flood_is_read_in_few_turns() -> None:
    batches: list[int] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as user:
        sock.serve(lambda datagrams: batches.append(len(datagrams)))
        user.sendto(b"alone", (LOOPBACK, sock.port))
        wait_until(lambda: len(batches) == 1, "the first has come")
        for _ in range(500):
            user.sendto(b"", (LOOPBACK, sock.port))
        wait_until(lambda: sum(batches) == 501, "all have come")
    assert max(batches) == BATCH
    assert len(batches) < 40


def test_what_the_kernel_drops_is_counted() -> None:
    if sys.platform != "linux":
        pytest.skip("other systems do not tell")
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as user:
        for _ in range(20_000):
            user.sendto(b"x" * 500, (LOOPBACK, sock.port))
        sock.serve(heard.extend)
        dropped = sock.take_overflow()
        assert dropped > 0
        wait_until(lambda: len(heard) + dropped == 20_000, "the rest has come")
        assert sock.take_overflow() == 0


def test_peers_are_forgotten_when_there_are_too_many_and_are_not_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagram, "MAX_PEERS", 4)
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock:
        sock.serve(heard.extend)
        for number in range(9):
            with udp_user() as user:
                user.sendto(b"x", (LOOPBACK, sock.port))
                wait_until(lambda count=number: len(heard) > count, "the datagram has come")  # type: ignore[misc]
        assert sock.send(heard[:5]) == 5
        assert sock.send(heard[5:]) == 0
        assert sock.recent_peers(60) == 4
        assert sock.send([(pack_address(("192.0.2.1", 53)), b"not asked")]) == 1


def test_peer_who_was_answered_is_remembered_beside_a_flood_of_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagram, "MAX_PEERS", 4)
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as known:
        sock.serve(heard.extend)
        known.sendto(b"hello", (LOOPBACK, sock.port))
        wait_until(lambda: heard, "the datagram has come")
        sock.send(heard)
        for number in range(20):
            with udp_user() as stranger:
                stranger.sendto(b"x", (LOOPBACK, sock.port))
                wait_until(lambda count=number: len(heard) > count + 1, "the datagram has come")  # type: ignore[misc]
        assert sock.send(heard[:1]) == 0
        assert sock.recent_peers(60) == 4


def test_peer_is_forgotten_after_its_time_and_answers_count_as_use() -> None:
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as silent, udp_user() as answered:
        sock.forget_after(0.8)  # a busy machine holds a process up for less
        sock.serve(heard.extend)
        for user in (answered, silent):
            user.sendto(b"x", (LOOPBACK, sock.port))
        wait_until(lambda: len(heard) == 2, "both datagrams have come")

        def is_alone() -> bool:
            assert sock.send(heard[:1]) == 0
            return sock.recent_peers(60) == 1

        wait_until(is_alone, "the silent peer is forgotten")
        assert sock.send(heard[1:]) == 1
        wait_until(lambda: not sock.has_peers, "the other one is forgotten, too")


def test_port_that_is_taken_is_said() -> None:
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, pytest.raises(PortTakenError, match="already in use"):
        net.bind_udp(LOOPBACK, sock.port)


def test_unknown_name_and_foreign_address_are_not_bound() -> None:
    for host in ("no..such..name", "192.0.2.1"):
        with pytest.raises(ConnError):
            net.bind_udp(host, 0)


def test_target_to_which_there_is_no_way_is_a_dial_error() -> None:
    with pytest.raises(DialError, match="cannot connect to"):
        connect_udp(socket.AF_INET, ("192.0.2.1", 9), source=LOOPBACK)


def test_bind_sets_the_address_that_the_service_sees() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on loopback")
    with closing(EchoService()) as service:
        target = DatagramTarget(LOOPBACK, service.port, source="127.0.0.2")
        target.look_up()
        with closing(target.open()) as conn:
            assert conn.sock.getsockname()[0] == "127.0.0.2"


@pytest.mark.parametrize(
    ("turns", "budget"),
    [
        pytest.param([7], 1, id="one turn"),
        pytest.param([7, 9, 11], 1, id="turns with others between them"),
        pytest.param([7, 8, 9], 4, id="turns running"),
        pytest.param([-1] * 9, BATCH, id="a loop that does not count its turns: libuv, on Windows"),
    ],
)
def test_more_is_read_at_once_when_several_turns_running_bring_more(turns: list[int], budget: int) -> None:
    class Loop:
        iteration = 0

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        reader = datagram.Reader(sock)
        reader._loop = loop = Loop()
        for loop.iteration in turns:
            reader.was_full()
        assert reader.budget == budget
        reader.stop()
        descriptors.taken -= 1
