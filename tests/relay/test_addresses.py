"""Addresses of a relay in both spellings."""

from __future__ import annotations

import socket

import pytest

from gnar_lib.errors import UsageError
from gnar_lib.net.unix import SocketFileSettings as File
from gnar_lib.relay import Address, Role, parse_address

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:9000", Address("tcp", port=9000)),
        ("tcp:0", Address("tcp", port=0)),
        ("tcp:127.0.0.1:9000", Address("tcp", host="127.0.0.1", port=9000)),
        ("tcp:[::1]:9000", Address("tcp", host="::1", port=9000)),
        ("unix:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("unix:/run/a:b", Address("unix", path="/run/a:b")),
        ("unix:/run/x.sock,mode=600", Address("unix", path="/run/x.sock", file=File(mode=0o600))),
        ("TCP-LISTEN:9000,reuseaddr,fork", Address("tcp", port=9000)),
        ("tcp-listen:9000", Address("tcp", port=9000, fork=False)),
        ("TCP-L:9000,fork=0", Address("tcp", port=9000, fork=False)),
        ("TCP-LISTEN:http,fork=1", Address("tcp", port=80)),
        ("TCP-LISTEN:9000,BIND=[::1],fork", Address("tcp", host="::1", port=9000)),
        ("TCP4-LISTEN:9000,fork", Address("tcp", V4, "0.0.0.0", 9000)),
        ("TCP6-LISTEN:9000,fork", Address("tcp", V6, "::", 9000)),
        (
            "UNIX-LISTEN:/run/x.sock,reuseaddr,fork,mode=660,unlink-early,unlink-close=0",
            Address("unix", path="/run/x.sock", file=File(mode=0o660, keep=True)),
        ),
        ("UNIX-L:/run/x.sock,unlink-close=1", Address("unix", path="/run/x.sock", fork=False)),
        (r"UNIX-LISTEN:/run/a\,b\:c\\,fork", Address("unix", path="/run/a,b:c\\")),
        ("UNIX-LISTEN:'/run/a,b:(c',fork", Address("unix", path="/run/a,b:(c")),
        ('UNIX-LISTEN:"/run/a,b",fork', Address("unix", path="/run/a,b")),
        ("udp:53", Address("udp", port=53)),
        ("udp:127.0.0.1:53", Address("udp", host="127.0.0.1", port=53)),
        ("UDP-LISTEN:53,reuseaddr,fork", Address("udp", port=53)),
        ("UDP4-L:53,bind=127.0.0.1", Address("udp", V4, "127.0.0.1", 53, fork=False)),
        ("UDP6-RECVFROM:53,fork", Address("udp", V6, "::", 53)),
        ("UDP-RECV:53", Address("udp", port=53, answers=False)),
        ("UDP-LISTEN:53,fork,broadcast", Address("udp", port=53)),
        ("unix-dgram:/run/x.sock,mode=660", Address("unix-dgram", path="/run/x.sock", file=File(mode=0o660))),
        ("UNIX-RECVFROM:/run/x.sock,fork", Address("unix-dgram", path="/run/x.sock")),
        ("UNIX-RECV:/run/x.sock", Address("unix-dgram", path="/run/x.sock", answers=False)),
        ("UNIX-LISTEN:/run/{a,b}(,)[:],fork", Address("unix", path="/run/{a,b}(,)[:]")),
    ],
)
def test_listening_address_in_both_spellings(text: str, address: Address) -> None:
    assert parse_address(text, Role.LISTEN) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:3000", Address("tcp", host="localhost", port=3000)),
        ("tcp:host:9299", Address("tcp", host="host", port=9299)),
        ("unix:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("TCP:host:9299", Address("tcp", host="host", port=9299)),
        ("TCP:[2001:db8::1]:80", Address("tcp", host="2001:db8::1", port=80)),
        ("tcp-connect:host:80,bind=127.0.0.2", Address("tcp", host="host", port=80, source="127.0.0.2")),
        ("TCP4:host:80", Address("tcp", V4, "host", 80)),
        ("TCP6:host:80", Address("tcp", V6, "host", 80)),
        ("UNIX-CONNECT:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("UNIX:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("udp:53", Address("udp", host="localhost", port=53)),
        ("udp:[::1]:53", Address("udp", host="::1", port=53)),
        ("UDP:host:domain", Address("udp", host="host", port=53)),
        ("UDP4-SENDTO:host:53,bind=127.0.0.2", Address("udp", V4, "host", 53, source="127.0.0.2")),
        ("UDP6-CONNECT:host:53", Address("udp", V6, "host", 53)),
        ("UDP4-SENDTO:10.0.0.255:53,broadcast", Address("udp", V4, "10.0.0.255", 53)),
        ("UDP-DATAGRAM:10.0.0.255:53,broadcast", Address("udp", host="10.0.0.255", port=53, any_source=True)),
        ("unix-dgram:/run/x.sock", Address("unix-dgram", path="/run/x.sock")),
        ("UNIX-SENDTO:/run/x.sock", Address("unix-dgram", path="/run/x.sock")),
    ],
)
def test_target_address_in_both_spellings(text: str, address: Address) -> None:
    assert parse_address(text, Role.TARGET) == address


@pytest.mark.parametrize(
    ("text", "role", "said"),
    [
        ("TCP-LISTEN:80,su=nobody", Role.LISTEN, "option 'su' is not supported"),
        ("TCP-LISTEN:80,fork,keepalive", Role.LISTEN, "option 'keepalive' is not supported"),
        ("TCP-LISTEN:80,mode=660", Role.LISTEN, "option 'mode' is not supported"),
        ("UNIX-LISTEN:/x,bind=y", Role.LISTEN, "option 'bind' is not supported"),
        ("TCP:host:80,fork", Role.TARGET, "option 'fork' is not supported"),
        ("UNIX-CONNECT:/x,unlink-close", Role.TARGET, "option 'unlink-close' is not supported"),
        ("TCP-LISTEN:80,reuseaddr=0", Role.LISTEN, "'reuseaddr=0' is not supported"),
        ("tcp:80,fork=0", Role.LISTEN, "needs socat's spelling"),
        ("TCP-LISTEN:80,fork=maybe", Role.LISTEN, "neither 0 nor 1"),
        ("UNIX-LISTEN:/x,mode=888", Role.LISTEN, "000 to 777"),
        ("UNIX-LISTEN:/x,mode=4777", Role.LISTEN, "000 to 777"),
        ("TCP:host:80,bind=host", Role.TARGET, "not an IP address"),
        ("TCP-LISTEN:127.0.0.1:80", Role.LISTEN, "bind=HOST"),
        ("TCP-CONNECT:80", Role.TARGET, "HOST:PORT"),
        ("tcp:::1:80", Role.TARGET, "IPv6 in brackets"),
        ("tcp:[::1:80", Role.TARGET, "closing ] is missing"),
        ("tcp:70000", Role.LISTEN, "out of range"),
        ("tcp:0", Role.TARGET, "out of range"),
        ("tcp:nosuchservice", Role.TARGET, "no service has that name"),
        ("tcp:\u00b2", Role.TARGET, "not a port"),
        ("unix:", Role.LISTEN, "path is missing"),
        ("UDP-RECVFROM:53", Role.LISTEN, "without option 'fork'"),
        ("UNIX-RECVFROM:/x", Role.LISTEN, "without option 'fork'"),
        ("TCP-LISTEN:53,fork,broadcast", Role.LISTEN, "option 'broadcast' is not supported"),
        ("UDP-SENDTO:h:53", Role.LISTEN, "does not listen"),
        ("UNIX-RECV:/x", Role.TARGET, "cannot be dialled"),
        ("OPENSSL:host:443", Role.TARGET, "'OPENSSL' is not an address that gnar knows"),
        ("TCP-LISTEN:80", Role.TARGET, "cannot be dialled"),
        ("TCP-CONNECT:host:80", Role.LISTEN, "does not listen"),
        ("", Role.LISTEN, "not an address"),
        ("-", Role.TARGET, "not an address"),
    ],
)
def test_a_wrong_address_is_refused_by_name(text: str, role: Role, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text, role)
    assert said in str(refused.value)
    assert str(refused.value).startswith(text)
