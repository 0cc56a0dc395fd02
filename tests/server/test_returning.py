"""A client that comes back before the server has noticed that it was away: proxies move, users stay."""

from __future__ import annotations

import socket

import gevent
import pytest

from gnar_lib.errors import ConnClosed
from gnar_lib.net import SocketConn, dial
from gnar_lib.net.address import Sockaddr
from gnar_lib.net.conn import SocketConn as Conn
from gnar_lib.proto import Exchange, ProxyReq, expect, send
from gnar_lib.server import control as control_module
from gnar_lib.yamux import Stream
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, of_kind, serving


def user_of(port: int) -> SocketConn:
    return dial(socket.AF_INET, (LOOPBACK, port))


def ask(conn: Conn, name: str, port: int) -> int:
    """Ask for a proxy, and return its port; 0 if it is refused."""
    send(conn, ProxyReq(remote_port=port, proxy_name=name, subdomain="", proxy_type="tcp"))
    return answer_of(conn).remote_port


def listener_of(running: Running, port: int) -> Sockaddr:
    """Return what tells one listening socket of the server from another on the same port."""
    (found,) = [each for control in running.server.control_ingress.clients for each in control.ingresses]
    assert found.port == port
    return str(id(found))


def test_port_is_listened_on_all_the_time_and_users_who_wait_are_announced_again() -> None:
    with serving() as running:
        before, port = running.log_in("blog")
        listener = listener_of(running, port)
        user = user_of(port)
        announced = exchange_of(before.conn)
        after, same_port = running.log_in("blog", port)
        assert (same_port, listener_of(running, port)) == (port, listener)
        again = exchange_of(after.conn)
        assert again.user == announced.user
        data = after.open_data(again)
        user.sendall(b"hello")
        assert data.recv(5) == b"hello"
        with pytest.raises(ConnClosed):
            of_kind(before.conn, Exchange)
        for conn in (user, data, before.conn, after.conn):
            conn.close()


def test_users_of_a_multiplexed_session_go_on_and_the_session_ends_with_the_last() -> None:
    with serving() as running:
        before, port = running.log_in("blog", multiplex=True)
        assert before.mux is not None
        user = user_of(port)
        data = before.mux.accept()
        expect(data, Exchange)
        after, _ = running.log_in("blog", port, multiplex=True)
        assert after.mux is not None
        with pytest.raises(ConnClosed):
            of_kind(before.conn, Exchange)
        before.conn.close()
        user.sendall(b"still")
        assert data.recv(5) == b"still"
        data.sendall(b"there")
        assert user.recv(5) == b"there"
        late = user_of(port)
        stream: Stream = after.mux.accept()
        expect(stream, Exchange)
        for conn in (user, data):
            conn.close()
        before.mux.wait_end()
        late.sendall(b"new")
        assert stream.recv(3) == b"new"
        late.close()
        after.close()


def test_users_of_every_proxy_wait_until_the_client_has_asked_for_it_again() -> None:
    with serving() as running:
        before, port = running.log_in("blog")
        other = ask(before.conn, "other", 0)  # type: ignore[arg-type]
        users = [user_of(other)]  # who waits when the client comes back
        exchange_of(before.conn)
        after, _ = running.log_in("blog", port)
        users.append(user_of(other))  # who comes before the client has asked for the second proxy
        assert ask(after.conn, "other", other) == other  # type: ignore[arg-type]
        announced = [exchange_of(after.conn) for _ in users]
        assert {each.proxy_name for each in announced} == {"other"}
        datas = [after.open_data(each) for each in announced]
        for user in users:
            user.sendall(b"hello")
        assert [data.recv(5) for data in datas] == [b"hello", b"hello"]
        for conn in (*users, *datas, before.conn, after.conn):
            conn.close()


def test_proxy_for_which_the_client_does_not_ask_again_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "INHERITED_S", 0.02)
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    with serving() as running:
        before, port = running.log_in("blog")
        other = ask(before.conn, "other", 0)  # type: ignore[arg-type]
        after, _ = running.log_in("blog", port)
        assert len(running.server.shared.ports) == 2
        wait_until(lambda: len(running.server.shared.ports) == 1, "the other proxy is closed")
        with pytest.raises(Exception, match="refused"):
            user_of(other)
        user_of(port).close()
        before.close()
        after.close()


def test_port_that_the_client_wants_for_another_proxy_is_free_for_it() -> None:
    with serving() as running:
        before, _ = running.log_in("blog")
        port = ask(before.conn, "old", 0)  # type: ignore[arg-type]
        after, _ = running.log_in("blog")
        assert ask(after.conn, "new", port) == port  # type: ignore[arg-type]
        (control,) = running.server.control_ingress.clients
        assert {each.proxy.name for each in control.ingresses} == {"blog", "new"}
        before.close()
        after.close()


def test_client_that_comes_back_with_one_proxy_after_the_other_gets_them_all() -> None:
    with serving() as running:
        before, port = running.log_in("blog")
        others = {f"proxy {number}": ask(before.conn, f"proxy {number}", 0) for number in range(20)}  # type: ignore[arg-type]
        after, _ = running.log_in("blog", port)
        for name, other in others.items():
            assert ask(after.conn, name, other) == other  # type: ignore[arg-type]
        gevent.sleep(0)
        assert len(running.server.shared.ports) == 21
        before.close()
        after.close()
    assert len(running.server.shared.ports) == 0
