"""Datagram sockets that write to one address: whose datagrams are answers, and where the next ones go."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import gevent.socket
import pytest

from gnar_lib.net import Datagram, DatagramConn, Sockaddr
from gnar_lib.net.datagram_conn import connect_udp
from tests.helpers.datagrams import LOOPBACK, USER, EchoService, udp_user
from tests.helpers.loop import turn, wait_until

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel drops strays at once")
EVERYBODY = "127.255.255.255"  # the broadcast address of loopback


@dataclass
class Writer:
    """A conn that serves, and what has come to it."""

    conn: DatagramConn
    answers: list[Datagram] = field(default_factory=list)
    strays: list[Sockaddr] = field(default_factory=list)
    reads: int = 0

    def __post_init__(self) -> None:
        read = self.conn._on_readable

        def count_and_read() -> None:
            self.reads += 1
            read()

        self.conn.serve(self.answers.extend, USER, lambda _, source: self.strays.append(source))
        self.conn._reader._watcher.stop()
        self.conn._reader._watcher.start(count_and_read)


@contextmanager
def writing(host: str, port: int, *, any_source: bool = False) -> Iterator[Writer]:
    """Open a conn to an address of loopback for the block."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host, port, 0, 0) if ":" in host else (host, port)
    with closing(connect_udp(family, address, any_source=any_source)) as conn:
        yield Writer(conn)


def asked(service: gevent.socket.socket, writer: Writer) -> Sockaddr:
    """Send a datagram to a service that does not answer by itself; return the address of the writer."""
    assert writer.conn.send(b"question")
    source: Sockaddr = service.recvfrom(100)[1]
    return source


def test_answers_that_come_one_by_one_are_checked_no_more_once_the_kernel_does_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[Sockaddr] = []
    is_answer = DatagramConn._is_answer

    def note(conn: DatagramConn, source: Sockaddr) -> bool:
        checked.append(source)
        return is_answer(conn, source)

    monkeypatch.setattr(DatagramConn, "_is_answer", note)
    with closing(EchoService()) as service, writing(LOOPBACK, service.port) as writer:
        for count in range(1, 10):
            assert writer.conn.send(b"question")
            wait_until(lambda count=count: len(writer.answers) == count, "an answer")  # type: ignore[misc]
    assert len(checked) <= 2  # the first, and what came before the socket was connected


@LINUX_ONLY
@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
def test_datagrams_from_elsewhere_are_told_and_are_no_answers(host: str) -> None:
    with udp_user(host) as service, udp_user(host) as other:
        port = service.getsockname()[1]
        with writing(host, port) as writer:
            user = asked(service, writer)
            other.sendto(b"from another port", user)
            wait_until(lambda: writer.strays, "a stray datagram is told")
            assert writer.strays == [other.getsockname()]
            other.sendto(b"from another port", user)
            service.sendto(b"answer", user)
            wait_until(lambda: writer.answers, "an answer")
            other.sendto(b"from another port", user)  # which the kernel drops now
            service.sendto(b"more", user)
            wait_until(lambda: len(writer.answers) == 2, "another answer")
            assert [payload for _, payload in writer.answers] == [b"answer", b"more"]
            assert len(writer.strays) == 2


def test_conn_goes_on_writing_to_the_port_that_answered_first_as_tftp_needs_it() -> None:
    with (
        udp_user() as service,
        udp_user() as transfer,
        udp_user() as third,
        writing(LOOPBACK, service.getsockname()[1], any_source=True) as writer,
    ):
        user = asked(service, writer)
        transfer.sendto(b"block 1", user)
        wait_until(lambda: writer.answers, "an answer")
        third.sendto(b"news", user)
        wait_until(lambda: len(writer.answers) == 2, "another answer")
        assert writer.conn.send(b"ack 1")
        assert transfer.recv(100) == b"ack 1"
        assert writer.strays == []


@LINUX_ONLY
def test_conn_writes_to_the_service_again_once_the_other_port_is_closed() -> None:
    with udp_user() as service, writing(LOOPBACK, service.getsockname()[1], any_source=True) as writer:
        with udp_user() as transfer:
            transfer.sendto(b"block 1", asked(service, writer))
            wait_until(lambda: writer.answers, "an answer")
        assert writer.conn.send(b"lost")
        turn()  # the refusal has come
        assert writer.conn.send(b"another question")
        assert service.recv(100) == b"another question"
        assert not writer.conn.is_refused


def test_conn_whose_service_answered_first_keeps_writing_to_it_whoever_else_answers() -> None:
    with (
        udp_user() as service,
        udp_user() as other,
        writing(LOOPBACK, service.getsockname()[1], any_source=True) as writer,
    ):
        user = asked(service, writer)
        service.sendto(b"answer", user)
        wait_until(lambda: writer.answers, "an answer")
        other.sendto(b"news", user)
        wait_until(lambda: len(writer.answers) == 2, "another answer")
        assert asked(service, writer) == user


@LINUX_ONLY
@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
@pytest.mark.parametrize("any_source", [False, True])
def test_port_unreachable_is_noticed_once_and_the_loop_rests(host: str, any_source: bool) -> None:
    with closing(EchoService(host)) as gone:
        port = gone.port
    with writing(host, port, any_source=any_source) as writer:
        for _ in range(3):
            writer.conn.is_refused = False
            writer.conn.send(b"anybody?")
            wait_until(lambda: writer.conn.is_refused, "the refusal has come")
        reads = writer.reads
        turn()
        assert writer.reads == reads <= 3
        with closing(EchoService(host, port)):
            writer.conn.send(b"there you are")
            wait_until(lambda: writer.answers, "an answer")


@LINUX_ONLY
def test_broadcast_reaches_all_who_listen_and_all_answers_come_back() -> None:
    with closing(EchoService("0.0.0.0")) as service, writing(EVERYBODY, service.port) as writer:
        for number in range(3):
            assert writer.conn.send(b"anybody there?")
            wait_until(lambda count=number: len(writer.answers) > count, "an answer")  # type: ignore[misc]
        assert len(service.heard) == 3
        assert writer.strays == []


@LINUX_ONLY
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_answers_of_loopback_to_an_address_that_means_this_host_are_no_strays(host: str) -> None:
    with (
        closing(EchoService("::1" if host == "::" else LOOPBACK)) as service,
        writing(host, service.port) as writer,
    ):
        assert writer.conn.send(b"question")
        wait_until(lambda: writer.answers, "an answer")
