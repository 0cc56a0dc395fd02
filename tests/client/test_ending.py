"""A proxy, or a client, that the server ends for good is given up, and does not come back by itself."""

from __future__ import annotations

from dataclasses import replace

import gevent
import pytest

from gnar_lib import events
from gnar_lib.client.link import Callbacks, Link
from gnar_lib.client.proxies import ProxyState
from gnar_lib.client.serve import STATUS_DISMISSED, run_client
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import DismissedError
from gnar_lib.events import ProxyClosed
from gnar_lib.proto import Heartbeat, ProxyResp, send
from gnar_lib.proto.msg import STATUS_FAILED
from tests.helpers.loop import wait_until
from tests.peers.link_server import Server, hear_ticks, opened, proxy


def ended(name: str, port: int) -> ProxyResp:
    return ProxyResp("", STATUS_FAILED, error="an administrator", remote_port=port, proxy_name=name)


def test_proxy_that_the_server_ends_is_given_up_and_others_stay(
    server: Server, said: list[events.Event]
) -> None:
    blog, shop = proxy("blog", 9001), proxy("shop", 9002)
    link = server.start(blog, shop)
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    send(conn, opened("shop", 9002))
    wait_until(lambda: shop.state is ProxyState.OPEN, "both are open")
    send(conn, ended("blog", 9001))
    wait_until(lambda: blog.state is ProxyState.ENDED, "one is given up")
    assert [*link.proxies] == ["shop"]
    closed = said[-1]
    assert isinstance(closed, ProxyClosed)
    assert (closed.name, closed.reason) == ("blog", events.CloseReason.ENDED)


@pytest.mark.parametrize("answer", [ended("blog", 9009), ended("unknown", 9001)])
def test_end_of_what_the_client_does_not_have_changes_nothing(server: Server, answer: ProxyResp) -> None:
    blog = proxy("blog", 9001)
    server.start(blog)
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    wait_until(lambda: blog.state is ProxyState.OPEN, "it is open")
    send(conn, answer)
    hear_ticks(conn)
    assert blog.state is ProxyState.OPEN


def test_client_that_the_server_ends_does_not_come_back(server: Server) -> None:
    link = Link(server.shared, [proxy("blog", 9001)], Callbacks(*3 * [lambda _: None]))
    running = gevent.spawn(link.run)
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    send(conn, Heartbeat(ended="an administrator"))
    with pytest.raises(DismissedError, match="the server has dismissed this client: an administrator"):
        running.get()


@pytest.mark.parametrize("what", ["the client", "its last proxy"])
def test_process_that_the_server_ends_has_a_status_of_its_own(server: Server, what: str) -> None:
    config = replace(server.shared.config, proxies=(ProxyConfig("blog", 3000, 9001),))
    running = gevent.spawn(run_client, lambda: config)
    conn = server.log_in()
    send(conn, opened("blog", 9001))
    send(conn, Heartbeat(ended="an administrator") if what == "the client" else ended("blog", 9001))
    assert running.get() == STATUS_DISMISSED
