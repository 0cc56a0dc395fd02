"""A client's proxies that have a name: what is asked for, what is shown, and servers without names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gnar_lib import events
from gnar_lib.auth.passwords import is_hash
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.config import Address, ProxyConfig, Secret
from gnar_lib.events import CloseReason, ProxyClosed, ProxyOpened, ProxyRefused
from gnar_lib.net import SocketConn
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import ProxyCancel, ProxyReq, ProxyResp, Welcome, recv, send
from gnar_lib.proto.numbers import FEATURE_NAMES, FEATURE_WAIT
from tests.helpers.loop import wait_until
from tests.peers.link_server import Server, heard, opened, proxy

SERVER = Address("example.com", 8910)
URL = "https://blog.example.com"


def named(subdomain: str = "blog", kind: str = "http", name: str = "web", **settings: Any) -> ClientProxy:
    config = ProxyConfig(proxy_name=name, local_port=3000, proxy_type=kind, subdomain=subdomain, **settings)
    return ClientProxy(config, Meter())


def given(domain: str = "blog.example.com", url: str = URL, name: str = "web") -> ProxyResp:
    return ProxyResp(domain, "success", proxy_name=name, url=url)


def log_in(server: Server, *features: str) -> tuple[SocketConn, ProxyReq]:
    """Let a control connection in, as a server with these features does; return it and the first request."""
    conn = server.accept()
    request = recv(conn)
    assert isinstance(request, ProxyReq)
    send(conn, Welcome(session="a session", features=(FEATURE_WAIT, *features)))
    return conn, request


# ---- what is asked for -------------------------------------------------------------------------------------


def test_request_has_the_settings_and_hashes_in_place_of_passwords() -> None:
    asked = named(
        "*.dev",
        path="/api",
        host_header="local",
        request_headers=("X-A: b",),
        response_headers=("-Server",),
        basic_auth=(Secret("ann:s3cret:x"), Secret("bob:$2b$10$" + "a" * 53)),
        allow_from=("10.0.0.0/8",),
        deny_from=("10.1.0.0/16",),
        redirect_https=True,
        error_page="<p>Sorry</p>",
    )
    request = asked.request()
    (ann, bob), others = request.basic_auth, replace(request, basic_auth=())
    assert others == ProxyReq(
        0,
        "web",
        "*.dev",
        "http",
        path="/api",
        host_header="127.0.0.1:3000",
        request_headers=("X-A: b",),
        response_headers=("-Server",),
        allow_from=("10.0.0.0/8",),
        deny_from=("10.1.0.0/16",),
        redirect_https=True,
        error_page="<p>Sorry</p>",
    )
    assert ann.startswith("ann:$")
    assert is_hash(ann.removeprefix("ann:"))
    assert bob == "bob:$2b$10$" + "a" * 53
    assert asked.request() == request  # the hash is made once


def test_host_that_a_client_names_is_sent_as_it_is() -> None:
    assert named(host_header="db:80").request().host_header == "db:80"


# ---- a server that gives names -----------------------------------------------------------------------------


def test_name_that_the_server_has_chosen_is_shown_and_asked_for_again(
    server: Server, said: list[events.Event]
) -> None:
    web = named("")
    server.start(web)
    conn, request = log_in(server, FEATURE_NAMES)
    assert (request.subdomain, request.proxy_type) == ("", "http")
    send(conn, given("quiet-otter-42.example.com", "http://quiet-otter-42.example.com:8080"))
    wait_until(lambda: web.state is ProxyState.OPEN, "it is open")
    assert web.location(SERVER) == web.url(SERVER) == "http://quiet-otter-42.example.com:8080"
    (event,) = [each for each in said if isinstance(each, ProxyOpened)]
    assert (event.kind, event.port, event.where) == ("http", 0, web.location(SERVER))
    conn.close()
    _, request = log_in(server, FEATURE_NAMES)
    assert request.subdomain == "quiet-otter-42.example.com"


def test_url_of_a_server_cannot_write_to_the_terminal() -> None:
    web = named()
    web.opened(given(url="https://a\x1b[31m"))
    assert "\x1b" not in web.location(SERVER)


def test_proxy_of_tcp_with_a_name_has_the_url_of_that_and_keeps_its_port() -> None:
    both = named("blog", "tcp", remote_port=9000)
    both.opened(ProxyResp("blog.example.com", "success", remote_port=9000, url=URL))
    assert both.url(SERVER) == URL
    assert (both.request().remote_port, both.request().subdomain) == (9000, "blog")


def test_proxy_without_a_port_is_cancelled_by_its_name_whether_it_is_open_or_not(
    server: Server, said: list[events.Event]
) -> None:
    web, other = named(), named("shop", name="shop")
    link = server.start(web, other)
    conn, _ = log_in(server, FEATURE_NAMES)
    assert isinstance(heard(conn), ProxyReq)
    send(conn, given())
    wait_until(lambda: web.state is ProxyState.OPEN, "it is open")
    for each in (other, web):
        link.remove(each)
        assert heard(conn) == ProxyCancel(each.name, 0)
    send(conn, given(name="shop"))  # it was on its way
    link.add(named(name="third"))
    assert heard(conn) == ProxyReq(0, "third", "blog", "http")
    closed = [each for each in said if isinstance(each, ProxyClosed)]
    assert [(each.name, each.port, each.where) for each in closed] == [("web", 0, URL)]


def test_proxy_that_the_server_ends_is_given_up(server: Server, said: list[events.Event]) -> None:
    web = named()
    server.start(web, proxy("ssh", 9001))
    conn, _ = log_in(server, FEATURE_NAMES)
    heard(conn)
    send(conn, given())
    send(conn, opened("ssh", 9001))
    send(conn, ProxyResp("", "failed", "ended by an administrator", proxy_name="web", url=URL))
    wait_until(lambda: server.refusals, "it is given up")
    assert server.refusals == ["web"]
    assert web.state is ProxyState.ENDED
    (event,) = [each for each in said if isinstance(each, ProxyClosed)]
    assert event.reason is CloseReason.ENDED


# ---- servers that do not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_first", [True, False])
def test_server_of_an_earlier_version_gets_the_other_proxies(
    is_first: bool, server: Server, said: list[events.Event]
) -> None:
    events.subscribe(ProxyRefused, said.append)
    web, ssh = named(), proxy("ssh", 9001)
    limited = named("", "tcp", "limited", deny_from=("10.0.0.0/8",))
    proxies = [web, ssh, limited]
    server.start(*(proxies if is_first else [ssh, web, limited]))
    if is_first:
        log_in(server)
    conn, request = log_in(server)
    assert request == ProxyReq(9001, "ssh", "", "tcp")
    send(conn, opened("ssh", 9001))
    wait_until(lambda: ssh.state is ProxyState.OPEN, "the other is open")
    assert server.refusals == ["web", "limited"]
    reasons = [each.reason for each in said if isinstance(each, ProxyRefused)]
    assert "ask for a port instead" in reasons[0]
    assert "would let everybody in" in reasons[1]


def test_go_server_is_asked_for_a_port_with_a_name_alone(server: Server) -> None:
    web, both = named(), named("blog", "tcp", "both", remote_port=9001)
    server.start(web, both)
    first = server.accept()
    recv(first)
    send(first, ProxyResp("", "success"))
    conn = server.accept()
    assert recv(conn) == ProxyReq(9001, "both", "blog", "tcp")
    send(conn, ProxyResp("blog.example.com", "success"))
    wait_until(lambda: both.state is ProxyState.OPEN, "it is open")
    assert server.refusals == ["web"]
    assert both.location(SERVER) == URL  # a Go server has Caddy in front
