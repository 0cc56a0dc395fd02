"""A link whose server the test plays by hand: what the link asks for and cancels, and what answers do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import gevent
import gevent.event
import pytest

from gnar_lib import events
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.connection import Connection
from gnar_lib.client.link import Callbacks, Link
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.client.way import Way
from gnar_lib.config import Address, ProxyConfig
from gnar_lib.errors import AuthError, ConnError, DialError, ProxyLoginError
from gnar_lib.events import ConnectFailed, ProxyOpened
from gnar_lib.net import SocketConn, listen
from gnar_lib.net.target import Target
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import (
    Exchange,
    Heartbeat,
    Message,
    ProxyCancel,
    ProxyReq,
    Welcome,
    numbers,
    recv,
    send,
    to_frame,
)
from gnar_lib.proto.numbers import FEATURE_MUX, FEATURE_USERS, FEATURE_WAIT
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream
from gnar_lib.yamux import session as session_module
from tests.helpers.conns import V4, accept, blackhole
from tests.helpers.loop import turn, wait_until
from tests.peers.link_server import LOOPBACK, TIMEOUT_S, Server, hear_ticks, heard, opened, proxy, refused

# ---- answers -----------------------------------------------------------------------------------------------


def test_one_control_connection_asks_for_all_proxies(server: Server) -> None:
    first, second = proxy("first", 9001), proxy("second")
    server.start(first, second)
    conn = server.log_in()
    assert heard(conn) == ProxyReq(0, "second", "", "tcp")
    send(conn, opened("second", 9002))
    send(conn, opened("first", 9001))
    wait_until(lambda: first.state is second.state is ProxyState.OPEN, "both proxies are open")
    assert (first.remote_port, second.remote_port) == (9001, 9002)


@pytest.mark.parametrize("port", [9001, 0], ids=["asked for port 9001", "server chose port 9001"])
def test_answer_to_a_removed_proxy_is_not_taken_for_one_of_the_same_name_that_came_later(
    port: int, server: Server, said: list[events.Event]
) -> None:
    old, new = proxy("blog", port), proxy("blog", 9002)
    link = server.start(old)
    conn = server.log_in()
    wait_until(lambda: link.takes_more and link._connection is not None, "the link takes more proxies")
    link.remove(old)
    link.add(new)
    asked: list[Message] = []
    if port:
        asked.append(heard(conn))
    assert heard(conn) == ProxyReq(9002, "blog", "", "tcp")
    send(conn, opened("blog", 9001))
    send(conn, opened("blog", 9002))
    if not port:
        asked.append(heard(conn))
    assert asked == [ProxyCancel("blog", 9001)]
    wait_until(lambda: new.state is ProxyState.OPEN, "the new proxy is open")
    hear_ticks(conn)
    assert new.remote_port == 9002
    assert [event.port for event in said if isinstance(event, ProxyOpened)] == [9002]


def test_proxy_that_is_removed_during_the_login_is_cancelled_and_the_new_one_asked_for(
    server: Server,
) -> None:
    old, new = proxy("blog", 9001), proxy("blog", 9002)
    link = server.start(old)
    conn = server.accept()
    assert heard(conn) == ProxyReq(9001, "blog", "", "tcp")
    link.remove(old)
    link.add(new)
    send(conn, Welcome(session="a session"))
    assert [heard(conn), heard(conn)] == [ProxyCancel("blog", 9001), ProxyReq(9002, "blog", "", "tcp")]
    send(conn, opened("blog", 9001))
    send(conn, refused("blog", retry=False))
    wait_until(lambda: new.state is ProxyState.REFUSED, "the new proxy is refused")


def test_proxy_whose_port_comes_as_the_link_is_ending_is_cancelled(server: Server) -> None:
    cancelled = proxy("blog")
    link = server.start(cancelled)
    conn = server.log_in()
    wait_until(lambda: link._connection is not None, "the link is connected")
    link.cancel_all()
    send(conn, opened("blog", 9001))
    assert heard(conn) == ProxyCancel("blog", 9001)
    assert cancelled.state is ProxyState.PENDING


def test_answer_about_a_proxy_that_nobody_has_asked_for_is_ignored(server: Server) -> None:
    server.start(proxy("blog"))
    conn = server.log_in()
    send(conn, opened("other", 9001))
    hear_ticks(conn)


def test_answers_that_a_server_repeats_are_told_once(server: Server, said: list[events.Event]) -> None:
    link = server.start(proxy("blog"), proxy("shop"))
    conn = server.log_in()
    assert heard(conn) == ProxyReq(0, "shop", "", "tcp")
    send(conn, opened("blog", 9001))
    for port in (9001, 9001, 9002, 9001):
        send(conn, opened("blog", port))
    send(conn, opened("shop", 9003))
    wait_until(lambda: link.proxies["shop"].state is ProxyState.OPEN, "the last answer")
    told = [(each.name, each.port) for each in said if isinstance(each, ProxyOpened)]
    assert told == [("blog", 9001), ("shop", 9003)]
    assert link.proxies["blog"].remote_port == 9001


def test_refused_proxy_is_given_up_and_the_link_ends_without_the_last(server: Server) -> None:
    link = server.start(proxy("first", 9001), proxy("second", 9002))
    conn = server.log_in()
    assert heard(conn) == ProxyReq(9002, "second", "", "tcp")
    send(conn, refused("first", retry=False))
    hear_ticks(conn)
    assert server.refusals == ["first"]
    assert link.takes_more
    send(conn, refused("second", retry=False))
    assert server.shared.crew.wait_empty(TIMEOUT_S)
    assert server.refusals == ["first", "second"]
    assert not link.takes_more


def test_port_that_was_taken_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    wanted = proxy("blog", 9001)
    server.start(wanted)
    conn = server.log_in()
    send(conn, refused("blog", retry=True))
    assert heard(conn) == ProxyReq(9001, "blog", "", "tcp")
    send(conn, opened("blog", 9001))
    wait_until(lambda: wanted.state is ProxyState.OPEN, "the wanted proxy is open")


# ---- coming back -------------------------------------------------------------------------------------------


def test_port_that_the_server_chose_is_asked_for_when_the_link_comes_back(
    server: Server, monkeypatch: pytest.MonkeyPatch, said: list[events.Event]
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    kept = proxy("blog")
    server.start(kept)
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    wait_until(lambda: kept.state is ProxyState.OPEN, "the kept proxy is open")
    conn.close()
    again = server.accept()
    assert heard(again) == ProxyReq(9001, "blog", "", "tcp")
    assert kept.state is ProxyState.PENDING
    (lost,) = [event for event in said if isinstance(event, ConnectFailed)]
    assert lost.was_connected


@pytest.mark.parametrize(("lasted_s", "pauses_s"), [(0.0, [0.05, 0.1, 0.2]), (60.0, [0.05] * 3)])
def test_pause_grows_unless_the_connection_has_lasted_whatever_became_of_the_ports(
    lasted_s: float,
    pauses_s: list[float],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    said: list[events.Event],
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.1)
    monkeypatch.setattr(Connection, "age_s", lasted_s)
    server.start(proxy("blog", 9001))
    for _ in pauses_s:
        conn = server.log_in()
        send(conn, refused("blog", retry=True))
        conn.close()
    wait_until(
        lambda: sum(isinstance(event, ConnectFailed) for event in said) == len(pauses_s), "the link is lost"
    )
    assert [event.retry_s for event in said if isinstance(event, ConnectFailed)] == pauses_s


def test_links_of_one_client_do_not_take_over_from_each_other(server: Server) -> None:
    server.start(proxy("first"))
    server.start(proxy("second"))
    for _ in range(2):
        server.accept()
    first, second = server.logins
    assert first.client_id != second.client_id


def test_link_that_comes_back_says_who_it_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    server.start(proxy("blog"))
    ids = []
    for _ in range(2):
        server.log_in().close()
        ids.append(server.logins[-1].client_id)
    assert ids[0] == ids[1] != ""


# ---- data connections that wait ----------------------------------------------------------------------------


def test_closed_data_connections_are_opened_again_while_users_can_come_and_not_otherwise(
    server: Server,
) -> None:
    old, new = proxy("blog", 9001), proxy("blog", 9002)
    link = server.start(old, proxy("dns", 9001, "udp"))
    conn = server.log_in()
    heard(conn)
    send(conn, opened("dns", 9001))
    send(conn, opened("blog", 9001))
    send(conn, Heartbeat(waiting=1))
    for _ in range(2):
        server.accept().close()
    waiting = server.accept()
    link.remove(old)
    link.add(new)
    assert [heard(conn), heard(conn)] == [ProxyCancel("blog", 9001), ProxyReq(9002, "blog", "", "tcp")]
    waiting.close()
    accepted = gevent.spawn(server.accept)
    hear_ticks(conn, 10)
    assert not accepted.ready()
    send(conn, opened("blog", 9002))
    accepted.get()


# ---- users whom the link cannot serve ----------------------------------------------------------------------


def test_user_on_a_waiting_data_connection_for_a_proxy_that_is_gone_is_reset(server: Server) -> None:
    server.start(proxy("blog", 9001))
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    send(conn, Heartbeat(waiting=1))
    data = server.accept()
    send(data, Exchange(conn_id="-", proxy_type="tcp", proxy_name="gone"))
    with pytest.raises(ConnError, match="reset"):
        data.recv(1)
    hear_ticks(conn)


def test_data_connection_for_datagrams_is_opened_for_a_udp_proxy_alone(server: Server) -> None:
    server.start(proxy("blog", 9001), proxy("dns", 9001, "udp"))
    conn = server.log_in()
    heard(conn)
    for name in ("blog", "gone", "dns"):
        send(conn, Exchange(conn_id=name, proxy_type="udp", proxy_name=name))
    data = server.accept()
    exchange = recv(data)
    assert isinstance(exchange, Exchange)
    assert exchange.conn_id == "dns"
    hear_ticks(conn)


def test_data_connections_for_datagrams_are_opened_one_after_the_other(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open, tried = gevent.event.Event(), []

    def open_data(_self: ControlConn, asked: Exchange) -> SocketConn:
        tried.append(asked.conn_id)
        may_open.wait()
        raise DialError("not now")

    monkeypatch.setattr(ControlConn, "open_data", open_data)
    server.start(proxy("dns", 9001, "udp"))
    conn = server.log_in()
    for number in range(100):
        send(conn, Exchange(conn_id=str(number), proxy_type="udp", proxy_name="dns"))
    hear_ticks(conn)
    assert tried == ["0"]
    may_open.set()
    wait_until(lambda: len(tried) > 1, "another is opened")
    hear_ticks(conn)
    assert tried == ["0", "99"]


def test_stream_without_a_first_message_is_reset(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.shared.config = replace(server.shared.config, multiplex=True)
    server.start(proxy("blog", 9001))
    conn = server.accept()
    send(conn, Welcome(session="a session", features=(FEATURE_MUX,)))
    mux = Mux(conn, is_client=False)
    assert isinstance(recv(mux.accept()), ProxyReq)
    monkeypatch.setattr(session_module, "SETTLE_S", 0.05)
    monkeypatch.setattr(mux, "_settle", lambda: None)  # this end is patient
    stream = mux.open()
    stream.sendall(to_frame(Exchange(conn_id="-", proxy_type="tcp"))[:5])
    with pytest.raises(ConnError, match="reset"):
        stream.recv(1)
    mux.close()


# ---- a server that fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [SocketConn.close, SocketConn.abort], ids=["closes", "resets"])
def test_server_that_hangs_up_at_the_first_login_is_tried_again_with_a_hint(
    end: Callable[[SocketConn], None],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    said: list[events.Event],
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    blog = proxy("blog", 9001)
    server.start(blog)
    for _ in range(2):
        end(server.accept())
    hint = "is it up yet? Does it want a token, in GNAR_TOKEN?"
    send(server.log_in(), opened("blog", 9001))
    wait_until(lambda: blog.state is ProxyState.OPEN, "the proxy is open")
    assert (
        said[:2]
        == [ConnectFailed(f"the server hung up at the login ({hint})", was_connected=False, retry_s=0.0)] * 2
    )


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH])
def test_network_that_fails_at_the_first_login_is_not_taken_for_the_server(
    number: int, server: Server, monkeypatch: pytest.MonkeyPatch, said: list[events.Event]
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    log_in = ControlConn.log_in

    def fail_once(control: ControlConn, _: ProxyReq) -> None:
        monkeypatch.setattr(ControlConn, "log_in", log_in)
        assert isinstance(control._conn, SocketConn)
        raise control._conn._failed(OSError(number, os.strerror(number)))

    monkeypatch.setattr(ControlConn, "log_in", fail_once)
    server.start(proxy("blog"))
    accept(server.listener).close()
    server.log_in()
    failed = said[0]
    assert isinstance(failed, ConnectFailed)
    assert failed.reason == f"{LOOPBACK}:{server.listener.port}: {os.strerror(number)}"


REFUSAL = "the server refused the login: wrong token (this client has no token: set GNAR_TOKEN)"


def test_refusal_ends_a_link_of_a_client_that_no_server_has_let_in(server: Server) -> None:
    link = Link(server.shared, [proxy("blog")], Callbacks(*[lambda _: None] * 3))
    running = gevent.spawn(link.run)
    send(server.accept(), Welcome(error="wrong token"))
    with pytest.raises(AuthError, match=re.escape(REFUSAL)):
        running.get()


def test_proxy_that_refuses_the_login_ends_a_link_as_a_server_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dial(*_: object) -> NoReturn:
        raise ProxyLoginError("the proxy does not take this user or password")

    monkeypatch.setattr(ControlConn, "dial", dial)
    with pytest.raises(ProxyLoginError):
        Link(server.shared, [proxy("blog")], Callbacks(*[lambda _: None] * 3)).run()


@pytest.mark.parametrize("is_new", [False, True], ids=["same link", "new link"])
def test_refusal_of_a_client_that_was_let_in_before_is_told_loudly_and_tried_again(
    is_new: bool, server: Server, monkeypatch: pytest.MonkeyPatch, said: list[events.Event]
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    link = server.start(proxy("blog"))
    conn = server.log_in()
    hear_ticks(conn)
    if is_new:
        link.end()
        server.start(proxy("dns"))
    conn.close()
    for _ in range(2):
        send(server.accept(), Welcome(error="wrong token"))
    server.log_in()
    told = ConnectFailed(REFUSAL, was_connected=not is_new, retry_s=0.0, is_refused=True)
    assert [event for event in said if isinstance(event, ConnectFailed)][-2:] == [told, told]


def test_address_of_the_server_that_worked_is_tried_first_when_the_link_comes_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    with blackhole() as hole:
        found = [(V4, hole), (V4, server.listener.sock.getsockname())]
        monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: found)
        server.shared.way = Way(replace(server.shared.config, server=Address("two.example", 1)))
        server.start(proxy("blog"))
        first = server.log_in()
        monkeypatch.setattr("gnar_lib.net.dialling.NEXT_ADDRESS_S", 1000.0)
        first.close()
        server.log_in()


def test_server_that_hangs_up_at_a_later_login_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    server.start(proxy("blog"))
    server.log_in().close()
    server.accept().close()
    server.log_in()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have links take a server for silent after 0.05 s, and try again at once."""
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    monkeypatch.setattr(numbers, "MIN_SILENCE_S", 0.05)


@pytest.mark.usefixtures("_impatient")
def test_silent_server_is_dialled_beside_the_connection_that_there_is(
    server: Server,
) -> None:
    server.start(proxy("blog", 9001))
    first = server.log_in()
    second = server.accept()
    assert isinstance(heard(second), ProxyReq)
    turn()
    first.unread(first.recv_now(1) or pytest.fail("closed already, or no heartbeats"))
    send(second, Welcome(session="another session", features=(FEATURE_WAIT,)))
    hear_ticks(second)
    while heard_yet := first.recv_now(100):  # only the answer tells that the server has noticed
        assert heard_yet.strip(b"\x02\x00{}") == b""
    assert heard_yet is None
    send(second, opened("blog", 9001))
    assert recv_or_none(first) is None
    wait_until(lambda: server.links[0].proxies["blog"].state is ProxyState.OPEN, "the proxy is open")
    assert [login.client_id for login in server.logins] == [server.logins[0].client_id] * 2


@pytest.mark.usefixtures("_impatient")
def test_server_that_is_silent_and_cannot_be_dialled_either_is_not_lost_yet(
    server: Server, said: list[events.Event]
) -> None:
    def failures() -> list[bool]:
        return [event.was_connected for event in said if isinstance(event, ConnectFailed)]

    server.start(proxy("blog", 9001))
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    server.listener.close()
    wait_until(failures, "the server is dialled, since it says nothing")
    assert failures()[0] is False
    conn.close()
    wait_until(lambda: True in failures(), "the server is lost")


def recv_or_none(conn: SocketConn) -> Message | None:
    """Return the next message; None if the other end has closed the connection."""
    try:
        return recv(conn)
    except ConnError:
        return None


@pytest.mark.usefixtures("_impatient")
def test_server_that_lets_in_and_never_answers_gets_two_connections_at_once(server: Server) -> None:
    server.start(proxy("blog", 9001))
    first, *_ = [server.log_in() for _ in range(3)]
    while recv_or_none(first) is not None:  # fails at the end of the test's time
        pass


@pytest.mark.usefixtures("_impatient")
def test_server_that_is_heard_again_keeps_its_connection(server: Server) -> None:
    server.start(proxy("blog", 9001))
    first = server.log_in()
    send(first, opened("blog", 9001))
    second = server.accept()  # since nothing more came on the first
    with keeping_alive(first):
        second.close()
        turn()
        wait_until(lambda: not server.links[0]._connection.is_silent, "the link has heard the server")  # type: ignore[union-attr]
        hear_ticks(first)
        assert server.links[0].proxies["blog"].state is ProxyState.OPEN


@contextmanager
def keeping_alive(conn: SocketConn) -> Iterator[None]:
    """Send a heartbeat every few milliseconds."""

    def beat() -> None:
        while True:
            send(conn, Heartbeat())
            gevent.sleep(0.005)

    beating = gevent.spawn(beat)
    yield
    beating.kill()


@dataclass
class Served:
    """A user of a multiplexed session whom a service serves."""

    mux: Mux
    control: Stream
    user: Stream
    local: SocketConn

    def talk(self) -> None:
        """Carry bytes in both directions."""
        self.user.sendall(b"still")
        assert self.local.recv(10) == b"still"
        self.local.sendall(b"there")
        assert self.user.recv(10) == b"there"


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    server.shared.config = replace(server.shared.config, multiplex=True)
    service = listen(LOOPBACK, 0)
    blog = proxy("blog", 9001)
    monkeypatch.setattr(blog, "_target", Target(LOOPBACK, service.port))
    server.start(blog)
    mux, control = server.log_in_multiplexed()
    send(control, opened("blog", 9001))
    user = mux.open()
    send(user, Exchange(conn_id="-", proxy_type="tcp", proxy_name="blog"))
    local = accept(service)
    yield Served(mux, control, user, local)
    user.close()
    local.close()
    mux.wait_end()
    service.close()


@pytest.mark.usefixtures("_impatient")
def test_users_of_a_multiplexed_session_outlive_its_control_connection(
    server: Server, served: Served
) -> None:
    _, control = server.log_in_multiplexed()  # since the server says nothing
    send(control, opened("blog", 9001))
    wait_until(lambda: served.mux._peer_gone_away, "the link takes no more users there")
    served.talk()


def test_users_of_a_session_whose_control_connection_the_server_ends_stay(
    server: Server, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    served.control.close()
    served.mux.drain()
    server.log_in_multiplexed()
    served.talk()


def test_heartbeat_of_a_server_that_agrees_on_a_pace_is_answered_at_once(server: Server) -> None:
    server.start(proxy("blog"))
    conn = server.accept()
    assert server.logins[0].heartbeat == 5
    assert isinstance(recv(conn), ProxyReq)
    send(conn, Welcome(session="a session", features=(FEATURE_WAIT,), heartbeat=7))
    for _ in range(20):
        send(conn, Heartbeat())
        assert isinstance(recv(conn), Heartbeat)
    gevent.sleep(0.05)  # five ticks
    assert conn.recv_now(1) is None


def test_message_that_has_no_place_on_a_control_connection_ends_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, said: list[events.Event]
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
    server.start(proxy("blog"))
    send(server.log_in(), Welcome())
    server.log_in()
    (lost,) = said
    assert isinstance(lost, ConnectFailed)
    assert lost.reason == "Welcome on a control connection"
    assert replace(lost, reason="") == ConnectFailed("", was_connected=True, retry_s=0.0)


@pytest.mark.parametrize("knows", [True, False])
def test_client_says_so_when_a_server_does_not_keep_limits_on_users(
    knows: bool, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    features = (FEATURE_USERS,) if knows else ()
    limited = ClientProxy(ProxyConfig("blog", 1, 9001, max_users=5, max_users_per_address=2), Meter())
    server.start(limited)
    conn = server.accept()
    assert heard(conn) == ProxyReq(9001, "blog", "", "tcp", max_users=5, max_users_per_address=2)
    send(conn, Welcome(session="a session", features=features))
    send(conn, opened("blog", 9001))
    wait_until(lambda: limited.state is ProxyState.OPEN, "the proxy is open")
    said = [record.getMessage() for record in caplog.records if "max-users" in record.getMessage()]
    assert len(said) == (0 if knows else 1)
