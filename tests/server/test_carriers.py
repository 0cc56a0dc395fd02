"""A client with several sessions: who may open one, which user takes which; who may move a stream."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gnar_lib import net
from gnar_lib.auth import ClientLogin, Session
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig, Secret
from gnar_lib.net import Conn, SocketConn
from gnar_lib.proto import Exchange, Login, ProxyReq, expect, send
from gnar_lib.server.upstream import carriers
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream
from tests.helpers.logins import NONE, TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, is_closed_by_peer, serving


@contextmanager
def client_of(running: Running) -> Iterator[tuple[ControlConn, Session, int]]:
    """Log in as a client that nobody has told whether to multiplex; yield its session and its port, too."""
    control = ControlConn.dial(ClientConfig(Address(LOOPBACK, running.port), (), TOKEN), "blog")
    control.log_in(ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp"))
    assert control.moves
    assert control.session is not None
    try:
        yield control, control.session, answer_of(control.conn).remote_port
    finally:
        control.close()


def carrier(control: ControlConn, number: int) -> Mux:
    mux = Mux(control.open_carrier(number), is_client=True)
    mux.moves = True
    return mux


def user_of(port: int) -> SocketConn:
    return net.dial(socket.AF_INET, (LOOPBACK, port))


def accept(mux: Mux) -> Stream:
    """Return the stream of the next user of a session."""
    stream = mux.accept()
    expect(stream, Exchange)
    return stream


def numbers_of(running: Running) -> list[int]:
    """Return the numbers of the further sessions that the server has of a client."""
    (at_server,) = running.server.control_ingress.clients
    assert at_server._carriers is not None
    return sorted(at_server._carriers._further)


def test_users_take_turns_among_the_sessions_and_return_to_the_first_when_the_others_end() -> None:
    with serving() as running, client_of(running) as (control, _, port):
        assert control.mux is not None
        further = [carrier(control, number) for number in (1, 2)]
        wait_until(lambda: numbers_of(running) == [1, 2], "the server has three sessions")
        users, streams = [], []
        for _ in range(2):
            users += [user_of(port) for _ in range(3)]
            streams += [accept(mux) for mux in (control.mux, *further)]
        for mux in further:
            mux.close()
        wait_until(lambda: numbers_of(running) == [], "the server has one session")
        users.append(user_of(port))
        streams.append(accept(control.mux))
        users[-1].sendall(b"hello")
        assert streams[-1].recv(5) == b"hello"
        for user in users:
            user.close()
        for stream in streams:
            stream.close()


def test_sessions_without_users_are_closed_after_a_while_by_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carriers, "IDLE_S", 0.0)
    with serving() as running, client_of(running) as (control, _, port):
        mux = carrier(control, 1)
        mux.wait_end()
        assert control.mux is not None
        user = user_of(port)
        accept(control.mux).close()
        user.close()


def test_session_that_still_has_a_user_is_not_closed_and_takes_further_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as running, client_of(running) as (control, _, port):
        assert control.mux is not None
        muxes = [control.mux, *(carrier(control, number) for number in (1, 2))]
        wait_until(lambda: numbers_of(running) == [1, 2], "the server has three sessions")
        users = [user_of(port) for _ in muxes]
        streams = [accept(mux) for mux in muxes]
        streams[2].abort()
        monkeypatch.setattr(carriers, "IDLE_S", 0.0)
        muxes[2].wait_end()
        assert numbers_of(running) == [1]
        users += [user_of(port) for _ in range(2)]
        streams += [accept(mux) for mux in muxes[:2]]
        for user in users:
            user.close()
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("what", ["no proof", "a proof of another number", "a number again", "too many"])
def test_session_is_refused_that_does_not_prove_to_be_new_and_the_clients(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as running, client_of(running) as (control, session, _):
        login = ClientLogin.carrier_message(session, 1)
        others: list[Mux] = []
        match what:
            case "no proof":
                login = replace(login, proof="")
            case "a proof of another number":
                login = replace(login, carrier=2)
            case "a number again":
                others.append(carrier(control, 1))
            case _:
                monkeypatch.setattr(carriers, "MAX_FURTHER", 1)
                others.append(carrier(control, 7))
        wait_until(lambda: len(numbers_of(running)) == len(others), "the others are there")
        assert is_closed_by_peer(said(running, login))
        for mux in others:
            assert not mux.closed
            mux.close()


def said(running: Running, login: Login) -> SocketConn:
    conn = running.dial()
    send(conn, login)
    return conn


@pytest.mark.parametrize(
    "name",
    ["0:2", "0:1", "0:99", "7:2", "0", "0:", ":2", "-1:2", "0:2:3", "²:2", "0:" + "9" * 1000],
    ids=repr,
)
def test_conn_beside_a_stream_is_refused_without_a_proof_or_without_such_a_stream(name: str) -> None:
    with serving() as running, client_of(running) as (control, session, port):
        assert control.mux is not None
        user = user_of(port)
        stream = accept(control.mux)
        assert stream.id == 2
        login = ClientLogin.beside_message(session, name)
        if name == "0:2":
            login = replace(login, proof=session.sign("beside 0:4"))
        assert is_closed_by_peer(said(running, login))
        user.sendall(b"hello")
        assert stream.recv(5) == b"hello"
        user.close()
        stream.close()


def test_second_conn_beside_a_stream_is_refused_such_as_a_login_that_somebody_repeats() -> None:
    with serving() as running, client_of(running) as (control, _, port):
        assert control.mux is not None
        user = user_of(port)
        stream = accept(control.mux)
        first = control.open_beside("0:2")
        assert stream.attach(first, is_ready=False)
        wait_until(lambda: stream.beside is not None and stream.beside.is_ready, "the server has taken it")
        assert is_closed_by_peer(control.open_beside("0:2"))
        assert stream.move()
        stream.sendall(b"over the conn beside")
        assert user.recv(100) == b"over the conn beside"
        user.close()
        stream.close()


def test_conn_beside_a_stream_is_refused_while_there_is_no_descriptor_for_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as running, client_of(running) as (control, _, port):
        assert control.mux is not None
        user = user_of(port)
        stream = accept(control.mux)
        monkeypatch.setattr(net.descriptors, "_limit", lambda: 4)
        monkeypatch.setattr(net.descriptors, "_known_until_s", 0.0)
        assert is_closed_by_peer(control.open_beside("0:2"))
        stream.sendall(b"hello")
        assert user.recv(5) == b"hello"
        user.close()
        stream.close()


def test_streams_of_a_client_that_takes_one_connection_alone_do_not_move() -> None:
    with serving() as running:
        control, port = running.log_in("blog", multiplex=True)
        assert control.mux is not None
        assert not control.moves
        user = user_of(port)
        stream = accept(control.mux)
        assert control.session is not None
        assert is_closed_by_peer(said(running, ClientLogin.beside_message(control.session, "0:2")))
        user.close()
        stream.close()
        control.close()


@pytest.mark.parametrize(("token", "auth"), [(NONE, "hmac"), (TOKEN, "md5")], ids=["no token", "md5"])
def test_client_that_has_asked_before_it_saw_whose_server_that_is_asks_again_on_a_stream(
    token: Secret, auth: str
) -> None:
    with serving(token=token) as running:
        config = ClientConfig(Address(LOOPBACK, running.port), (), token, auth=auth)
        control = ControlConn.dial(config, "blog")
        control.log_in(ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp"))
        conn: Conn = control.conn
        assert isinstance(conn, Stream)
        port = answer_of(conn).remote_port
        user = user_of(port)
        assert control.mux is not None
        accept(control.mux).sendall(b"hello")
        assert user.recv(5) == b"hello"
        user.close()
        control.close()
