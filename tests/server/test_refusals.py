"""What the server refuses a client who has logged in: kinds of proxies, and messages out of place."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from gnar_lib.errors import ConnError
from gnar_lib.proto import ProxyReq, Welcome, send
from tests.helpers.servers import LOOPBACK, answer_of, serving

if TYPE_CHECKING:
    from gnar_lib.net import Conn

UNEXPECTED = Welcome()  # servers send it, and no client does


def request(name: str, kind: str = "tcp", subdomain: str = "") -> ProxyReq:
    return ProxyReq(remote_port=0, proxy_name=name, subdomain=subdomain, proxy_type=kind)


def assert_refused(conn: Conn, message: ProxyReq, said: str) -> None:
    """Ask for a proxy that the server refuses for good, and says why."""
    send(conn, message)
    answer = answer_of(conn)
    assert (answer.status, answer.error, answer.retry) == ("failed", said, False)


def test_kinds_and_subdomains_that_the_server_does_not_do_are_refused_and_the_client_stays() -> None:
    with serving() as running:
        ours, _ = running.log_in("ours")
        assert_refused(ours.conn, request("x", "quic"), "proxy type 'quic' is not supported by this server")
        assert_refused(
            ours.conn,
            request("x", subdomain="www"),
            "this server has no domain: leave the name out, or ask for a port",
        )
        send(ours.conn, request("x"))
        assert answer_of(ours.conn).status == "success"
        ours.conn.close()


def test_more_proxies_than_a_client_may_have_are_refused() -> None:
    with serving(max_proxies=2) as running:
        ours, _ = running.log_in("ours")
        send(ours.conn, request("second"))
        assert answer_of(ours.conn).status == "success"
        assert_refused(ours.conn, request("third"), "one client may have 2 proxies")
        ours.conn.close()


@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_a_client_is_told_whether_a_port_that_is_taken_is_its_own(multiplex: bool) -> None:
    with serving() as running, socket.create_server((LOOPBACK, 0)) as listener:
        foreign = int(listener.getsockname()[1])
        ours, port = running.log_in("ours", multiplex=multiplex)
        again, _ = running.log_in("again", multiplex=multiplex)
        for taken, own in ((port, True), (foreign, False)):
            send(again.conn, ProxyReq(taken, "x", "", "tcp"))
            answer = answer_of(again.conn)
            assert (answer.error, answer.retry, answer.own) == (f"port {taken} is taken", True, own)
        ours.close()
        again.close()


def test_a_message_that_no_client_sends_ends_that_client_alone() -> None:
    with serving() as running:
        ours, _ = running.log_in("ours")
        other, _ = running.log_in("other")
        send(other.conn, UNEXPECTED)
        read_to_end(other.conn)
        send(ours.conn, request("x"))
        assert answer_of(ours.conn).status == "success"
        ours.conn.close()


def read_to_end(conn: Conn) -> None:
    """Read what the peer has still sent until the peer ends the conn, and close the conn."""
    with suppress(ConnError):
        while conn.recv(4096):
            pass
    conn.close()
