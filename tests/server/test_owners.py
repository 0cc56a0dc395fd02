"""What one login has is for logins of the same credential alone: ports, names, control connections."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig, Secret
from gnar_lib.errors import ConnError, MuxError
from gnar_lib.events import LoginRefused
from gnar_lib.net import SocketConn, descriptors
from gnar_lib.proto import Exchange, ProxyCancel, ProxyReq, ProxyResp, Welcome, expect, send
from gnar_lib.yamux import Session as Mux
from tests.helpers.events import hear
from tests.helpers.logins import OTHER, TOKEN, go_login
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, is_closed_by_peer, serving

REQUEST = ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[LoginRefused]:
    return hear(monkeypatch, LoginRefused)


def log_in(running: Running, client_id: str, port: int, kind: str, token: Secret) -> ProxyResp:
    """Log in as a client of ours in some way, ask for a port, and return the answer; then leave."""
    config = ClientConfig(
        server=Address(LOOPBACK, running.port), proxies=(), token=token, auth=kind, multiplex=False
    )
    control = ControlConn.dial(config, client_id)
    control.log_in(replace(REQUEST, remote_port=port))
    answer = answer_of(control.conn)
    control.close()
    return answer


@pytest.mark.parametrize(
    ("kind", "token", "takes_over"),
    [("hmac", TOKEN, True), ("md5", TOKEN, False), ("hmac", OTHER, False)],
    ids=["same", "overheard md5", "another token"],
)
def test_client_id_takes_over_with_the_same_credential_alone(
    kind: str, token: Secret, takes_over: bool
) -> None:
    with serving() as running:
        ours, port = running.log_in("blog")
        server = running.server
        server.reload(replace(server.shared.config, token=token))  # another token: who has logged in stays
        answer = log_in(running, "blog", port, kind, token)
        assert (answer.status == "success") == takes_over
        if not takes_over:
            assert answer.error == f"port {port} is taken"
            wait_until(lambda: len(server.control_ingress.clients) == 1, "the other one has gone")
            assert len(server.shared.ports) == 1
        ours.close()


def go_client(running: Running, token: Secret = TOKEN) -> SocketConn:
    conn = running.dial()
    send(conn, go_login(int(time.time()), token))
    return conn


def test_go_client_of_another_token_cannot_cancel() -> None:
    with serving() as running:
        ours = go_client(running)
        send(ours, REQUEST)
        answer_of(ours)
        (control,) = running.server.control_ingress.clients
        cancel = ProxyCancel(proxy_name="blog", remote_port=control.ingresses[0].port)
        before = running.server.shared.config
        running.server.reload(replace(before, token=OTHER))
        other = go_client(running, OTHER)
        send(other, cancel)
        assert is_closed_by_peer(other)
        assert len(control.ingresses) == 1
        running.server.reload(before)
        same = go_client(running)
        send(same, cancel)
        assert is_closed_by_peer(same)
        assert len(control.ingresses) == 0
        ours.close()


@pytest.mark.parametrize("is_go", [False, True], ids=["own client", "Go client"])
def test_session_has_one_control_connection(is_go: bool, refused: list[LoginRefused]) -> None:
    with serving() as running:
        if is_go:
            mux = Mux(go_client(running), is_client=True)
            first = mux.open()
            send(first, REQUEST)
            answer_of(first)
        else:
            ours, _ = running.log_in("ours", multiplex=True)
            assert ours.mux is not None
            mux = ours.mux
        second = mux.open()
        send(second, replace(REQUEST, proxy_name="second"))
        with pytest.raises((ConnError, MuxError)):
            expect(second, Welcome)
        assert [each.reason for each in refused] == ["a second control connection of one session"]
        assert len(running.server.shared.ports) == 1
        second.close()
        mux.close()


def test_server_has_so_many_clients_and_no_more(
    monkeypatch: pytest.MonkeyPatch, refused: list[LoginRefused]
) -> None:
    monkeypatch.setattr("gnar_lib.server.ingress.control.MAX_CLIENTS", 2)
    with serving() as running:
        controls = [running.log_in(name)[0] for name in ("one", "two")]
        late = go_client(running)
        send(late, REQUEST)
        assert is_closed_by_peer(late)
        assert [each.reason for each in refused] == ["there are 2 clients already"]
        for control in controls:
            control.close()


def test_clients_leave_descriptors_for_users(
    monkeypatch: pytest.MonkeyPatch, refused: list[LoginRefused]
) -> None:
    monkeypatch.setattr(type(descriptors), "for_clients", property(lambda _: 1))
    with serving() as running:
        ours, _ = running.log_in("ours")
        late = go_client(running)
        send(late, REQUEST)
        assert is_closed_by_peer(late)
        assert [each.reason for each in refused] == ["there are 1 clients already"]
        ours.close()


def test_session_without_a_control_connection_is_still_logging_in() -> None:
    with serving() as running:
        mux = Mux(go_client(running), is_client=True)
        stream = mux.open()
        send(stream, Exchange(conn_id="of nobody", proxy_type="tcp"))
        assert stream.recv(1) == b""
        assert len(running.server.control_ingress.in_progress) == 1  # which ends it after a while
        control = mux.open()
        send(control, REQUEST)
        answer_of(control)
        assert len(running.server.control_ingress.in_progress) == 0
        for conn in (stream, control, mux):
            conn.close()
