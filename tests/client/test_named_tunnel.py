"""A client in this process with a real server that gives names: users by name reach the local service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gnar_lib.client.proxies import ProxyState
from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.net import Crew, SocketConn, listen
from tests.helpers.conns import accept
from tests.helpers.harness import free_port
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, serving


@pytest.fixture
def running() -> Iterator[Running]:
    with serving(domain="example.com", http_port=free_port(), http_bind=LOOPBACK) as made:
        yield made


def echo(conn: SocketConn) -> None:
    try:
        while data := conn.recv(4096):
            conn.sendall(data)
    finally:
        conn.close()


def ask(running: Running, host: str, text: bytes) -> bytes:
    """Come to a name as a user, and return what is answered."""
    proxy = running.server.shared.names.find(host, "/")
    assert proxy is not None
    listener = listen(LOOPBACK, 0)
    user = Running(running.server, listener.port).dial()
    running.server.shared.users.spawn(proxy.serve, accept(listener))
    listener.close()
    user.sendall(text)
    answer = user.recv(100)
    user.close()
    return answer


@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_users_of_a_name_reach_the_service_before_and_after_a_reload(
    multiplex: bool, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    crew, port = Crew("service"), running.server.shared.config.http_port
    service = listen(LOOPBACK, 0)
    service.serve(crew, echo)
    blog = ProxyConfig(proxy_name="web", local_port=service.port, proxy_type="http", subdomain="blog")
    config = ClientConfig(Address(LOOPBACK, running.port), (blog,), TOKEN, multiplex=multiplex)
    client = Client(config, lambda: None)
    try:
        client.start()
        assert client.answered.wait(10)
        wait_until(lambda: f"http://blog.example.com:{port}  ->" in capsys.readouterr().out, "it is shown")
        assert ask(running, "blog.example.com", b"hello") == b"hello"
        client.reload(replace(config, proxies=(replace(blog, subdomain="shop"),)))
        wait_until(lambda: running.server.shared.names.find("shop.example.com", "/"), "it has the other name")
        wait_until(lambda: not running.server.shared.names.knows("blog.example.com"), "it has lost the first")
        assert ask(running, "shop.example.com", b"again") == b"again"
        (proxy,) = client._proxies.values()
        wait_until(lambda: proxy.state is ProxyState.OPEN, "the client knows that")
        assert client.location("web") == f"http://shop.example.com:{port}"
        client.stop_taking_users()
        wait_until(lambda: not running.server.shared.names.knows("shop.example.com"), "the name is free")
    finally:
        client.close()
        service.close()
        crew.kill()
