"""From where users may come: rules of networks, and what becomes of users of TCP and of UDP."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib import events
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import ConnError, ProxyRefusedError
from gnar_lib.events import UserRefused
from gnar_lib.net import dial
from gnar_lib.proto import ProxyReq, send
from gnar_lib.server.admission import MAX_NETWORKS, AddressRules
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, serving

NOT_ALLOWED, DENIED = "the address is none of allow-from", "the address is one of deny-from"


@pytest.fixture
def refusals() -> Iterator[list[UserRefused]]:
    seen: list[UserRefused] = []
    events.subscribe(UserRefused, seen.append)
    yield seen
    events.unsubscribe(UserRefused, seen.append)


@pytest.mark.parametrize(
    ("allow", "deny", "host", "said"),
    [
        ([], [], "192.0.2.1", ""),
        (["192.0.2.0/24"], [], "192.0.2.1", ""),
        (["192.0.2.0/24"], [], "192.0.3.1", NOT_ALLOWED),
        (["192.0.2.0/24"], [], "2001:db8::1", NOT_ALLOWED),
        (["192.0.2.0/24"], ["192.0.2.1"], "192.0.2.1", DENIED),
        (["192.0.2.0/24"], ["192.0.2.1"], "192.0.2.2", ""),
        ([], ["192.0.2.1"], "192.0.2.2", ""),
        ([], ["0.0.0.0/0"], "192.0.2.2", DENIED),
        ([], ["0.0.0.0/0"], "::1", ""),
        (["192.0.2.0/24"], [], "::ffff:192.0.2.1", ""),
        ([], ["192.0.2.0/24"], "::ffff:192.0.2.1", DENIED),
        ([], ["192.0.2.0/24"], "::ffff:c000:201", DENIED),
        (["::ffff:192.0.2.0/120"], [], "192.0.2.1", ""),
        (["::ffff:0:0/96"], [], "192.0.2.1", ""),
        (["2001:db8::/32"], [], "2001:db8:1::1", ""),
        (["fe80::/10"], [], "fe80::1%eth0", ""),
        (["::/0"], [], "192.0.2.1", NOT_ALLOWED),
    ],
)
def test_rules_say_who_may_come(allow: list[str], deny: list[str], host: str, said: str) -> None:
    rules = AddressRules.of(allow, deny)
    address = (host, 1, 0, 0) if ":" in host else (host, 1)
    assert rules.refusal(address) == said
    assert bool(rules) == bool(allow or deny)


def test_user_of_a_unix_socket_has_no_address() -> None:
    assert AddressRules.of([], ["0.0.0.0/0"]).refusal("/run/x.sock") == ""
    assert "no address" in AddressRules.of(["0.0.0.0/0"], []).refusal("")


@pytest.mark.parametrize("text", ["x", "", "10.0.0.0/33", "10.0.0.0/8/8"])
def test_what_is_no_list_of_networks_is_refused(text: str) -> None:
    with pytest.raises(ProxyRefusedError, match=r"^allow-from: what is no network; [^\n]+$"):
        AddressRules.of([text], [])
    with pytest.raises(ProxyRefusedError, match=rf"^deny-from: {MAX_NETWORKS + 1} networks; [^\n]+$"):
        AddressRules.of([], ["1.1.1.1"] * (MAX_NETWORKS + 1))


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128), st.booleans())
def test_rules_and_the_standard_library_are_of_one_mind(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    bits: int,
    is_deny: bool,
) -> None:
    mapped = getattr(other, "ipv4_mapped", None) or getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return
    network = ipaddress.ip_network(f"{other}/{min(bits, other.max_prefixlen)}", strict=False)
    rules = AddressRules.of([], [str(network)]) if is_deny else AddressRules.of([str(network)], [])
    is_in = address in network
    assert (rules.refusal((str(address), 1)) == "") == (is_in != is_deny)


# ---- at a real server --------------------------------------------------------------------------------------


def log_in(running: Running, kind: str, *, allow: str = "", deny: str = "") -> tuple[ControlConn, int]:
    control = ControlConn.dial(
        ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False), "one"
    )
    lists = {"allow_from": (allow,) if allow else (), "deny_from": (deny,) if deny else ()}
    control.log_in(ProxyReq(0, "x", "", kind, **lists))  # type: ignore[arg-type]
    return control, answer_of(control.conn).remote_port


def test_user_of_tcp_who_may_not_come_is_reset_and_another_is_served(refusals: list[UserRefused]) -> None:
    with serving() as running:
        client, port = log_in(running, "tcp", allow="127.0.0.2/32")
        stranger = dial(socket.AF_INET, (LOOPBACK, port))
        with pytest.raises(ConnError, match="reset"):
            stranger.recv(1)
        stranger.close()
        assert [(each.proxy, each.kind, each.reason) for each in refusals] == [("x", "tcp", NOT_ALLOWED)]
        friend = socket.create_connection((LOOPBACK, port), source_address=("127.0.0.2", 0))
        data = client.open_data(exchange_of(client.conn))
        friend.sendall(b"hello")
        assert data.recv(5) == b"hello"
        for conn in (friend, data, client):
            conn.close()


def test_datagrams_of_users_who_may_not_come_are_dropped_until_the_client_says_otherwise(
    refusals: list[UserRefused],
) -> None:
    with serving() as running:
        client, port = log_in(running, "udp", deny="127.0.0.2")
        data = client.open_data(exchange_of(client.conn))
        with socket.socket(type=socket.SOCK_DGRAM) as denied, socket.socket(type=socket.SOCK_DGRAM) as user:
            denied.bind(("127.0.0.2", 0))
            for sender in (denied, user):
                sender.sendto(sender.getsockname()[0].encode(), (LOOPBACK, port))
            frame = data.recv(4096)
            assert b"127.0.0.2" not in frame
            wait_until(lambda: refusals, "the other is refused")
            assert [(each.proxy, each.kind, each.reason) for each in refusals] == [("x", "udp", DENIED)]
            again, _ = log_in_again(running, port)
            fresh = again.open_data(exchange_of(again.conn))
            denied.sendto(b"now", (LOOPBACK, port))
            assert b"now" in fresh.recv(4096)
            for conn in (data, fresh, client, again):
                conn.close()


def log_in_again(running: Running, port: int) -> tuple[ControlConn, int]:
    """Log in as the same client, and ask for its UDP port without rules."""
    control = ControlConn.dial(
        ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False), "one"
    )
    control.log_in(ProxyReq(port, "x", "", "udp"))
    return control, answer_of(control.conn).remote_port


def test_rules_that_a_client_asks_for_when_it_comes_back_hold_from_then_on() -> None:
    with serving() as running:
        client, port = log_in(running, "tcp")
        send(client.conn, ProxyReq(port, "x", "", "tcp"))
        answer_of(client.conn)
        again = ControlConn.dial(
            ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False), "one"
        )
        again.log_in(ProxyReq(port, "x", "", "tcp", deny_from=("127.0.0.0/8",)))
        assert answer_of(again.conn).status == "success"
        user = dial(socket.AF_INET, (LOOPBACK, port))
        with pytest.raises(ConnError, match="reset"):
            user.recv(1)
        for conn in (user, client, again):
            conn.close()
