"""The local service of a UDP proxy: who gets which datagram, whatever becomes of the data connection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import gevent
import pytest

from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.udp import UdpService
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import DialError
from gnar_lib.net import Datagram, DatagramSocket, SocketConn, bind_udp, deadline
from gnar_lib.net.datagram import pack_address
from gnar_lib.net.target import DatagramTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import BinaryFraming, JsonFraming
from tests.helpers.conns import tcp_pair
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
QUESTION = (pack_address(("192.0.2.1", 4000)), b"a question")


@dataclass
class Running:
    """A UDP proxy of a client, its local service, and the server's ends of its data connections."""

    service: DatagramSocket = field(default_factory=lambda: bind_udp(LOOPBACK, 0))
    asked: list[Datagram] = field(default_factory=list)  # what has come to the service
    ends: list[SocketConn] = field(default_factory=list)
    carriers: list[gevent.Greenlet[..., None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.proxy = ClientProxy(
            ProxyConfig(proxy_name="dns", local_port=self.service.port, proxy_type="udp"), Meter()
        )
        assert self.proxy.udp is not None
        self.udp: UdpService = self.proxy.udp
        self.service.serve(self.asked.extend)

    def carry(self, *, binary: bool = True) -> SocketConn:
        """Have the proxy carry over a new data connection; returns the server's end."""
        server, conn = tcp_pair()
        self.ends += [server, conn]
        self.carriers.append(gevent.spawn(self.udp.carry, conn, binary=binary))
        return server

    def close(self) -> None:
        self.proxy.end()
        gevent.joinall(self.carriers)
        self.service.close()
        for conn in self.ends:
            conn.close()


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    with deadline(TIMEOUT_S, "the test"):
        yield made
        made.close()


def frames(*datagrams: Datagram) -> bytes:
    return BinaryFraming().frame([*datagrams])


@pytest.mark.parametrize("binary", [True, False], ids=["our server", "a Go server"])
def test_answers_go_back_in_the_form_in_which_questions_come(
    running: Running,
    binary: bool,
) -> None:
    framing = BinaryFraming() if binary else JsonFraming(with_address=True)
    server = running.carry(binary=binary)
    server.sendall(framing.frame([QUESTION]))
    wait_until(lambda: running.asked, "the proxy asks for a data connection")
    ((session, payload),) = running.asked
    assert payload == b"a question"
    assert running.udp.sessions == 1
    assert running.service.send([(session, b"an answer")]) == 0
    answers: list[Datagram] = []
    data = b""
    while not answers:
        data += server.recv(1000)
        answers, _ = framing.parse(data)
    ((user, payload),) = answers
    assert payload == b"an answer"
    if binary:
        assert user == QUESTION[0]


def test_session_outlives_its_data_connection_and_what_comes_meanwhile_is_counted(running: Running) -> None:
    first = running.carry()
    first.sendall(frames(QUESTION))
    wait_until(lambda: running.asked, "the proxy asks for a data connection")
    ((session, _),) = running.asked
    first.close()
    running.carriers[0].join()
    running.service.send([(session, b"lost")])
    wait_until(lambda: running.proxy.meter.dropped == 1, "a datagram is dropped")
    second = running.carry()
    turn()  # the proxy carries over it from now on
    running.service.send([(session, b"an answer")])
    assert second.recv(1000) == frames((QUESTION[0], b"an answer"))
    assert running.udp.sessions == 1


def test_data_connection_takes_the_place_of_the_one_before(running: Running) -> None:
    first, second = running.carry(), running.carry()
    with pytest.raises(Exception, match="reset"):
        first.recv(1)
    second.sendall(frames(QUESTION))
    wait_until(lambda: running.asked, "the proxy asks for a data connection")


def test_service_whose_name_is_unknown_is_looked_up_again_when_users_come(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: DatagramTarget) -> None:
        raise DialError("no such name")

    monkeypatch.setattr(DatagramTarget, "look_up", fail)
    with caplog.at_level(logging.WARNING, "gnar"):
        server = running.carry()
        wait_until(lambda: caplog.records, "a line of the log")
    assert [record.getMessage() for record in caplog.records] == ["no such name"]
    monkeypatch.undo()
    server.sendall(frames(QUESTION))

    def is_asked() -> bool:
        server.sendall(frames(QUESTION))  # those that come during the look-up are dropped
        return bool(running.asked)

    wait_until(is_asked, "the service is asked")
