"""A TCP proxy at the server: the events about each user, and that no user's connection is left open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import gevent
import pytest

from gnar_lib import events
from gnar_lib.auth import Rights
from gnar_lib.config import ServerConfig
from gnar_lib.errors import ConnError
from gnar_lib.events import Side, UserCame, UserConnected, UserLeft
from gnar_lib.net import Conn, Sockaddr, SocketConn, deadline
from gnar_lib.pio.meter import Meter
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.proxies import Proxy
from tests.helpers.conns import tcp_pair
from tests.helpers.events import hear
from tests.helpers.loop import turn

TIMEOUT_S = 10.0


class FakeUpstream:
    """An upstream that gives each user what a function returns."""

    def __init__(self, take: Callable[[], Conn | None]) -> None:
        self._take = take

    def take(self, _user: Conn, _proxy: str, _owner: object, _address: Sockaddr) -> Conn | None:
        return self._take()

    def give_up(self, _owner: object) -> None:
        """Do nothing: nobody waits."""


def proxy(take: Callable[[], Conn | None], total: Meter | None = None) -> Proxy:
    upstream = FakeUpstream(take)
    places = Places("the proxy", UserLimits())
    return Proxy("blog", upstream, Rights.of(ServerConfig()), total or Meter(), places)  # type: ignore[arg-type]


def serve(served: Proxy, user: SocketConn) -> None:
    """Serve a user as a crew does: an error of a conn ends the greenlet and nothing else."""
    with suppress(ConnError):
        served.serve(user)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[events.Event]]:
    """Return the events about users, in their order."""
    got = hear(monkeypatch, UserCame, UserConnected, UserLeft)
    with deadline(TIMEOUT_S, "the test"):
        yield got


def test_each_step_of_a_user_is_said_with_what_was_moved(said: list[events.Event]) -> None:
    (theirs, user), (data, client) = tcp_pair(), tcp_pair()
    total = Meter()
    serving = gevent.spawn(serve, proxy(lambda: data, total), user)
    theirs.sendall(b"a question")
    assert client.recv(100) == b"a question"
    assert total.totals().users == 1
    client.sendall(b"an answer!!")
    assert theirs.recv(100) == b"an answer!!"
    theirs.close()
    client.close()
    serving.join()
    came, connected, left = said
    address = user.getpeername()
    assert came == UserCame(Side.SERVER, "blog", address)
    assert isinstance(connected, UserConnected)
    assert (connected.proxy, connected.user) == ("blog", address)
    assert isinstance(left, UserLeft)
    assert (left.proxy, left.user, left.up, left.down, left.reason) == ("blog", address, 10, 11, "")
    assert 0 <= connected.after_s <= left.lasted_s
    assert total.totals().users == 0
    assert user.closed
    assert data.closed


def test_user_for_whom_no_data_connection_came_is_closed(said: list[events.Event]) -> None:
    theirs, user = tcp_pair()
    proxy(lambda: None).serve(user)
    assert theirs.recv(1) == b""
    came, left = said
    assert isinstance(came, UserCame)
    assert isinstance(left, UserLeft)
    assert (left.up, left.down, left.reason) == (0, 0, "nothing to connect to")
    theirs.close()


def test_connection_that_breaks_says_why(said: list[events.Event]) -> None:
    (theirs, user), (data, client) = tcp_pair(), tcp_pair()
    serving = gevent.spawn(serve, proxy(lambda: data), user)
    theirs.sendall(b"x")
    assert client.recv(1) == b"x"
    client.abort()
    serving.join()
    left = said[-1]
    assert isinstance(left, UserLeft)
    assert "reset" in left.reason
    with pytest.raises(Exception, match="reset"):
        theirs.recv(1)
    theirs.close()


def test_live_connection_is_listed_and_can_be_ended_by_hand(said: list[events.Event]) -> None:
    (theirs, user), (data, client) = tcp_pair(), tcp_pair()
    served = proxy(lambda: data)
    serving = gevent.spawn(serve, served, user)
    theirs.sendall(b"x")
    assert client.recv(1) == b"x"
    (live,) = served.meter.connections
    assert (live.user, live.up.bytes) == (user.getpeername(), 1)
    live.end("an administrator")
    serving.join()
    assert not served.meter.connections
    assert isinstance(said[-1], UserLeft)
    assert said[-1].reason == "an administrator"
    assert user.closed
    assert data.closed
    theirs.close()
    client.close()


def test_user_whose_greenlet_is_ended_is_reset(said: list[events.Event]) -> None:
    theirs, user = tcp_pair()

    def wait_for_ever() -> None:
        gevent.get_hub().switch()

    serving = gevent.spawn(serve, proxy(wait_for_ever), user)
    turn()
    serving.kill()
    with pytest.raises(Exception, match="reset"):
        theirs.recv(1)
    assert isinstance(said[-1], UserLeft)
    assert said[-1].reason == "ended by the server"
    theirs.close()
