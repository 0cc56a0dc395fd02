"""Logins: what lets a peer in, what does not, and that nothing said once is worth anything twice."""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib import auth, logger
from gnar_lib.auth import MD5_WINDOW_S, ClientLogin, ReplayWindow, ServerLogin, Session, md5_token
from gnar_lib.client.connect import Control
from gnar_lib.config import Address, ClientConfig, Secret, ServerConfig
from gnar_lib.errors import AuthError, ConnError, ProtocolError
from gnar_lib.net import Conn, SocketConn, deadline, dial
from gnar_lib.proto import (
    Challenge,
    Exchange,
    Heartbeat,
    Login,
    Message,
    Proof,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    Welcome,
    recv,
    send,
)
from gnar_lib.proto.numbers import FEATURES
from gnar_lib.server.serve import Server

TOKEN = Secret("s3cret")
OTHER = Secret("0ther")
NONE = Secret()
LOOPBACK = "127.0.0.1"
NOW = 1_795_333_499
TIMEOUT_S = 10.0


# ---- md5, for Go peers -------------------------------------------------------------------------------------


def go_login(timestamp: int = NOW, token: Secret = TOKEN) -> Login:
    return Login(token=md5_token(token, timestamp), version="v0.0.1-", timestamp=timestamp)


def check(login: Login, token: Secret = TOKEN, policy: str = "any", now: float = NOW) -> None:
    ServerLogin(token, policy, login, clock=lambda: now).check()


def test_md5_token_is_that_of_the_recordings() -> None:
    assert md5_token(TOKEN, 1795333499) == "472711bc3858f90f4c476d4f71641830"
    assert md5_token(TOKEN, 1795333499) == hashlib.md5(b"s3cret1795333499", usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("offset_s", [0, 1, -1, MD5_WINDOW_S, -MD5_WINDOW_S])
def test_md5_login_is_taken_within_15_minutes_either_way(offset_s: int) -> None:
    check(go_login(NOW + offset_s))


@pytest.mark.parametrize("offset_s", [MD5_WINDOW_S + 1, -MD5_WINDOW_S - 1, 1 << 40, -NOW, -(1 << 50)])
def test_md5_login_past_15_minutes_either_way_is_refused(offset_s: int) -> None:
    with pytest.raises(AuthError, match=r"clocks of client and server are \d+ minutes apart"):
        check(go_login(NOW + offset_s))


def test_window_is_15_minutes() -> None:
    assert MD5_WINDOW_S == 900


@pytest.mark.parametrize(
    "login",
    [
        go_login(token=OTHER),
        go_login(token=NONE),
        replace(go_login(), token=""),
        replace(go_login(), token=md5_token(TOKEN, NOW).upper()),
        replace(go_login(), timestamp=NOW + 1),
        replace(go_login(), token="é" * 32),
    ],
)
def test_md5_login_with_another_token_or_time_is_refused(login: Login) -> None:
    with pytest.raises(AuthError, match=r"^wrong token$"):
        check(login)


def test_server_without_a_token_takes_any_go_login() -> None:
    check(go_login(token=OTHER), token=NONE)
    check(go_login(timestamp=0), token=NONE)


def test_policy_hmac_takes_no_md5_login() -> None:
    with pytest.raises(AuthError, match="takes no md5 login"):
        check(go_login(), policy="hmac")


def test_go_server_gets_the_md5_of_the_token_and_the_time() -> None:
    client = ClientLogin(TOKEN, "md5", clock=lambda: NOW + 0.9)
    assert client.go_message() == Login(token=md5_token(TOKEN, NOW), version=auth.VERSION, timestamp=NOW)
    assert client.message().token == md5_token(TOKEN, NOW)


def test_a_client_that_proves_never_sends_the_md5() -> None:
    client = ClientLogin(TOKEN, "hmac", clock=lambda: NOW)
    assert client.message().token == ""
    assert client.message().auth == "hmac"


# ---- the challenge between our own ends --------------------------------------------------------------------


def log_in(client: ClientLogin, token: Secret = TOKEN, policy: str = "any") -> tuple[Session, Session]:
    """Run the login of our own ends and return what each holds; raises what either raises."""
    server = ServerLogin(token, policy, client.message(), clock=lambda: NOW)
    server.check()
    if server.needs_proof:
        server.prove(client.answer(server.challenge()))
    theirs, welcome = server.welcome()
    return client.accept(welcome), theirs


@pytest.mark.parametrize("policy", ["any", "hmac"])
def test_both_ends_with_the_token_come_to_one_session(policy: str) -> None:
    client, server = log_in(ClientLogin(TOKEN, "hmac"), policy=policy)
    assert client == server
    assert client.is_signed("a conn_id", server.sign("a conn_id"))
    assert client.features == set(FEATURES)


def test_ends_without_a_token_come_to_one_session() -> None:
    client, server = log_in(ClientLogin(NONE, "hmac"), token=NONE)
    assert client == server


def test_our_client_with_md5_comes_to_one_session_unless_the_policy_is_hmac() -> None:
    client, server = log_in(ClientLogin(TOKEN, "md5", clock=lambda: NOW))
    assert client == server
    with pytest.raises(AuthError, match="takes no md5 login"):
        log_in(ClientLogin(TOKEN, "md5", clock=lambda: NOW), policy="hmac")


def test_wrong_token_is_refused() -> None:
    with pytest.raises(AuthError, match=r"^wrong token$"):
        log_in(ClientLogin(OTHER, "hmac"))


def test_client_without_a_token_is_refused_by_a_server_with_one() -> None:
    with pytest.raises(AuthError, match=r"^wrong token$"):
        log_in(ClientLogin(NONE, "hmac", clock=lambda: NOW))


def test_client_with_a_token_is_told_that_the_server_has_none() -> None:
    with pytest.raises(AuthError, match="this server has no token"):
        log_in(ClientLogin(TOKEN, "hmac"), token=NONE)


def test_server_that_cannot_prove_itself_is_refused() -> None:
    client = ClientLogin(TOKEN, "hmac")
    client.answer(Challenge("ab" * 32))
    with pytest.raises(AuthError, match="server could not prove"):
        client.accept(Welcome(session="x", nonce="ab" * 32, proof="00" * 32))


def test_server_that_skips_the_challenge_is_refused() -> None:
    with pytest.raises(AuthError, match="server could not prove"):
        ClientLogin(TOKEN, "hmac").accept(Welcome(session="x", nonce="ab" * 32, proof=""))


def test_server_that_sends_the_clients_own_proof_back_is_refused() -> None:
    client = ClientLogin(TOKEN, "hmac")
    proof = client.answer(Challenge("ab" * 32)).proof
    with pytest.raises(AuthError, match="server could not prove"):
        client.accept(Welcome(session="x", nonce="ab" * 32, proof=proof))


def test_refusal_is_told_with_its_reason() -> None:
    with pytest.raises(AuthError, match="refused the login: wrong token"):
        ClientLogin(TOKEN, "hmac").accept(Welcome(error="wrong token"))


def test_recorded_login_sent_again_is_refused() -> None:
    client = ClientLogin(TOKEN, "hmac")
    login = client.message()
    first = ServerLogin(TOKEN, "any", login)
    proof = client.answer(first.challenge())
    first.prove(proof)
    again = ServerLogin(TOKEN, "any", login)
    again.check()
    assert again.challenge() != first.challenge()
    with pytest.raises(AuthError, match="wrong token"):
        again.prove(proof)


def test_recorded_answers_of_a_server_are_worth_nothing_to_another_login() -> None:
    first = ClientLogin(TOKEN, "hmac")
    server = ServerLogin(TOKEN, "any", first.message())
    server.prove(first.answer(server.challenge()))
    _, welcome = server.welcome()
    second = ClientLogin(TOKEN, "hmac")
    second.answer(server.challenge())
    with pytest.raises(AuthError, match="server could not prove"):
        second.accept(welcome)


def test_signature_is_worth_nothing_in_another_session_or_for_another_conn_id() -> None:
    one, _ = log_in(ClientLogin(TOKEN, "hmac"))
    other, _ = log_in(ClientLogin(TOKEN, "hmac"))
    assert not other.is_signed("conn_id", one.sign("conn_id"))
    assert not one.is_signed("another", one.sign("conn_id"))
    assert not one.is_signed("conn_id", "")
    assert not one.is_signed("conn_id", "é")
    assert one.sign(auth.waiting_id(1)) != one.sign(auth.waiting_id(11))


def test_session_is_not_given_to_a_go_client() -> None:
    with pytest.raises(ProtocolError, match="did not ask for one"):
        ServerLogin(TOKEN, "any", go_login()).welcome()


# ---- the window of numbers that were used ------------------------------------------------------------------


@given(st.lists(st.integers(-3, 2 * ReplayWindow.SIZE) | st.integers(1, 1 << 62), max_size=60))
def test_replay_window_takes_each_number_once_and_none_that_is_too_old(numbers: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), 0
    for number in numbers:
        fresh = number >= 1 and number not in seen and number > highest - ReplayWindow.SIZE
        assert window.accept(number) is fresh
        if fresh:
            seen.add(number)
            highest = max(highest, number)


def test_replay_window_holds_no_more_than_its_size() -> None:
    window = ReplayWindow()
    for number in range(1, 3 * ReplayWindow.SIZE, 2):
        assert window.accept(number)
    assert len(window._seen) <= ReplayWindow.SIZE


# ---- secrets do not show -----------------------------------------------------------------------------------


def test_secret_is_in_no_text_made_of_it() -> None:
    config = ServerConfig(token=TOKEN)
    shown = [repr(TOKEN), str(TOKEN), f"{TOKEN}", f"{TOKEN!r:>20}", "%s %r" % (TOKEN, TOKEN)]  # noqa: UP031 (as logging does)
    shown += [repr(config), str(config), repr([TOKEN]), repr({TOKEN: TOKEN}), f"{TOKEN:}"]
    assert not [text for text in shown if "s3cret" in text]
    assert "***" in repr(TOKEN)
    assert repr(NONE) == "Secret()"


def test_session_does_not_show_its_key() -> None:
    session, _ = log_in(ClientLogin(TOKEN, "hmac"))
    assert session.key.hex() not in repr(session)
    assert repr(session.key) not in repr(session)


@pytest.mark.parametrize("write", [pickle.dumps, copy.deepcopy])
def test_secret_cannot_be_written_or_copied(write: object) -> None:
    assert callable(write)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        write(TOKEN)


def test_secret_is_in_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [])
    monkeypatch.setenv("DEBUG", "1")
    for kind in ("", "json"):
        monkeypatch.setenv("GNAR_LOG", kind)
        logger.setup(stream)
        logger.get("test").info("config %s, token %r", ServerConfig(token=TOKEN), TOKEN)
    assert stream.getvalue().count("***") == 4
    assert "s3cret" not in stream.getvalue()


def test_secrets_are_compared_by_what_they_hold() -> None:
    assert Secret("é") == Secret("é")
    assert Secret("a") != Secret("b")
    assert Secret("a").__eq__("a") is NotImplemented
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


# ---- at a real server --------------------------------------------------------------------------------------


@dataclass
class Running:
    """A server in this process, and the clients that logged in to it."""

    server: Server
    port: int

    def dial(self) -> SocketConn:
        return dial(socket.AF_INET, (LOOPBACK, self.port))

    def log_in(self, name: str) -> tuple[Control, int]:
        """Log one of our own clients in, with one proxy; returns it and the proxy's port."""
        address = Address(LOOPBACK, self.port)
        control = Control.dial(ClientConfig(server=address, proxies=(), token=TOKEN), name)
        control.log_in(ProxyReq(remote_port=0, proxy_name=name, subdomain="", proxy_type="tcp"))
        return control, answer_of(control.conn).remote_port


@contextmanager
def serving(policy: str = "any") -> Iterator[Running]:
    server = Server(ServerConfig(port=0, bind=LOOPBACK, token=TOKEN, auth=policy))
    port = server.start()
    try:
        with deadline(TIMEOUT_S, "the test"):
            yield Running(server, port)
    finally:
        server.stop_listening()
        server.close()
        assert server.shared.users.wait_empty(TIMEOUT_S)
        assert server.shared.crew.wait_empty(TIMEOUT_S)
        assert len(server.shared.conn_map) == 0


def of_kind(conn: Conn, kind: type[Message]) -> Message:
    """Return the next message that is no heartbeat."""
    while isinstance(message := recv(conn), Heartbeat):
        pass
    assert isinstance(message, kind)
    return message


def answer_of(conn: Conn) -> ProxyResp:
    answer = of_kind(conn, ProxyResp)
    assert isinstance(answer, ProxyResp)
    return answer


def exchange_of(conn: Conn) -> Exchange:
    exchange = of_kind(conn, Exchange)
    assert isinstance(exchange, Exchange)
    return exchange


def is_closed_by_peer(conn: SocketConn) -> bool:
    """Wait for the peer to end a conn without a byte."""
    try:
        return conn.recv(1) == b""
    except ConnError:
        return True
    finally:
        conn.close()


def bring(running: Running, login: Login, exchange: Exchange) -> SocketConn:
    conn = running.dial()
    send(conn, login)
    send(conn, exchange)
    return conn


def test_user_is_given_once_and_only_to_the_session_that_was_told() -> None:
    with serving() as running:
        ours, port = running.log_in("ours")
        other, _ = running.log_in("other")
        assert ours.session is not None
        assert other.session is not None
        user = dial(socket.AF_INET, (LOOPBACK, port))
        told = exchange_of(ours.conn)
        conn_id, sign = told.conn_id, ours.session.sign(told.conn_id)
        thieves = [
            bring(running, ClientLogin.data_message(other.session), replace(told, proof=proof))
            for proof in (sign, other.session.sign(conn_id), "")
        ]
        now = int(time.time())  # a Go client with the token may not have it either
        thieves += [
            bring(running, go_login(now), replace(told, proof=sign)),
            bring(running, Login(token="", timestamp=0, session="no such"), replace(told, proof=sign)),
            bring(running, ClientLogin.data_message(ours.session), replace(told, proof="00")),
        ]
        assert all(map(is_closed_by_peer, thieves))
        data = bring(running, ClientLogin.data_message(ours.session), replace(told, proof=sign))
        user.sendall(b"hello")
        assert data.recv(100) == b"hello"
        again = bring(running, ClientLogin.data_message(ours.session), replace(told, proof=sign))
        assert is_closed_by_peer(again)
        data.sendall(b"still there")
        assert user.recv(100) == b"still there"
        for conn in (user, data, ours.conn, other.conn):
            conn.close()


def test_user_of_a_go_client_is_given_to_nobody_who_has_not_logged_in() -> None:
    with serving() as running:
        other, _ = running.log_in("other")
        assert other.session is not None
        control = running.dial()
        send(control, go_login(int(time.time())))
        send(control, ProxyReq(remote_port=0, proxy_name="go", subdomain="", proxy_type="tcp"))
        assert answer_of(control).status == "success"
        user = dial(socket.AF_INET, (LOOPBACK, _port_of(running, "go")))
        told = exchange_of(control)
        thieves = [
            bring(running, Login(token="", timestamp=0, session="no such"), told),
            bring(running, ClientLogin.data_message(other.session), replace(told, proof="00")),
            bring(running, go_login(int(time.time()), OTHER), told),
        ]
        assert all(map(is_closed_by_peer, thieves))
        data = bring(running, go_login(int(time.time())), told)
        data.sendall(b"hello")
        assert user.recv(100) == b"hello"
        for conn in (user, data, control, other.conn):
            conn.close()


def _port_of(running: Running, name: str) -> int:
    """Return the port of a proxy at the server."""
    ingresses = [each for control in running.server.control_ingress.clients for each in control.ingresses]
    (port,) = [each.port for each in ingresses if each.proxy.name == name]
    return port


@pytest.mark.parametrize(
    "first",
    [
        ProxyReq(remote_port=0, proxy_name="thief", subdomain="", proxy_type="tcp"),
        ProxyReq(remote_port=0, proxy_name="thief", subdomain="", proxy_type="udp"),
        ProxyCancel(proxy_name="ours", remote_port=1),
    ],
    ids=["tcp", "udp", "cancel"],
)
@pytest.mark.parametrize("session_id", ["no such", None], ids=["unknown", "known"])
def test_login_that_names_a_session_is_good_for_a_data_connection_alone(
    session_id: str | None, first: ProxyReq | ProxyCancel
) -> None:
    with serving("hmac") as running:
        ours, _ = running.log_in("ours")
        assert ours.session is not None
        thief = running.dial()
        send(thief, Login(token="", timestamp=0, session=session_id or ours.session.id, client_id="ours"))
        send(thief, first)
        assert is_closed_by_peer(thief)
        assert len(running.server.shared.ports) == 1
        ours.conn.close()


def test_waiting_connection_is_taken_once_and_only_with_the_sessions_signature() -> None:
    with serving() as running:
        ours, port = running.log_in("ours")
        other, _ = running.log_in("other")
        assert ours.session is not None
        assert other.session is not None
        good = ClientLogin.waiting_message(ours.session, 1)
        first = running.dial()
        send(first, good)
        refused = []
        for login in (
            good,
            replace(good, waiting=2),
            replace(ClientLogin.waiting_message(other.session, 3), session=ours.session.id),
            replace(good, waiting=-1),
        ):
            refused.append(running.dial())
            send(refused[-1], login)
        assert all(map(is_closed_by_peer, refused))
        user = dial(socket.AF_INET, (LOOPBACK, port))
        user.sendall(b"hello")
        assert exchange_of(first).proxy_name == "ours"
        assert first.recv(100) == b"hello"
        for conn in (user, first, ours.conn, other.conn):
            conn.close()


def test_login_recorded_on_the_wire_and_sent_again_opens_nothing() -> None:
    with serving() as running:
        client = ClientLogin(TOKEN, "hmac")
        login = client.message()
        conn = running.dial()
        send(conn, login)
        challenge = of_kind(conn, Challenge)
        assert isinstance(challenge, Challenge)
        proof = client.answer(challenge)
        send(conn, proof)
        assert isinstance(of_kind(conn, Welcome), Welcome)
        replay = running.dial()
        send(replay, login)
        send(replay, proof)
        of_kind(replay, Challenge)
        refusal = of_kind(replay, Welcome)
        assert isinstance(refusal, Welcome)
        assert (refusal.error, refusal.session) == ("wrong token", "")
        assert is_closed_by_peer(replay)
        conn.close()


@pytest.mark.parametrize("sent", [Heartbeat(), Proof("é"), Proof("")])
def test_login_goes_on_as_it_has_to_or_not_at_all(sent: Message) -> None:
    with serving() as running:
        conn = running.dial()
        send(conn, ClientLogin(TOKEN, "hmac").message())
        of_kind(conn, Challenge)
        send(conn, sent)
        if isinstance(sent, Proof):
            of_kind(conn, Welcome)
        assert is_closed_by_peer(conn)


def test_go_server_that_hangs_up_is_met_with_a_hint() -> None:
    listener = socket.create_server((LOOPBACK, 0))
    address = Address(LOOPBACK, listener.getsockname()[1])
    hints = {}
    for token, kind in ((TOKEN, "hmac"), (TOKEN, "md5"), (NONE, "hmac")):
        control = Control.dial(ClientConfig(server=address, proxies=(), token=token, auth=kind), "")
        hints[bool(token), kind] = control.hint
        control.conn.close()
    listener.close()
    assert hints == {
        (True, "hmac"): "if it is a Go server, use --auth md5",
        (True, "md5"): "wrong token?",
        (False, "hmac"): "does it want a token?",
    }
