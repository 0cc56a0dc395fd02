"""A server that leaves is replaced at once, and a client that leaves waits until no user is on the way."""

from __future__ import annotations

import gevent
import pytest

from gnar_lib.client.link import Link
from gnar_lib.net import SocketConn
from gnar_lib.proto import Exchange, Heartbeat, ProxyCancel, ProxyReq, Welcome, recv, send
from gnar_lib.proto.numbers import FEATURE_LEAVE, FEATURE_WAIT
from tests.helpers.loop import turn, wait_until
from tests.peers.link_server import Server, heard, opened, proxy

LEAVING = Heartbeat(leaving=True)


def log_in(server: Server) -> SocketConn:
    """Let a control connection in that knows of leaving, and open its first proxy."""
    conn = server.accept()
    request = recv(conn)
    assert isinstance(request, ProxyReq)
    send(conn, Welcome(session="a session", features=(FEATURE_WAIT, FEATURE_LEAVE)))
    send(conn, opened(request.proxy_name, 9001))
    return conn


def test_client_connects_anew_without_a_pause_when_the_server_leaves(server: Server) -> None:
    blog = proxy("blog", 9001)
    link = server.start(blog)
    first = log_in(server)
    send(first, LEAVING)
    second = log_in(server)  # within the deadline of the test, and with no pause that `Backoff` would make
    assert link._backoff._next_s == type(link._backoff)()._next_s
    with pytest.raises(Exception, match="closed"):
        heard(first)
    send(second, Heartbeat())
    assert server.logins[0].client_id == server.logins[1].client_id


def link_with_a_data_connection(server: Server) -> tuple[Link, SocketConn, SocketConn]:
    """Return a link, its control connection, and a data connection that waits for a user."""
    link = server.start(proxy("blog", 9001))
    conn = log_in(server)
    send(conn, Heartbeat(waiting=1))
    waiting = server.accept()
    wait_until(lambda: link.waiting, "a data connection waits")
    return link, conn, waiting


def leaving(link: Link) -> gevent.Greenlet[..., None]:
    """Have the link leave, and wait until no user is on the way."""
    link.cancel_all(may_return=True)
    return gevent.spawn(link.wait_cancelled, 10.0)


def heard_leaving(conn: SocketConn) -> bool:
    while isinstance(message := recv(conn), Heartbeat):
        if message.leaving:
            return True
    return False


def test_client_that_leaves_waits_for_the_word_that_no_more_users_come(server: Server) -> None:
    link, conn, waiting = link_with_a_data_connection(server)
    ended = leaving(link)
    assert heard_leaving(conn)
    send(conn, LEAVING)
    turn()
    assert not ended.ready()  # since the data connection may get a user
    send(waiting, Exchange(conn_id="-", proxy_type="tcp", proxy_name="blog"))
    ended.get()
    assert link.waiting == 0


@pytest.mark.parametrize("ends", ["data connection", "control connection"])
def test_client_waits_no_longer_than_the_connections_last(ends: str, server: Server) -> None:
    link, conn, waiting = link_with_a_data_connection(server)
    ended = leaving(link)
    assert heard_leaving(conn)
    if ends == "data connection":
        send(conn, LEAVING)
    else:
        conn.close()
    waiting.close()
    ended.get()


def test_wait_for_the_word_has_an_end(server: Server) -> None:
    link = server.start(proxy("blog", 9001))
    log_in(server)
    wait_until(lambda: link._connection is not None, "the link is connected")
    link.cancel_all(may_return=True)
    link.wait_cancelled(0.01)


@pytest.mark.parametrize("case", ["for good", "an earlier server"])
def test_ports_are_cancelled_if_the_client_ends_for_good_or_the_server_keeps_none(
    case: str, server: Server
) -> None:
    blog = proxy("blog", 9001)
    link = server.start(blog)
    conn = log_in(server) if case == "for good" else server.log_in()
    if case != "for good":
        send(conn, opened("blog", 9001))
    wait_until(lambda: blog.state.name == "OPEN", "the proxy is open")
    link.cancel_all(may_return=case != "for good")
    link.wait_cancelled(10.0)
    assert heard(conn) == ProxyCancel("blog", 9001)
