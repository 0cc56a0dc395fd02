"""Names at a real server: who gets which, who comes there, and what becomes of them when a client goes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from gnar_lib import events
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig, PortRanges
from gnar_lib.errors import ConnError
from gnar_lib.events import ClientGone, CloseReason, ProxyClosed, ProxyOpened
from gnar_lib.net import Conn, SocketConn, listen
from gnar_lib.proto import Heartbeat, ProxyCancel, ProxyReq, ProxyResp, recv, send
from gnar_lib.server.admin.registry import Registry
from gnar_lib.server.ingress import kept as kept_module
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.table import AWAY_S
from gnar_lib.server.proxies import Proxy
from tests.helpers.clock import Clock
from tests.helpers.conns import accept
from tests.helpers.harness import free_port
from tests.helpers.logins import TOKEN, go_login
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, serving

DOMAIN = "example.com"


@contextmanager
def naming(**settings: Any) -> Iterator[Running]:
    """Run a server that gives names under `DOMAIN`; behind the block, check that none is left."""
    with serving(domain=DOMAIN, **settings) as running:
        yield running
    shared = running.server.shared
    assert (len(shared.names), len(shared.ports), shared.room.taken) == (0, 0, 0)


def dial(running: Running, client_id: str, auth: str = "hmac") -> ControlConn:
    config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, auth=auth, multiplex=False, tls="off")
    return ControlConn.dial(config, client_id)


def log_in(
    running: Running, client_id: str, request: ProxyReq, auth: str = "hmac"
) -> tuple[ControlConn, ProxyResp]:
    """Log in as a client and ask for a first proxy; return the control connection and the answer."""
    client = dial(running, client_id, auth)
    client.log_in(request)
    return client, answer_of(client.conn)


def wanted(subdomain: str, kind: str = "http", name: str = "blog", **fields: Any) -> ProxyReq:
    return ProxyReq(0, name, subdomain, kind, **fields)


def ask(client: ControlConn, request: ProxyReq) -> ProxyResp:
    send(client.conn, request)
    return answer_of(client.conn)


def found(running: Running, host: str, path: str = "/") -> Proxy | None:
    return running.server.shared.names.find(host, path)


@contextmanager
def user_at(running: Running, proxy: Proxy | None) -> Iterator[SocketConn]:
    """Come to a proxy as a user does whose request is for its name."""
    assert proxy is not None
    listener = listen(LOOPBACK, 0)
    user = Running(running.server, listener.port).dial()
    running.server.shared.users.spawn(proxy.serve, accept(listener))
    try:
        yield user
    finally:
        user.close()
        listener.close()


@contextmanager
def heard(*kinds: type[events.Event]) -> Iterator[list[Any]]:
    told: list[Any] = []
    for kind in kinds:
        events.subscribe(kind, told.append)
    try:
        yield told
    finally:
        for kind in kinds:
            events.unsubscribe(kind, told.append)


def close(*conns: ControlConn | Conn) -> None:
    for conn in conns:
        conn.close()


# ---- names that are free -----------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_user_of_a_name_reaches_the_client_and_no_port_is_open(multiplex: bool) -> None:
    port = free_port()
    with naming(http_port=port, http_bind=LOOPBACK) as running, heard(ProxyOpened, ProxyClosed) as told:
        config = ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=multiplex, tls="off")
        client = ControlConn.dial(config, "one")
        client.log_in(wanted("blog"))
        answer = answer_of(client.conn)
        assert answer == ProxyResp(
            "blog.example.com", "success", proxy_name="blog", url=f"http://blog.example.com:{port}"
        )
        assert len(running.server.shared.ports) == 0
        assert "proxies=1 " in running.server.status()
        with user_at(running, found(running, "blog.example.com")) as user:
            user.sendall(b"hello")
            data = (
                client.mux.accept() if client.mux is not None else client.open_data(exchange_of(client.conn))
            )
            if client.mux is not None:
                assert exchange_of(data).proxy_name == "blog"
            assert data.recv(5) == b"hello"
            data.close()
        send(client.conn, ProxyCancel("blog", 0))
        wait_until(lambda: found(running, "blog.example.com") is None, "it is cancelled")
        assert not running.server.shared.names.knows("blog.example.com")
        assert [(each.kind, each.port, each.where) for each in told] == [("http", 0, answer.url)] * 2
        client.close()


def test_server_chooses_a_readable_name_that_the_client_gets_again() -> None:
    with naming() as running:
        client, answer = log_in(running, "one", wanted(""))
        assert re.fullmatch(r"[a-z]+-[a-z]+-\d\d\.example\.com", answer.domain)
        again, second = log_in(running, "one", wanted(answer.domain))
        assert (second.domain, second.status) == (answer.domain, "success")
        assert len(running.server.shared.names) == 1
        close(client, again)


def test_proxy_of_tcp_with_a_name_has_both_and_a_port_of_loopback_unless_it_asks_for_one() -> None:
    with naming(allow_ports=PortRanges("1", ((1, 1),))) as running:
        client, answer = log_in(running, "one", wanted("blog", "tcp"))
        (ingress,) = next(iter(running.server.control_ingress.clients)).ingresses
        assert answer.remote_port == 0
        assert ingress.sock.getsockname()[:2] == (LOOPBACK, ingress.port)  # type: ignore[union-attr]
        proxy = found(running, "blog.example.com")
        assert proxy is ingress.proxy
        for coming in (user_at(running, proxy), at_port(running, ingress.port)):
            with coming as user:
                data = client.open_data(exchange_of(client.conn))
                user.sendall(b"hello")
                assert data.recv(5) == b"hello"
                data.close()
        send(client.conn, ProxyCancel("blog", 0))
        wait_until(lambda: not len(running.server.shared.ports), "it is cancelled")
        assert found(running, "blog.example.com") is None
        client.close()


@contextmanager
def at_port(running: Running, port: int) -> Iterator[SocketConn]:
    user = Running(running.server, port).dial()
    try:
        yield user
    finally:
        user.close()


def test_go_client_with_a_subdomain_is_told_the_domain_and_no_more() -> None:
    with naming() as running:
        conn = running.dial()
        send(conn, go_login(int(time.time())))
        send(conn, ProxyReq(0, "go", "blog", "tcp"))
        assert answer_of(conn) == ProxyResp("blog.example.com", "success")
        proxy = found(running, "blog.example.com")
        with user_at(running, proxy) as user:
            exchange = exchange_of(conn)
            data = running.dial()
            send(data, go_login(int(time.time())))
            send(data, exchange)
            user.sendall(b"hello")
            assert data.recv(5) == b"hello"
            data.close()
        cancel = running.dial()
        send(cancel, go_login(int(time.time())))
        send(cancel, ProxyCancel("go", 0))
        assert answer_of(conn) == ProxyResp("", "failed")
        assert found(running, "blog.example.com") is None
        close(conn, cancel)


def test_several_proxies_share_a_name_by_path_also_of_several_clients() -> None:
    with naming() as running:
        one, _ = log_in(running, "one", wanted("blog"))
        two, answer = log_in(running, "two", wanted("blog", name="api", path="/api/"))
        assert answer.url == f"http://blog.example.com:{running.port}/api"
        for path, name in (("/", "blog"), ("/api/users", "api")):
            proxy = found(running, "blog.example.com", path)
            assert proxy is not None
            assert proxy.name == name
        refused = ask(two, wanted("blog", name="again", path="/api"))
        assert (refused.error, refused.retry, refused.own) == (
            "the name blog.example.com/api is taken",
            True,
            True,
        )
        close(one, two)


def test_names_count_as_proxies_and_refusals_are_for_good() -> None:
    with naming(max_proxies=1) as running:
        client, answer = log_in(running, "one", wanted("admin"))
        assert (answer.error, answer.retry) == ("the name 'admin' is reserved (reserved-names)", False)
        answer = ask(client, wanted("blog", allow_from=("10.0.0.0/99",)))
        assert (answer.error, answer.retry) == (
            "allow-from: what is no network; write one such as 10.0.0.0/8",
            False,
        )
        assert ask(client, wanted("blog")).status == "success"
        assert ask(client, wanted("other", name="other")).error == "one client may have 1 proxies"
        client.close()


def test_settings_of_all_proxies_have_room_in_memory_and_give_it_back() -> None:
    with naming() as running:
        running.server.shared.room.most = 2000
        client, answer = log_in(running, "one", wanted("blog", error_page="x" * 1500))
        assert answer.status == "success"
        more = wanted("shop", name="shop", request_headers=("X: " + "y" * 600,))
        answer = ask(client, more)
        assert (answer.error, answer.retry) == (
            "the settings of all proxies take 0 MiB already (max-memory)",
            True,
        )
        assert ask(client, wanted("small", name="small")).status == "success"
        again, answer = log_in(running, "one", wanted("blog"))  # as it comes back, it has less
        assert answer.status == "success"
        assert ask(again, more).status == "success"
        leave(again)
        assert running.server.shared.room.taken == 663
        close(client, again)


# ---- names that somebody has -------------------------------------------------------------------------------


def test_name_is_refused_to_others_until_it_is_free() -> None:
    with naming() as running:
        one, _ = log_in(running, "one", wanted("blog"))
        two, answer = log_in(running, "two", wanted("blog"))
        assert (answer.error, answer.retry, answer.own) == ("the name blog.example.com is taken", True, True)
        other, answer = log_in(running, "three", wanted("blog"), auth="md5")
        assert (answer.error, answer.retry, answer.own) == ("the name blog.example.com is taken", True, False)
        send(one.conn, ProxyCancel("blog", 0))
        wait_until(lambda: not running.server.shared.names.knows("blog.example.com"), "it is free")
        assert ask(two, wanted("blog")).status == "success"
        close(one, two, other)


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_client_that_comes_back_has_its_name_and_users_who_wait_are_announced_again(kind: str) -> None:
    with naming() as running:
        before, _ = log_in(running, "one", wanted("blog", kind))
        proxy = found(running, "blog.example.com")
        with user_at(running, proxy) as user:
            exchange_of(before.conn)
            after, answer = log_in(running, "one", wanted("blog", kind, host_header="b"))
            assert (answer.status, answer.domain) == ("success", "blog.example.com")
            assert found(running, "blog.example.com") is proxy
            assert proxy is not None
            assert proxy.web.host_header == b"b"  # as it is asked for now
            data = after.open_data(exchange_of(after.conn))
            user.sendall(b"hello")
            assert data.recv(5) == b"hello"
            data.close()
        close(before, after)


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_silent_client_loses_its_names_to_another_of_its_credential_and_is_sent_away(kind: str) -> None:
    with naming() as running:
        silent, _ = log_in(running, "one", wanted("blog", kind))
        assert ask(silent, wanted("shop", kind, "shop")).status == "success"
        (holder,) = running.server.control_ingress.clients
        holder._heard_s -= 60
        other, answer = log_in(running, "two", wanted("blog"), auth="md5")
        assert answer.error == "the name blog.example.com is taken"
        new, answer = log_in(running, "three", wanted("blog"))
        assert answer.status == ask(new, wanted("shop", name="shop")).status == "success"
        assert holder.ingresses == []
        while not (isinstance(message := recv(silent.conn), Heartbeat) and message.leaving):
            pass  # it connects anew, and asks again
        back, answer = log_in(running, "one", wanted("blog"))
        assert answer.error == "the name blog.example.com is taken"
        close(silent, other, new, back)


def test_silent_client_that_cannot_be_sent_away_is_hung_up_on() -> None:
    with naming() as running:
        conn = running.dial()
        send(conn, go_login(int(time.time())))
        send(conn, ProxyReq(0, "go", "blog", "tcp"))
        answer_of(conn)
        (holder,) = running.server.control_ingress.clients
        holder._has.lose(Name("http", "blog.example.com"))
        with suppress(ConnError):
            while isinstance(recv(conn), Heartbeat):
                pass
        conn.close()
        wait_until(lambda: not running.server.control_ingress.clients, "it is gone")


# ---- a client that has gone --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_name_of_a_client_that_has_gone_is_held_for_a_minute(kind: str) -> None:
    with naming() as running, heard(ProxyClosed, ClientGone) as told:
        clock = Clock()
        running.server.shared.names._clock = clock
        client, _ = log_in(running, "one", wanted("blog", kind))
        client.close()
        wait_until(lambda: not running.server.control_ingress.clients, "the client is gone")
        assert [type(each) for each in told] == [ClientGone, ProxyClosed]
        proxy = found(running, "blog.example.com")
        assert proxy is not None
        assert proxy.is_away
        assert running.server.shared.proxies == 0
        other, answer = log_in(running, "two", wanted("blog", kind), auth="md5")
        assert (answer.error, answer.retry) == ("the name blog.example.com is taken", True)
        clock.now_s += AWAY_S
        running.server.shared.names.tend()
        assert found(running, "blog.example.com") is None
        assert ask(other, wanted("blog", kind)).status == "success"
        other.close()


def test_another_client_of_the_credential_has_the_name_at_once() -> None:
    with naming() as running:
        client, _ = log_in(running, "one", wanted("blog"))
        client.close()
        wait_until(lambda: not running.server.control_ingress.clients, "the client is gone")
        other, answer = log_in(running, "two", wanted("blog", name="another proxy"))
        proxy = found(running, "blog.example.com")
        assert proxy is not None
        assert (answer.status, proxy.name, proxy.is_away) == ("success", "another proxy", False)
        other.close()


def test_name_of_a_client_that_is_restarted_waits_for_it_with_its_users() -> None:
    with naming() as running:
        before, _ = log_in(running, "one", wanted("blog"))
        leave(before)
        proxy = found(running, "blog.example.com")
        assert proxy is not None
        assert not proxy.is_away
        with user_at(running, proxy) as user:
            turn()
            other, answer = log_in(running, "three", wanted("blog"), auth="md5")
            assert answer.error == "the name blog.example.com is taken"
            after, answer = log_in(running, "two", wanted("blog"))
            assert answer.status == "success"
            assert found(running, "blog.example.com") is proxy
            data = after.open_data(exchange_of(after.conn))
            user.sendall(b"hello")
            assert data.recv(5) == b"hello"
            data.close()
        close(before, other, after)


def test_name_of_a_client_that_is_restarted_and_does_not_come_is_held_as_that_of_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_module, "KEEP_S", 0.0)
    with naming() as running:
        client, _ = log_in(running, "one", wanted("blog"))
        leave(client)
        proxy = found(running, "blog.example.com")
        running.server.control_ingress.kept.tend()
        assert proxy is not None
        assert found(running, "blog.example.com") is proxy
        assert proxy.is_away
        client.close()


def test_name_that_waits_goes_to_a_client_of_the_credential_that_asks_in_another_way() -> None:
    with naming() as running:
        client, _ = log_in(running, "one", wanted("blog", "tcp"))
        leave(client)
        assert len(running.server.control_ingress.kept) == 1
        other, answer = log_in(running, "two", wanted("blog", "http"))
        assert answer.status == "success"
        assert len(running.server.control_ingress.kept) == 0
        close(client, other)


def test_name_that_is_cancelled_or_tried_by_a_check_or_ended_by_hand_is_free_at_once() -> None:
    with naming() as running, heard(ProxyClosed) as told:
        client, _ = log_in(running, "one", wanted("blog"))
        ask(client, wanted("other", name="other"))
        (holder,) = running.server.control_ingress.clients
        (ingress,) = [each for each in holder.ingresses if each.proxy.name == "other"]
        holder.end_proxy(ingress)
        answer = answer_of(client.conn)
        assert (answer.status, answer.proxy_name, answer.remote_port, answer.url) == (
            "failed",
            "other",
            0,
            f"http://other.example.com:{running.port}",
        )
        assert not running.server.shared.names.knows("other.example.com")
        holder.dismiss()
        assert not running.server.shared.names.knows("blog.example.com")
        client.close()
        check = dial(running, "check")
        check._login.is_check = True
        check.log_in(wanted("blog"))
        answer_of(check.conn)
        check.close()
        wait_until(lambda: not running.server.control_ingress.clients, "both are gone")
        assert not running.server.shared.names.knows("blog.example.com")
        assert {each.reason for each in told} == {CloseReason.ENDED}


def leave(client: ControlConn) -> None:
    """Say that the client is to be started again, and wait until no more users come to it."""
    send(client.conn, Heartbeat(leaving=True))
    while not (isinstance(message := recv(client.conn), Heartbeat) and message.leaving):
        pass


# ---- who watches -------------------------------------------------------------------------------------------


def test_those_who_watch_tell_several_proxies_without_a_port_apart() -> None:
    with naming() as running:
        registry = Registry(running.server.control_ingress)
        registry.start()
        blog, shop = (f"http://{each}.example.com:{running.port}" for each in ("blog", "shop"))
        one, _ = log_in(running, "one", wanted("blog", name="x"))
        two, _ = log_in(running, "two", wanted("shop", name="x"))
        registry.look()
        shown = {each.link: each for each in registry.proxies.values()}
        assert {*shown} == {blog, shop}
        assert {each.port for each in shown.values()} == {0}
        send(one.conn, ProxyCancel("x", 0))
        wait_until(lambda: not running.server.shared.names.knows("blog.example.com"), "it is cancelled")
        two.close()
        wait_until(lambda: len(running.server.control_ingress.clients) == 1, "the other has gone")
        registry.look()
        reasons = {link: each.reason for link, each in shown.items()}
        assert reasons == {blog: "cancelled", shop: "the client left"}
        back, _ = log_in(running, "two", wanted("shop", name="x"))
        registry.look()
        assert sorted((each.link, each.gone_at is None) for each in registry.proxies.values()) == [
            (blog, False),
            (shop, True),
        ]
        registry.close()
        close(one, back)
