"""A UDP proxy at the server: datagrams leave on its data connection, or are dropped and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from gnar_lib.auth import Rights
from gnar_lib.config import ServerConfig
from gnar_lib.errors import ConnClosed
from gnar_lib.events import DatagramsDropped, Side
from gnar_lib.net import Conn, Crew, Datagram, SocketConn, bind_udp, deadline
from gnar_lib.net.datagram import pack_address
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import NOBODY, JsonFraming
from gnar_lib.server import udp_proxy
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.udp_proxy import UdpProxy
from tests.helpers.conns import tcp_pair
from tests.helpers.datagrams import LOOPBACK, udp_user
from tests.helpers.events import hear
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0
USER = pack_address(("192.0.2.1", 4000))
QUESTION = (USER, b"a question")


@dataclass
class FakeUpstream:
    """An upstream that gives what the test puts into its queue."""

    takes_binary_datagrams: bool
    conns: Queue[Conn | None] = field(default_factory=Queue)
    asked: int = 0

    def take_for_datagrams(self, _name: str, _owner: object) -> Conn | None:
        self.asked += 1
        return self.conns.get()

    def give_up(self, owner: object) -> None:
        assert isinstance(owner, UdpProxy)
        self.conns.put(None)


@dataclass
class Running:
    """A UDP proxy; the test plays its users and its client."""

    is_binary: bool
    upstream: FakeUpstream = field(init=False)
    answers: list[Datagram] = field(default_factory=list)
    unsent: int = 0  # how many of the next answers cannot be sent to users
    connected: Event = field(default_factory=Event)
    ends: list[SocketConn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.upstream = FakeUpstream(self.is_binary)
        self.places = Places("the proxy", UserLimits())
        rights = Rights.of(ServerConfig())
        self.proxy = UdpProxy("dns", self.upstream, rights, Meter(), self.places)  # type: ignore[arg-type]
        self.runner = gevent.spawn(self.proxy.run, self.connected.set, self.answer)

    def answer(self, datagrams: list[Datagram]) -> int:
        self.answers += datagrams
        return self.unsent

    def connect(self) -> SocketConn:
        """Give the proxy a data connection, and return the client's end."""
        data, client = tcp_pair()
        self.ends += [data, client]
        self.connected.clear()
        self.upstream.conns.put(data)
        self.connected.wait()
        return client

    def close(self) -> None:
        self.proxy.close()
        self.runner.join()
        for conn in self.ends:
            conn.close()


@pytest.fixture
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(udp_proxy, "ASK_PAUSE_S", 0.0)
    made = Running(getattr(request, "param", True))
    with deadline(TIMEOUT_S, "the test"):
        yield made
        made.close()


def test_datagrams_go_to_the_client_and_answers_to_their_users(running: Running) -> None:
    client = running.connect()
    running.proxy.receive([QUESTION])
    sent = client.recv(1000)
    assert b"a question" in sent
    client.sendall(sent)
    wait_until(lambda: running.answers, "an answer")
    assert running.answers == [QUESTION]
    assert running.proxy.meter.dropped == 0


@pytest.mark.parametrize("running", [False], indirect=True)
def test_answer_that_names_no_user_is_for_the_one_who_spoke_last(running: Running) -> None:
    client = running.connect()
    running.proxy.receive([(pack_address(("192.0.2.2", 4000)), b"first"), QUESTION])
    client.sendall(JsonFraming(with_address=False).frame([(NOBODY, b"an answer")]))
    wait_until(lambda: running.answers, "an answer")
    assert running.answers == [(USER, b"an answer")]


def test_datagrams_are_dropped_and_counted_while_there_is_no_data_connection(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = hear(monkeypatch, DatagramsDropped)
    running.proxy.receive([QUESTION, QUESTION])
    running.proxy.tell_dropped()
    running.proxy.tell_dropped()
    assert said == [DatagramsDropped(Side.SERVER, "dns", 2)]


def test_answers_that_could_not_be_sent_are_counted(running: Running) -> None:
    running.unsent = 1
    client = running.connect()
    running.proxy.receive([QUESTION])
    client.sendall(client.recv(1000))
    wait_until(lambda: running.proxy.meter.dropped == 1, "a datagram is dropped")


def test_data_connection_that_breaks_or_does_not_come_is_asked_for_again(running: Running) -> None:
    client = running.connect()
    running.upstream.conns.put(None)
    client.abort()
    again = running.connect()
    assert running.upstream.asked == 3
    running.proxy.receive([QUESTION])
    assert b"a question" in again.recv(1000)


def test_client_that_sends_no_datagrams_loses_the_data_connection(running: Running) -> None:
    running.connect().sendall(b"\xff" * 100)
    running.connect()
    assert running.ends[0].closed


def test_data_connection_ends_with_the_proxy(running: Running) -> None:
    client = running.connect()
    running.proxy.close()
    assert client.recv(1) == b""
    running.runner.join()
    assert running.upstream.asked == 1


def test_data_connection_that_comes_as_the_proxy_is_closed_is_closed_too(running: Running) -> None:
    data, client = tcp_pair()
    turn()  # the proxy asks for a data connection
    running.upstream.conns.put(data)
    running.proxy.close()
    running.runner.join()
    assert client.recv(1) == b""
    with pytest.raises(ConnClosed):
        data.recv(1)
    client.close()


@pytest.mark.parametrize("is_binary", [True, False], ids=["our client", "a Go client"])
def test_data_connection_is_closed_without_users_and_is_back_for_the_next_one(
    is_binary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_proxy, "REST_AFTER_S", 0.0)
    upstream, crew = FakeUpstream(is_binary), Crew("test")
    rights = Rights.of(ServerConfig())
    proxy = UdpProxy("dns", upstream, rights, Meter(), Places("dns", UserLimits()))  # type: ignore[arg-type]
    ingress = UdpIngress(bind_udp(LOOPBACK, 0), proxy, crew, session_s=0.05)
    conns = [tcp_pair(), tcp_pair()]
    with deadline(TIMEOUT_S, "the test"), udp_user() as user:
        ingress.start()
        for number, (data, client) in enumerate(conns):
            user.sendto(b"%d" % number, (LOOPBACK, ingress.port))
            wait_until(lambda count=number: upstream.asked > count, "a data connection is asked for")  # type: ignore[misc]
            upstream.conns.put(data)
            assert client.recv(1000)
            wait_until(lambda: ingress.users == 0, "the user is forgotten")
            ingress.tend()
            turn()
            assert data.closed == is_binary
            assert upstream.asked == number + 1
            if not is_binary:
                break
        ingress.close()
        assert crew.wait_empty(TIMEOUT_S)
    for conn in sum(conns, ()):
        conn.close()


def test_data_connection_stays_while_there_are_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_proxy, "REST_AFTER_S", 0.0)
    upstream, crew = FakeUpstream(takes_binary_datagrams=True), Crew("test")
    proxy = UdpProxy("dns", upstream, Rights.of(ServerConfig()), Meter(), Places("dns", UserLimits()))  # type: ignore[arg-type]
    ingress = UdpIngress(bind_udp(LOOPBACK, 0), proxy, crew)
    data, client = tcp_pair()
    with deadline(TIMEOUT_S, "the test"), udp_user() as user:
        ingress.start()
        upstream.conns.put(data)
        user.sendto(b"x", (LOOPBACK, ingress.port))
        assert client.recv(1000)
        ingress.tend()
        assert not data.closed
        ingress.close()
        assert crew.wait_empty(TIMEOUT_S)
    client.close()
