"""How a user gets a data connection: a stream, one that waits, or one on demand; and when there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gevent
import pytest
from gevent.event import AsyncResult

from gnar_lib.auth import ClientLogin, Session
from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.net import Conn, SocketConn, deadline, format_address
from gnar_lib.proto import Exchange, Heartbeat, Message, expect
from gnar_lib.proto.numbers import FEATURE_MUX, FEATURE_WAIT, NO_CONN_ID
from gnar_lib.server.connmap import EXPIRY_S, ConnMap
from gnar_lib.server.upstream import ondemand
from gnar_lib.server.upstream.carriers import Carriers
from gnar_lib.server.upstream.upstream import ANY_GO_CLIENT, Upstream
from gnar_lib.yamux import Session as Mux
from tests.helpers.conns import tcp_pair
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0
BLOG = object()  # stands for the proxy that users come to


def session(*features: str) -> Session:
    return Session("a session", b"its key", frozenset(features))


@dataclass
class Ends:
    """Makes pairs of connected conns, and closes all of them at the end."""

    conns: list[Conn] = field(default_factory=list)

    def pair(self) -> tuple[SocketConn, SocketConn]:
        near, far = tcp_pair()
        self.conns += [near, far]
        return near, far


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    with deadline(TIMEOUT_S, "the test"):
        yield made
    for conn in made.conns:
        conn.close()


@dataclass
class Client:
    """A client as its upstream sees it: the messages posted to the client, and the server's conn map."""

    session: Session | None = None
    mux: Mux | None = None
    posted: list[Message] = field(default_factory=list)
    now_s: float = 1000.0
    is_silent: bool = False

    def __post_init__(self) -> None:
        self.conn_map = ConnMap(clock=lambda: self.now_s)
        self.upstream = Upstream(
            self.conn_map,
            self.posted.append,
            self.session,
            None if self.mux is None else Carriers(self.mux, self.session),
            lambda: self.is_silent,
        )

    def asked(self) -> Exchange:
        """Return the Exchange by which the client was asked for a data connection."""
        (message,) = [each for each in self.posted if isinstance(each, Exchange)]
        return message

    def deliver(self, key: object, conn: Conn) -> bool:
        """Claim the ticket with `key` and deliver a data connection; tells whether the ticket was there."""
        entry = self.conn_map.claim(self.asked().conn_id, key)
        if entry is not None:
            entry.deliver(conn)
        return entry is not None


@contextmanager
def taking(take: Callable[[], Conn | None]) -> Iterator[AsyncResult[Conn | None]]:
    """Call `take` in a greenlet and yield its result to come; the greenlet is ended behind the block."""
    result: AsyncResult[Conn | None] = AsyncResult()
    greenlet = gevent.spawn(lambda: result.set(take()))
    turn()  # it waits from now on
    yield result
    greenlet.kill()


def test_go_client_is_asked_and_brings_one(ends: Ends) -> None:
    (user, _), (data, _), client = ends.pair(), ends.pair(), Client()
    with taking(lambda: client.upstream.take(user, "blog", BLOG)) as result:
        asked = client.asked()
        assert asked == Exchange(conn_id=asked.conn_id, proxy_type="tcp")
        assert client.deliver(ANY_GO_CLIENT, data)
        assert result.get() is data
    assert len(client.conn_map) == 0


def test_client_of_ours_is_told_who_came_and_where(ends: Ends) -> None:
    (user, other), (data, _), client = ends.pair(), ends.pair(), Client(session())
    with taking(lambda: client.upstream.take(other, "blog", BLOG)) as result:
        asked = client.asked()
        assert (asked.proxy_name, asked.user) == ("blog", format_address(user.sock.getsockname()))
        assert not client.deliver(ANY_GO_CLIENT, data)
        assert not client.deliver("another session", data)
        assert client.deliver("a session", data)
        assert result.get() is data


def test_multiplexing_go_client_brings_a_stream_of_its_own_session_alone(ends: Ends) -> None:
    (user, _), (data, _), (mux_conn, _) = ends.pair(), ends.pair(), ends.pair()
    mux = Mux(mux_conn, is_client=False)
    client = Client(mux=mux)
    with taking(lambda: client.upstream.take(user, "blog", BLOG)) as result:
        assert not client.deliver(ANY_GO_CLIENT, data)
        assert client.deliver(mux, data)
        assert result.get() is data
    mux.close()


def test_client_that_multiplexes_is_not_asked_a_stream_is_opened(ends: Ends) -> None:
    (user, _), (near, far) = ends.pair(), ends.pair()
    mux, peer = Mux(near, is_client=False), Mux(far, is_client=True)
    client = Client(session(FEATURE_MUX), mux)
    data = client.upstream.take(user, "blog", BLOG)
    exchange = expect(peer.accept(), Exchange)
    assert (exchange.conn_id, exchange.proxy_name) == (NO_CONN_ID, "blog")
    assert client.posted == []
    assert data is not None
    data.close()
    mux.close()
    peer.close()


def test_user_of_a_silent_client_waits_and_is_given_nothing_that_may_be_dead(ends: Ends) -> None:
    (user, _), (near, far), (waiting, _) = ends.pair(), ends.pair(), ends.pair()
    mux, peer = Mux(near, is_client=False), Mux(far, is_client=True)
    multiplexed = Client(session(FEATURE_MUX), mux, is_silent=True)
    own = session(FEATURE_WAIT)
    plain = Client(own, is_silent=True)
    plain.upstream.expect_users()
    assert plain.upstream.admit(waiting, ClientLogin.waiting_message(own, 1))
    for client, key in ((multiplexed, own.id), (plain, own.id)):
        (data, _) = ends.pair()
        with taking(lambda client=client: client.upstream.take(user, "blog", BLOG)) as result:  # type: ignore[misc]
            assert client.deliver(key, data)
            assert result.get() is data
    plain.is_silent = False  # it has been heard again
    assert plain.upstream.take(user, "blog", BLOG) is waiting
    mux.close()
    peer.close()


def test_user_who_is_ended_while_the_exchange_is_sent_leaves_no_data_connection_open(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user, _), (near, far), own = ends.pair(), ends.pair(), session(FEATURE_WAIT)
    client = Client(own)
    client.upstream.expect_users()
    assert client.upstream.admit(near, ClientLogin.waiting_message(own, 1))
    monkeypatch.setattr(SocketConn, "sendall", lambda *_: gevent.get_hub().switch())
    with taking(lambda: client.upstream.take(user, "blog", BLOG)):
        assert not near.closed
    with pytest.raises(ConnError, match="reset"):
        far.recv(1)
    client.upstream.close()


def test_data_connection_that_breaks_as_the_exchange_is_sent_makes_room_for_the_next(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user, _), (old, _), (young, _), own = ends.pair(), ends.pair(), ends.pair(), session(FEATURE_WAIT)
    client = Client(own)
    client.upstream.expect_users()
    for number, conn in enumerate((old, young), 1):
        assert client.upstream.admit(conn, ClientLogin.waiting_message(own, number))
    send_all = SocketConn.sendall

    def break_if_young(conn: SocketConn, data: bytes) -> None:
        if conn is young:
            raise ConnClosed("it broke just now")
        send_all(conn, data)

    monkeypatch.setattr(SocketConn, "sendall", break_if_young)
    assert client.upstream.take(user, "blog", BLOG) is old
    assert young.closed


def test_session_that_has_ended_opens_no_stream_and_the_client_is_asked(ends: Ends) -> None:
    (user, _), (near, _) = ends.pair(), ends.pair()
    mux = Mux(near, is_client=False)
    mux.close()
    client = Client(session(FEATURE_MUX), mux)
    with taking(lambda: client.upstream.take(user, "blog", BLOG)) as result:
        client.upstream.close()
        assert result.get() is None


def test_user_whose_stream_breaks_when_the_client_leaves_does_not_wait_for_another(ends: Ends) -> None:
    (user, _), (near, _) = ends.pair(), ends.pair()
    mux = Mux(near, is_client=False)
    client = Client(session(FEATURE_MUX), mux)
    mux.close()
    client.upstream.close()
    assert client.upstream.take(user, "blog", BLOG) is None
    assert client.posted == []


def test_waiting_data_connection_is_taken_before_the_client_is_asked(ends: Ends) -> None:
    (user, _), (near, far), own = ends.pair(), ends.pair(), session(FEATURE_WAIT)
    client = Client(own)
    client.upstream.expect_users()
    assert client.posted == [Heartbeat(waiting=2)]
    assert client.upstream.admit(near, ClientLogin.waiting_message(own, 1))
    assert client.upstream.waiting == 1
    assert client.upstream.take(user, "blog", BLOG) is near
    exchange = expect(far, Exchange)
    assert (exchange.conn_id, exchange.proxy_name) == (NO_CONN_ID, "blog")
    assert client.upstream.waiting == 0
    with taking(lambda: client.upstream.take(user, "blog", BLOG)):
        assert client.asked().conn_id != NO_CONN_ID


@pytest.mark.parametrize("number", [1, 2], ids=["replayed", "of another session"])
def test_waiting_data_connection_that_proves_nothing_is_not_admitted(number: int, ends: Ends) -> None:
    (near, _), (other, _), own = ends.pair(), ends.pair(), session(FEATURE_WAIT)
    client = Client(own)
    client.upstream.expect_users()
    assert client.upstream.admit(near, ClientLogin.waiting_message(own, 1))
    signer = own if number == 1 else Session("a session", b"another key", frozenset())
    assert not client.upstream.admit(other, ClientLogin.waiting_message(signer, number))
    assert not other.closed
    client.upstream.close()
    assert near.closed


def test_go_client_has_no_data_connections_that_wait(ends: Ends) -> None:
    (near, _), client = ends.pair(), Client()
    client.upstream.expect_users()
    client.upstream.tend()
    assert client.posted == []
    assert not client.upstream.admit(near, ClientLogin.waiting_message(session(), 1))


def test_nobody_waits_longer_than_10_s(ends: Ends) -> None:
    (user, _), client = ends.pair(), Client()
    with taking(lambda: client.upstream.take(user, "blog", BLOG)) as result:
        client.now_s += EXPIRY_S
        assert client.conn_map.expire() == 1
        assert result.get() is None


def test_proxy_that_is_closed_lets_its_own_users_go_and_nobody_else(ends: Ends) -> None:
    (user, _), (data, _), client = ends.pair(), ends.pair(), Client(session())
    with taking(lambda: client.upstream.take(user, "blog", BLOG)) as result:
        client.upstream.give_up(object())
        turn()
        assert not result.ready()
        client.upstream.give_up(BLOG)
        assert result.get() is None
    assert not client.deliver("a session", data)


def test_user_who_is_ended_while_waiting_leaves_nothing_behind(ends: Ends) -> None:
    (user, _), client = ends.pair(), Client()
    with taking(lambda: client.upstream.take(user, "blog", BLOG)):
        assert len(client.conn_map) == 1
    assert len(client.conn_map) == 0
    client.upstream.close()


def test_data_connection_that_comes_as_its_user_is_ended_is_closed(ends: Ends) -> None:
    (user, _), (data, far), client = ends.pair(), ends.pair(), Client()
    taker = gevent.spawn(client.upstream.take, user, "blog", BLOG)
    turn()
    taker.kill(block=False)
    assert client.deliver(ANY_GO_CLIENT, data)
    taker.join()
    assert data.closed
    with pytest.raises(Exception, match="reset"):
        far.recv(1)


def test_datagrams_have_a_data_connection_of_their_own(ends: Ends) -> None:
    (data, _), client = ends.pair(), Client(session(FEATURE_WAIT))
    client.upstream.expect_users()
    with taking(lambda: client.upstream.take_for_datagrams("dns", object())) as result:
        asked = client.asked()
        assert (asked.proxy_type, asked.proxy_name, asked.user) == ("udp", "dns", "")
        assert client.deliver("a session", data)
        assert result.get() is data


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("request_bytes", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["silent", "with a request"])
def test_user_who_has_left_is_not_waited_for(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, end: str, request_bytes: bytes
) -> None:
    (user, served), client = ends.pair(), Client()
    with taking(lambda: client.upstream.take(served, "blog", BLOG)) as result:
        user.sendall(request_bytes)
        client.upstream.tend()
        turn()
        getattr(user, end)()
        wait_until(lambda: served.has_hung_up, "the end of the user")
        client.upstream.tend()
        turn()
        assert not result.ready()  # a user who just sends no more may want the answer
        monkeypatch.setattr(ondemand, "HALF_CLOSED_WAIT_S", 0.0)
        client.upstream.tend()
        assert result.get() is None
    assert len(client.conn_map) == 0


def test_user_who_is_there_is_waited_for(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    (user, served), client = ends.pair(), Client()
    monkeypatch.setattr(ondemand, "HALF_CLOSED_WAIT_S", 0.0)
    with taking(lambda: client.upstream.take(served, "blog", BLOG)) as result:
        user.sendall(b"hello")
        client.upstream.tend()
        turn()
        assert not result.ready()


def test_giving_up_a_proxy_looks_at_nobody_who_waits_for_another(ends: Ends) -> None:
    client = Client()
    seen: list[object] = []

    class Proxy:
        def __eq__(self, other: object) -> bool:
            seen.append(other)
            return self is other

        __hash__ = object.__hash__

    others = [Proxy() for _ in range(50)]
    users = [ends.pair()[1] for _ in others]
    waiting = [
        gevent.spawn(client.upstream.take, user, "blog", proxy)
        for user, proxy in zip(users, others, strict=True)
    ]
    turn()
    asked = len(client.posted)
    client.upstream.give_up(others[7])
    assert len(client.conn_map) == len(others) - 1
    assert len(seen) <= 2
    client.upstream.close()
    gevent.joinall(waiting)
    assert asked == 50
    assert all(each.value is None for each in waiting)
