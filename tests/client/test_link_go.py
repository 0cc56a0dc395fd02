"""A link to a Go server that is played by hand: one proxy, no names, a connection for each cancel."""

from __future__ import annotations

import time

import gevent
import pytest

from gnar_lib import events
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.config import ProxyConfig
from gnar_lib.events import CloseReason, ConnectFailed, ProxyClosed, ProxyOpened
from gnar_lib.net import SocketConn, listen
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import Exchange, ProxyCancel, ProxyReq, ProxyResp, recv, send
from tests.helpers.conns import accept
from tests.helpers.loop import wait_until
from tests.peers.link_server import LOOPBACK, TIMEOUT_S, Server, proxy

OPENED = ProxyResp(domain="", status="success")
FAILED = ProxyResp(domain="", status="failed")


def log_in(server: Server) -> SocketConn:
    """Let a control connection in as a Go server does: by its answer to the first request."""
    conn = server.accept()
    assert isinstance(recv(conn), ProxyReq)
    send(conn, OPENED)
    return conn


def failure(said: list[events.Event]) -> str:
    """Wait until the link says why it lost the server, and return the reason."""
    wait_until(lambda: any(isinstance(event, ConnectFailed) for event in said), "connecting has failed")
    (lost,) = [event for event in said if isinstance(event, ConnectFailed)]
    return lost.reason


def test_first_proxy_is_opened_and_the_others_are_left_over(server: Server, said: list[events.Event]) -> None:
    first = proxy("first", 9001)
    link = server.start(first, proxy("second", 9002), proxy("third", 9003))
    log_in(server)
    wait_until(lambda: first.state is ProxyState.OPEN, "the first proxy is open")
    assert server.left_over == ["second", "third"]
    assert not link.takes_more
    (event,) = said
    assert isinstance(event, ProxyOpened)
    assert (event.name, event.port) == ("first", 9001)


def test_answer_that_a_server_repeats_is_told_once(server: Server, said: list[events.Event]) -> None:
    server.start(proxy("first", 9001))
    conn = log_in(server)
    send(conn, OPENED)
    send(conn, FAILED)
    assert failure(said) == "the server closed port 9001"
    assert sum(isinstance(event, ProxyOpened) for event in said) == 1


@pytest.mark.parametrize("was_open", [False, True], ids=["refused", "closed"])
def test_refusal_without_a_reason_is_explained(
    was_open: bool,
    server: Server,
    said: list[events.Event],
) -> None:
    server.start(proxy("blog", 9001))
    conn = server.accept()
    if was_open:
        send(conn, OPENED)
    send(conn, FAILED)
    assert failure(said).startswith(f"the server {'closed' if was_open else 'refused'} port 9001")


def test_user_who_is_announced_without_a_name_is_of_the_only_proxy(server: Server) -> None:
    service = listen(LOOPBACK, 0)
    config = ProxyConfig(proxy_name="blog", local_port=service.port, remote_port=9001)
    server.start(ClientProxy(config, Meter()))
    conn = log_in(server)
    send(conn, Exchange(conn_id="an id", proxy_type="tcp"))
    data = server.accept()
    assert recv(data) == Exchange(conn_id="an id", proxy_type="tcp")
    data.sendall(b"a question")
    local = accept(service)
    assert local.recv(100) == b"a question"
    for each in (local, data, service):
        each.close()


def test_proxy_is_cancelled_on_a_connection_of_its_own(server: Server, said: list[events.Event]) -> None:
    cancelled = proxy("blog", 9001)
    link = server.start(cancelled)
    conn = log_in(server)
    wait_until(lambda: cancelled.state is ProxyState.OPEN, "the cancelled proxy is open again")
    link.cancel_all()
    cancel = server.accept()
    assert recv(cancel) == ProxyCancel("blog", 9001)
    send(conn, FAILED)  # as a Go server does when it closes the listener
    link.end()
    assert server.shared.crew.wait_empty(TIMEOUT_S)
    assert [type(event) for event in said] == [ProxyOpened, ProxyClosed]
    assert [event.reason for event in said if isinstance(event, ProxyClosed)] == [CloseReason.STOPPING]


def test_server_that_does_not_answer_holds_up_neither_the_end_nor_a_reload(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gnar_lib.client.connect.ControlConn.cancel_apart", lambda *_: gevent.sleep(TIMEOUT_S)
    )
    cancelled = proxy("blog", 9001)
    link = server.start(cancelled)
    log_in(server)
    wait_until(lambda: cancelled.state is ProxyState.OPEN, "the cancelled proxy is open again")
    began_s = time.monotonic()
    link.cancel_all()
    link.wait_told(0.05)
    link.wait_cancelled(0.05)
    assert time.monotonic() - began_s < TIMEOUT_S / 2
    wait_until(lambda: not len(link._cancels), "nobody waits any more")


def test_cancelling_does_not_need_the_server(server: Server) -> None:
    cancelled = proxy("blog", 9001)
    link = server.start(cancelled)
    log_in(server)
    wait_until(lambda: cancelled.state is ProxyState.OPEN, "the cancelled proxy is open again")
    server.listener.close()
    link.cancel_all()
    assert not link.takes_more
