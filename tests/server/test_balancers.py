"""Users whom load balancers bring: the address that a header tells holds everywhere, and from nobody else."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import gevent
import pytest

from gnar_lib import events
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import ConnError, ProtocolError
from gnar_lib.events import UserCame, UserRefused
from gnar_lib.net import SocketConn, dial, format_address
from gnar_lib.proto import Exchange, ProxyReq
from gnar_lib.server import balancers
from gnar_lib.server.balancers import Balancers
from gnar_lib.transport.proxy_protocol import V1, V2, encode
from tests.helpers.conns import V4, tcp_pair
from tests.helpers.events import hear
from tests.helpers.logins import TOKEN
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, is_closed_by_peer, serving
from tests.helpers.sites import read_until, scripted, site_before
from tests.helpers.web import responses

THIS_MACHINE, ELSEWHERE = ("127.0.0.0/8",), ("10.0.0.0/8", "2001:db8::/32")
USER, FRONT = ("192.0.2.1", 4321), ("198.51.100.7", 443)
HEADER, LINE = encode(V2, USER, FRONT), encode(V1, USER, FRONT)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, UserCame, UserRefused)


class Balanced:
    """A server, a client whose part a test plays, and those who come to the client's port."""

    def __init__(self, running: Running, **wanted: object) -> None:
        self.running = running
        config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False, tls="off")
        self.client = ControlConn.dial(config, "x")
        self.client.log_in(ProxyReq(0, "x", "", "tcp", **wanted))  # type: ignore[arg-type]
        self.port = answer_of(self.client.conn).remote_port
        self._conns: list[SocketConn] = []

    def user(self, data: bytes) -> SocketConn:
        """Return a connection to the port, on which `data` have been sent."""
        conn = dial(V4, (LOOPBACK, self.port))
        self._conns.append(conn)
        conn.sendall(data)
        return conn

    def serve(self) -> tuple[Exchange, SocketConn]:
        """Return what the client is told of the next user, and the data connection."""
        asked = exchange_of(self.client.conn)
        data = self.client.open_data(asked)
        assert isinstance(data, SocketConn)
        self._conns.append(data)
        return asked, data

    def close(self) -> None:
        for conn in self._conns:
            conn.close()
        self.client.close()


@contextmanager
def balanced(networks: tuple[str, ...] = THIS_MACHINE, **wanted: object) -> Iterator[Balanced]:
    with serving(accept_proxy_protocol=networks) as running:
        made = Balanced(running, **wanted)
        yield made
        made.close()


def is_reset(conn: SocketConn) -> bool:
    """Wait until the peer resets a conn."""
    with pytest.raises(ConnError, match="reset"):
        conn.recv(1)
    return True


# ---- who has come ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [HEADER, LINE], ids=["v2", "v1"])
def test_user_behind_a_header_has_its_address_and_loses_no_byte(
    header: bytes, said: list[events.Event]
) -> None:
    with balanced() as here:
        user = here.user(header + b"a question")
        asked, data = here.serve()
        assert asked.user == format_address(USER)
        assert data.recv(100) == b"a question"
        data.sendall(b"an answer")
        assert user.recv(100) == b"an answer"
    assert [event.user for event in said if isinstance(event, UserCame)] == [USER]


def test_service_that_speaks_first_does_so_behind_a_header() -> None:
    with balanced() as here:
        user = here.user(HEADER)
        _, data = here.serve()
        data.sendall(b"220 hello")
        assert user.recv(100) == b"220 hello"


@pytest.mark.parametrize("header", [encode(V1, None, None), encode(V2, None, None)], ids=["UNKNOWN", "LOCAL"])
def test_load_balancer_that_speaks_for_itself_is_the_user(header: bytes) -> None:
    with balanced() as here:
        user = here.user(header + b"alive?")
        asked, data = here.serve()
        assert asked.user == format_address(user.sock.getsockname())
        assert data.recv(100) == b"alive?"


@pytest.mark.parametrize("networks", [ELSEWHERE, ()], ids=["others", "nobody"])
def test_header_of_somebody_else_is_passed_on_and_tells_nothing(
    networks: tuple[str, ...], said: list[events.Event]
) -> None:
    with balanced(networks, deny_from=("192.0.2.0/24",)) as here:
        user = here.user(HEADER)
        asked, data = here.serve()
        assert asked.user == format_address(user.sock.getsockname())
        assert data.recv(100) == HEADER
    assert [type(event) for event in said] == [UserCame]


def test_rules_and_limits_are_about_the_user_and_not_about_the_load_balancer(
    said: list[events.Event],
) -> None:
    with balanced(deny_from=("203.0.113.0/24",), max_users_per_address=1) as here:
        assert is_reset(here.user(encode(V2, ("203.0.113.9", 1), FRONT)))
        here.user(HEADER)
        here.serve()
        assert is_reset(here.user(encode(V2, (USER[0], 4322), FRONT)))
        here.user(encode(V2, ("192.0.2.2", 1), FRONT))
        assert here.serve()[0].user == "192.0.2.2:1"
    refused = [(event.user, event.reason) for event in said if isinstance(event, UserRefused)]
    assert refused == [
        (("203.0.113.9", 1), "the address is one of deny-from"),
        ((USER[0], 4322), "proxy 'x' has 1 users of that address already (max-users-per-address)"),
    ]


def test_networks_are_others_after_a_reload() -> None:
    with balanced(ELSEWHERE) as here:
        server = here.running.server
        server.reload(replace(server.shared.config, accept_proxy_protocol=THIS_MACHINE))
        here.user(HEADER)
        assert here.serve()[0].user == format_address(USER)
        server.reload(replace(server.shared.config, accept_proxy_protocol=()))
        here.user(HEADER)
        assert here.serve()[1].recv(100) == HEADER


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        (("10.1.2.3", 1), True),
        (("::ffff:10.1.2.3", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), True),
        (("11.1.2.3", 1), False),
        (("::1", 1, 0, 0), False),
        ("/tmp/x.sock", False),  # noqa: S108  (only a text)
    ],
)
def test_networks_hold_however_an_address_is_written(address: object, is_one: bool) -> None:
    assert Balancers(ELSEWHERE).includes(address) == is_one  # type: ignore[arg-type]
    assert not Balancers(()).includes(address)  # type: ignore[arg-type]


def test_header_that_nobody_expects_is_refused_where_one_may_come() -> None:
    near, far = tcp_pair()
    near.sendall(HEADER)
    with pytest.raises(ProtocolError, match="not in accept-proxy-protocol"):
        Balancers(ELSEWHERE).receive(far)
    Balancers(THIS_MACHINE).receive(far)
    assert far.getpeername() == USER
    near.close()
    far.close()


# ---- who is turned away ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"PROXY TCP4 1.2.3.4\r\n", HEADER[:12] + b"\x22" + HEADER[13:]],
    ids=["none", "half", "unknown command"],
)
def test_load_balancer_without_a_proper_header_is_reset_with_one_line(
    data: bytes, said: list[events.Event], caplog: pytest.LogCaptureFixture
) -> None:
    with balanced() as here, caplog.at_level(logging.WARNING):
        user = here.user(data)
        assert is_reset(user)
        assert is_reset(here.user(data))
        (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert line.startswith("refused a connection of the load balancer 127.0.0.1:")
        here.user(HEADER)
        assert here.serve()[0].user == format_address(USER)
    assert len(said) == 1


def test_health_check_that_says_nothing_is_no_warning(
    said: list[events.Event], caplog: pytest.LogCaptureFixture
) -> None:
    with balanced() as here, caplog.at_level(logging.WARNING):
        for data in (b"", HEADER[:5]):
            conn = here.user(data)
            conn.shutdown(socket.SHUT_WR)
            assert is_closed_by_peer(conn)
        assert [each for each in caplog.records if each.levelno == logging.WARNING] == []
    assert said == []


def test_silent_connections_are_ended_in_time_and_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancers, "HEADER_S", 0.2)
    with balanced() as here:
        silent = [here.user(HEADER[:10]) for _ in range(20)]
        here.user(HEADER + b"hello")
        assert here.serve()[1].recv(5) == b"hello"  # while the others are waited for
        assert len(here.running.server.shared.users) == len(silent) + 1
        assert all(is_reset(conn) for conn in silent)


def test_there_are_not_more_silent_connections_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancers, "MAX_WAITING", 3)
    with balanced() as here:
        users = here.running.server.shared.users
        silent = [here.user(b"PROXY ") for _ in range(5)]
        wait_until(lambda: len(users) == 3, "three are waited for")
        assert all(is_reset(conn) for conn in silent[:2])
        here.user(HEADER)
        assert here.serve()[0].user == format_address(USER)
        assert is_reset(silent[2])


def test_end_of_the_server_closes_who_is_waited_for() -> None:
    near, far = tcp_pair()
    waiting = gevent.spawn(Balancers(THIS_MACHINE).serve, far, SocketConn.close)
    turn()
    waiting.kill()
    assert far.closed
    with suppress(ConnError):
        assert near.recv(1) == b""
    near.close()


# ---- the ports of names ------------------------------------------------------------------------------------


def answer(conn: SocketConn) -> None:
    head = read_until(conn, b"\r\n\r\n")
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(head) + head)


def test_service_behind_a_name_is_told_the_address_of_the_header() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n"
    with scripted(answer) as service, site_before(service.port, accept_proxy_protocol=THIS_MACHINE) as site:
        (got,) = responses(site.ask(LINE + request))
        assert b"\r\nX-Forwarded-For: 192.0.2.1\r\n" in got.body
        assert site.names.proxies["a"].told == [USER]
        assert b"[reset]" in site.ask(request)


def test_name_refuses_by_the_address_of_the_header() -> None:
    with site_before(1, accept_proxy_protocol=THIS_MACHINE) as site:
        site.names.proxies["a"].rules.refused.add(USER[0])
        (got,) = responses(site.ask(HEADER + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", end=True))
        assert got.status == 403
