"""One user at the client: the events, and what happens when the local service does not answer."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from gnar_lib import events
from gnar_lib.client import tunnel
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import ConnError, DialError, ProtocolError
from gnar_lib.events import (
    ServiceReached,
    ServiceUnreachable,
    Side,
    UserCame,
    UserConnected,
    UserLeft,
)
from gnar_lib.net import Listener, deadline, listen
from gnar_lib.pio.meter import Meter
from tests.helpers.conns import accept, tcp_pair

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
    monkeypatch.setattr(events, "_listeners", {})
    got: list[events.Event] = []
    for kind in (UserCame, UserConnected, UserLeft, ServiceUnreachable, ServiceReached):
        events.subscribe(kind, got.append)
    return got


def proxy(service: Listener, kind: str = "tcp") -> ClientProxy:
    return ClientProxy(ProxyConfig(proxy_name="blog", local_port=service.port, proxy_type=kind), Meter())


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


def test_user_of_tcp_for_a_udp_proxy_is_refused(service: Listener, said: list[events.Event]) -> None:
    server_end, conn = tcp_pair()
    with pytest.raises(ProtocolError, match="which is UDP"):
        tunnel.serve(proxy(service, "udp"), conn, USER)
    with pytest.raises(ConnError, match="reset"):
        server_end.recv(1)
    server_end.close()
    assert said == []
