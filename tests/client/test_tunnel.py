"""One user at the client: the events, and what happens when the local service does not answer."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from gnar_lib import events
from gnar_lib.client import tunnel
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import (
    ConnError,
    DialError,
    ExhaustedError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from gnar_lib.events import (
    ServiceReached,
    ServiceUnreachable,
    Side,
    UserCame,
    UserConnected,
    UserLeft,
)
from gnar_lib.net import Conn, Listener, deadline, listen
from gnar_lib.net.target import Target
from gnar_lib.pio.meter import Meter
from tests.helpers.conns import accept, listening_on_v6_alone, tcp_pair
from tests.helpers.events import hear

TIMEOUT_S = 10.0
USER = "192.0.2.1:4000"


@pytest.fixture
def service() -> Iterator[Listener]:
    listener = listen("127.0.0.1", 0)
    with deadline(TIMEOUT_S, "the test"):
        yield listener
    listener.close()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, UserCame, UserConnected, UserLeft, ServiceUnreachable, ServiceReached)


def proxy(service: Listener, kind: str = "tcp", host: str = "") -> ClientProxy:
    config = ProxyConfig(proxy_name="blog", local_port=service.port, proxy_type=kind, local_host=host)
    return ClientProxy(config, Meter())


def test_each_step_of_a_user_is_said(service: Listener, said: list[events.Event]) -> None:
    server_end, conn = tcp_pair()
    serving = gevent.spawn(tunnel.serve, proxy(service), conn, USER)
    local = accept(service)
    server_end.sendall(b"a question")
    assert local.recv(100) == b"a question"
    local.sendall(b"an answer!!")
    local.close()
    assert server_end.recv(100) == b"an answer!!"
    server_end.close()
    serving.join()
    came, connected, left = said
    assert came == UserCame(Side.CLIENT, "blog", USER)
    assert isinstance(connected, UserConnected)
    assert isinstance(left, UserLeft)
    assert (left.user, left.up, left.down, left.reason) == (USER, 10, 11, "")
    assert conn.closed


def test_user_is_reset_when_the_service_is_away_and_its_return_is_said_once(
    service: Listener, said: list[events.Event]
) -> None:
    served = proxy(service)
    port = service.port
    service.close()
    for _ in range(2):
        server_end, conn = tcp_pair()
        with pytest.raises(DialError):
            tunnel.serve(served, conn, USER)
        with pytest.raises(ConnError, match="reset"):
            server_end.recv(1)
        server_end.close()
    kinds = [type(event) for event in said]
    assert kinds == [UserCame, ServiceUnreachable, UserLeft] * 2
    assert [event.again for event in said if isinstance(event, ServiceUnreachable)] == [False, True]
    again = listen("127.0.0.1", port)
    said.clear()
    for _ in range(2):
        server_end, conn = tcp_pair()
        serving = gevent.spawn(tunnel.serve, served, conn, USER)
        accept(again).close()
        server_end.close()
        serving.join()
    again.close()
    assert [type(event) for event in said] == [
        *(UserCame, ServiceReached, UserConnected, UserLeft),
        *(UserCame, UserConnected, UserLeft),
    ]


@pytest.fixture
def v6_service() -> Iterator[Listener]:
    with listening_on_v6_alone() as listener, deadline(TIMEOUT_S, "the test"):
        yield listener


def test_service_on_ipv6_loopback_alone_is_found_if_no_host_is_named(v6_service: Listener) -> None:
    for _ in range(2):
        conn = proxy(v6_service).dial()
        accept(v6_service).close()
        conn.close()
    with pytest.raises(RefusedError):
        proxy(v6_service, host="127.0.0.1").dial()


@pytest.mark.parametrize(
    ("host", "error", "says"),
    [
        ("", RefusedError("refused"), "refused; is it running? If it is on another host, or in another "),
        ("db", RefusedError("refused"), "refused; is it running, and does it listen on that port"),
        ("db", UnreachableError("no route"), "no route; is local-host right, and does no firewall"),
        ("db", ExhaustedError("too many"), "too many; this machine has no descriptor (ulimit -n)"),
        ("db", DialError("cannot resolve 'db'"), "cannot resolve 'db'; is local-host right"),
    ],
)
def test_what_is_said_of_a_service_that_does_not_answer_names_what_to_try(
    host: str,
    error: DialError,
    says: str,
    said: list[events.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Target) -> Conn:
        raise error

    monkeypatch.setattr(Target, "dial", fail)
    with pytest.raises(type(error)):
        ClientProxy(ProxyConfig("blog", 3000, local_host=host), Meter()).dial()
    (event,) = said
    assert isinstance(event, ServiceUnreachable)
    assert event.reason.startswith(says)


def test_user_of_tcp_for_a_udp_proxy_is_refused(service: Listener, said: list[events.Event]) -> None:
    server_end, conn = tcp_pair()
    with pytest.raises(ProtocolError, match="which is UDP"):
        tunnel.serve(proxy(service, "udp"), conn, USER)
    with pytest.raises(ConnError, match="reset"):
        server_end.recv(1)
    server_end.close()
    assert said == []
