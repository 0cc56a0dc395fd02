"""What the local service is told of users (PROXY protocol): who gets a header, where, and what it says."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib.client import tunnel
from gnar_lib.client.inspector.edit import Edited
from gnar_lib.client.inspector.replay import Replayer
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.trial import Trial
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.events import UserLeft
from gnar_lib.inspect import Inspector, State
from gnar_lib.net import Datagram, Listener, SocketConn, bind_udp, deadline, listen
from gnar_lib.net.datagram import MAX_DATAGRAM_BYTES, pack_address
from gnar_lib.net.datagram_conn import DatagramConn
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import ProxyResp
from gnar_lib.proto.datagram import NOBODY
from gnar_lib.proxy.sessions import Sessions
from gnar_lib.transport.proxy_protocol import (
    AUTHORITY,
    MAX_BYTES,
    PROXY_NAME,
    V1,
    V2,
    Endpoint,
    Header,
    encode,
    parse,
    receive,
)
from tests.helpers.conns import accept, tcp_pair
from tests.helpers.events import hear
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
USER, SERVER = ("192.0.2.1", 4000), ("198.51.100.7", 8910)
NAME = ((PROXY_NAME, "blög".encode()),)
VERSIONS = pytest.mark.parametrize("version", [V1, V2])


@pytest.fixture
def service() -> Iterator[Listener]:
    listener = listen(LOOPBACK, 0)
    with deadline(TIMEOUT_S, "the test"):
        yield listener
    listener.close()


def proxy(port: int, version: str, kind: str = "tcp", **answer: object) -> ClientProxy:
    """Return a proxy that a server has opened at port 9000, or as it says in its answer."""
    config = ProxyConfig("blög", port, proxy_type=kind, local_host=LOOPBACK, proxy_protocol=version)
    made = ClientProxy(config, Meter())
    made.opened(ProxyResp("", "success", **{"remote_port": 9000, **answer}), SERVER)  # type: ignore[arg-type]
    return made


def header_for(made: ClientProxy, service: Listener, user: str | None) -> Header:
    """Return the header with which the local service is dialled for a user; nothing else has to come."""
    conn = made.dial(user)
    local = accept(service)
    header = receive(local)
    conn.close()
    assert local.recv(1) == b""
    local.close()
    return header


# ---- users of TCP ------------------------------------------------------------------------------------------


@VERSIONS
def test_service_is_told_of_the_user_before_any_byte_and_the_bytes_are_nobodys(
    version: str, service: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = hear(monkeypatch, UserLeft)
    made = proxy(service.port, version)
    server_end, conn = tcp_pair()
    serving = gevent.spawn(tunnel.serve, made, conn, "192.0.2.1:4000")
    local = accept(service)
    header = receive(local)
    assert (header.source, header.destination) == (USER, ("198.51.100.7", 9000))
    assert header.tlvs == (NAME if version == V2 else ())
    local.sendall(b"220 hello")
    assert server_end.recv(100) == b"220 hello"
    server_end.sendall(b"a question")
    assert local.recv(100) == b"a question"
    local.close()
    server_end.close()
    serving.join()
    assert [(event.up, event.down) for event in left] == [(10, 9)]
    assert (made.meter.totals().up, made.meter.totals().down) == (10, 9)


@pytest.mark.parametrize(
    ("answer", "destination", "host"),
    [
        ({"remote_port": 9000}, ("198.51.100.7", 9000), b""),
        (
            {"url": "https://blog.example.com", "domain": "blog.example.com"},
            ("198.51.100.7", 443),
            b"blog.example.com",
        ),
        (
            {"url": "http://blog.example.com:8080/a", "domain": "blog.example.com"},
            ("198.51.100.7", 8080),
            b"blog.example.com",
        ),
        (
            {"url": "http://a.example.com", "domain": "a.example.com", "remote_port": 9000},
            ("198.51.100.7", 9000),
            b"a.example.com",
        ),
        ({"url": "https://*.dev.example.com", "domain": "*.dev.example.com"}, ("198.51.100.7", 443), b""),
        ({"url": "https://[", "domain": "x" * 1024}, ("198.51.100.7", 0), b""),  # a server may say anything
        ({"url": "https://a:99999", "domain": "\ud800"}, ("198.51.100.7", 0), b"?"),
    ],
)
def test_service_is_told_where_the_user_has_come_to(
    answer: dict[str, object], destination: Endpoint, host: bytes, service: Listener
) -> None:
    domain = answer.pop("domain", "")
    made = proxy(service.port, V2)
    made.remote_port = 0
    made.opened(ProxyResp(domain=domain, status="success", **answer), SERVER)  # type: ignore[arg-type]
    header = header_for(made, service, "192.0.2.1:4000")
    assert (header.source, header.destination) == (USER, destination)
    assert dict(header.tlvs) == {**({AUTHORITY: host} if host else {}), **dict(NAME)}


@pytest.mark.parametrize("server", [("gnar.example.com", 443), ("2001:db8::1", 8910, 0, 0), None])
def test_server_whose_address_is_of_no_use_is_told_as_none(server: object, service: Listener) -> None:
    made = proxy(service.port, V1)
    made.opened(ProxyResp("", "success", remote_port=9000), server)  # type: ignore[arg-type]
    assert header_for(made, service, "192.0.2.1:4000").destination == ("0.0.0.0", 9000)


@VERSIONS
def test_user_whom_a_go_server_does_not_tell_of_is_unknown_and_that_is_said_once(
    version: str, service: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    made = proxy(service.port, version)
    with caplog.at_level(logging.WARNING, "gnar"):
        for _ in range(3):
            header = header_for(made, service, "")
            assert (header.source, header.is_local) == (None, version == V2)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "does not tell where users come from" in line
    assert line.endswith("LOCAL" if version == V2 else "UNKNOWN")


@pytest.mark.parametrize("kind", ["tcp", "http", "https", "udp"])
def test_server_is_asked_for_connections_of_one_address_where_requests_could_share_them(kind: str) -> None:
    assert proxy(1, V2, kind).request().tells_address == (kind != "udp")
    assert not proxy(1, "", kind).request().tells_address


def test_check_of_the_settings_sends_no_header_to_its_own_service() -> None:
    config = ProxyConfig("blog", 1, proxy_protocol=V2)
    trial = Trial(ClientConfig(Address(LOOPBACK, 1), (config,)))
    asked = trial.port(config).proxy.config
    trial.close()
    assert asked.proxy_protocol == ""


# ---- beside the inspector ----------------------------------------------------------------------------------

REQUEST = b"GET /path HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@VERSIONS
def test_inspector_sees_requests_and_no_header_and_what_it_sends_again_has_one(
    version: str, service: Listener
) -> None:
    made = proxy(service.port, version)
    made.inspector = inspector = Inspector(1000)
    server_end, conn = tcp_pair()
    serving = gevent.spawn(tunnel.serve, made, conn, "192.0.2.1:4000")
    local = accept(service)
    receive(local)
    server_end.sendall(REQUEST)
    assert local.recv(1000) == REQUEST
    local.sendall(ANSWER)
    assert server_end.recv(1000) == ANSWER
    for each in (local, server_end):
        each.close()
    serving.join()
    (seen,) = inspector.store
    assert (seen.target, seen.user) == (b"/path", "192.0.2.1:4000")
    again = Replayer(inspector, {"blög": made}.get)
    again.send(seen, Edited("GET", b"/again", ((b"Host", b"a"),), b""))
    local = accept(service)
    assert receive(local) == Header(None, None, 16 if version == V2 else 15, is_local=version == V2)
    assert local.recv(1000).startswith(b"GET /again HTTP/1.1\r\n")
    local.sendall(ANSWER)
    wait_until(lambda: all(each.state is State.DONE for each in inspector.store), "the answer is there")
    local.close()
    again.crew.kill()
    turn()
    inspector.close()


# ---- users of UDP ------------------------------------------------------------------------------------------


class Udp:
    """The sessions of a UDP proxy with a service that takes note of what comes."""

    def __init__(self) -> None:
        self.service = bind_udp(LOOPBACK, 0)
        self.port = self.service.port
        self.asked: list[Datagram] = []
        self.service.serve(self.asked.extend)
        self.proxy = proxy(self.port, V2, "udp")
        assert self.proxy.udp is not None
        self.proxy.udp._target.look_up()
        self.sessions: Sessions = self.proxy.udp._sessions

    def send(self, payload: bytes, user: bytes = pack_address(USER)) -> bytes:
        """Send a datagram of a user, and return what comes to the service."""
        self.sessions.send([(user, payload)])
        wait_until(lambda: self.asked, "a datagram is there")
        return self.asked.pop()[1]

    def conn(self) -> DatagramConn:
        """Return the socket of the user."""
        found = self.sessions._conns.get(pack_address(USER))
        assert found is not None
        return found

    def close(self) -> None:
        self.proxy.end()
        self.service.close()


@pytest.fixture
def udp() -> Iterator[Udp]:
    made = Udp()
    with deadline(TIMEOUT_S, "the test"):
        yield made
    made.close()


def test_header_stands_in_front_of_the_first_datagram_of_each_session_alone(udp: Udp) -> None:
    for user in (USER, ("2001:db8::1", 5000)):
        first = udp.send(b"one", pack_address(user))
        header = parse(first)
        assert header is not None
        assert (header.source, header.is_datagram, header.tlvs) == (user, True, NAME)
        destination = "198.51.100.7" if ":" not in user[0] else "::"
        assert header.destination == (destination, 9000)
        assert first[header.size :] == b"one"
        assert udp.send(b"two", pack_address(user)) == b"two"
    assert udp.send(b"") == b""
    udp.sessions.close()
    assert udp.send(b"").startswith(b"\r\n\r\n\0")


def test_header_comes_again_once_the_service_has_refused(udp: Udp) -> None:
    udp.send(b"one")
    udp.service.close()
    udp.sessions.send([(pack_address(USER), b"lost")])
    wait_until(lambda: udp.conn().is_refused, "the refusal is there")
    udp.service = bind_udp(LOOPBACK, udp.port)
    udp.service.serve(udp.asked.extend)
    assert udp.send(b"two").startswith(b"\r\n\r\n\0")
    assert udp.send(b"three") == b"three"


def test_datagram_that_is_too_large_with_its_header_is_dropped_and_the_next_one_has_it(udp: Udp) -> None:
    most = MAX_DATAGRAM_BYTES - 29  # IPv4 and UDP take 28 bytes (RFC 768, RFC 791)
    udp.sessions.send([(pack_address(USER), bytes(most))])
    assert (udp.proxy.meter.dropped, len(udp.sessions)) == (1, 0)
    assert udp.send(b"two").startswith(b"\r\n\r\n\0")
    assert udp.send(bytes(most)) == bytes(most)
    assert udp.proxy.meter.dropped == 1


def test_user_of_udp_whom_nobody_knows_is_local(udp: Udp) -> None:
    assert udp.send(b"one", NOBODY) == encode(V2, None, None) + b"one"


def test_longest_name_fits_into_a_header() -> None:
    config = ProxyConfig("\U0001f600" * 100, 1, proxy_protocol=V2)
    made = ClientProxy(config, Meter())
    made.opened(ProxyResp("x" * 255, "success"), SERVER)
    assert made._headers is not None
    assert len(made._headers.of_user("[::1]:1")) < MAX_BYTES


def test_service_that_hangs_up_at_once_ends_its_user_and_no_other(service: Listener) -> None:
    made = proxy(service.port, V1)
    server_end, conn = tcp_pair()
    serving = gevent.spawn(tunnel.serve, made, conn, "192.0.2.1:4000")
    accept(service).abort()
    serving.join()
    assert isinstance(conn, SocketConn)
    assert conn.closed
    server_end.close()
    assert header_for(made, service, "192.0.2.1:4000").source == USER
