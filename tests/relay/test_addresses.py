"""Addresses of a relay in both spellings."""

from __future__ import annotations

import math
import socket

import pytest

from gnar_lib.errors import UsageError
from gnar_lib.net.datagram import pack_address
from gnar_lib.net.unix import SocketFileSettings as File
from gnar_lib.relay import Address, Role, parse_address
from gnar_lib.relay.accounts import find_account
from gnar_lib.relay.attempts import Retry
from gnar_lib.relay.ranges import read_range
from gnar_lib.relay.tls_options import TlsSettings as Tls

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
        (
            "TCP-LISTEN:80,fork,so-reuseaddr,backlog=0x10,ignoreeof,nonblock=1,cloexec,cool-write,shut-down",
            Address("tcp", port=80),
        ),
        ("TCP-LISTEN:80,fork,pf=ip4", Address("tcp", V4, "0.0.0.0", 80)),
        ("TCP-LISTEN:80,fork,maxchildren=010", Address("tcp", port=80, most_users=8)),
        ("TCP-LISTEN:80,fork,max-children", Address("tcp", port=80, most_users=1)),
        ("TCP-LISTEN:80,fork,retry=3,interval=0.5", Address("tcp", port=80, retry=Retry(3, 0.5))),
        ("UNIX-L:/x,fork,new,retry,forever", Address("unix", path="/x", retry=Retry(math.inf))),
        ("UNIX-L:/x,fork,umask=027,owner=0,gid=12", Address("unix", path="/x", file=File(0o750, 0, 12))),
        ("UNIX-L:/x,fork,umask=077,perm=0666,unlink", Address("unix", path="/x", file=File(mode=0o666))),
        ("TCP-LISTEN:80,fork,su=0", Address("tcp", port=80, account=find_account("root"))),
        ("UDP-LISTEN:80,fork,range=[fd00::]/8", Address("udp", port=80, allowed=read_range("fd00::/8"))),
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
        ("UNIX-CLIENT:/x,forever", Address("unix", path="/x", retry=Retry(math.inf))),
        ("TCP:h:80,reuseaddr,pf=inet6,ignoreeof", Address("tcp", V6, "h", 80)),
        ("TCP:h:80,connect-timeout=2.5", Address("tcp", host="h", port=80, connect_timeout_s=2.5)),
        ("UDP-SEND:h:53,connect-timeout=1", Address("udp", host="h", port=53, connect_timeout_s=1.0)),
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
        ("TCP:host:80,su=nobody", Role.TARGET, "option 'su' is not supported"),
        ("TCP-LISTEN:80,su=nosuchuser", Role.LISTEN, "option 'su=nosuchuser' is no user of this system"),
        ("UNIX-LISTEN:/x,user=nosuchuser", Role.LISTEN, "'user=nosuchuser' is no user of this system"),
        ("UNIX-LISTEN:/x,group=nosuchgroup", Role.LISTEN, "'group=nosuchgroup' is no group of this system"),
        ("UNIX-LISTEN:/x,uid=4294967295", Role.LISTEN, "is too large a number"),
        ("UNIX-LISTEN:/x,umask=9", Role.LISTEN, "000 to 777"),
        (
            "TCP-LISTEN:80,fork,keepalve",
            Role.LISTEN,
            "'keepalve' is not supported here (did you mean keepalive",
        ),
        ("TCP-LISTEN:80,fork,crnl", Role.LISTEN, "option 'crnl' is not supported here (leave it out"),
        (
            "TCP-LISTEN:80,fork,user=root",
            Role.LISTEN,
            "option 'user' is not supported here (it belongs to other",
        ),
        ("UNIX-LISTEN:/x,nodelay", Role.LISTEN, "option 'nodelay' is not supported"),
        ("UDP-LISTEN:80,fork,max-children=2", Role.LISTEN, "option 'max-children' is not supported"),
        ("TCP-LISTEN:80,max-children=2", Role.LISTEN, "'max-children' needs option 'fork'"),
        (
            "TCP-LISTEN:80,fork,max-children=0",
            Role.LISTEN,
            "'max-children=0' is not a number from 1 to 2147483647",
        ),
        ("TCP-LISTEN:80,fork,backlog=many", Role.LISTEN, "'backlog=many' is not a number"),
        ("TCP-LISTEN:80,fork,keepidle=99999999999", Role.LISTEN, "is not a number from 0 to 2147483647"),
        ("TCP-LISTEN:80,fork,pf=ip5", Role.LISTEN, "option 'pf=ip5' is neither ip4 nor ip6"),
        ("TCP4-LISTEN:80,fork,pf=ip6", Role.LISTEN, "another version of IP than the keyword"),
        ("TCP-LISTEN:80,range=here", Role.LISTEN, "'range=here' is not a range such as 10.0.0.0/8"),
        ("TCP-LISTEN:80,range=10.0.0.0/33", Role.LISTEN, "is not a range"),
        ("TCP-LISTEN:80,range=10.0.0.0/x", Role.LISTEN, "is not a range"),
        ("TCP-LISTEN:80,range=10.0.0.0:0.255.255.255", Role.LISTEN, "is not a range"),
        ("TCP-LISTEN:80,range=10.0.0.0:255.0.255.0", Role.LISTEN, "is not a range"),
        ("TCP-LISTEN:80,range", Role.LISTEN, "option 'range' is not a range"),
        ("UNIX-LISTEN:/x,range=10.0.0.0/8", Role.LISTEN, "option 'range' is not supported"),
        ("TCP:host:80,connect-timeout=soon", Role.TARGET, "is not a number of seconds from 0.1 on"),
        ("TCP:host:80,interval=0", Role.TARGET, "is not a number of seconds from 0.1 on"),
        ("UDP:host:80,retry=3", Role.TARGET, "option 'retry' is not supported"),
        ("UDP:host:80,sndbuf=3", Role.TARGET, "option 'sndbuf' is not supported"),
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
        ("OPENSSL-DTLS-CLIENT:host:443", Role.TARGET, "'OPENSSL-DTLS-CLIENT' is not an address that gnar"),
        ("tls:443", Role.LISTEN, "tls does not listen; write for example tcp:9000, tls-listen:9000"),
        (
            "tls-listen:443",
            Role.TARGET,
            "tls-listen cannot be dialled; write for example tcp:localhost:3000, tls:",
        ),
        ("OPENSSL:host:443", Role.LISTEN, "OPENSSL does not listen"),
        ("SSL-L:443,cert=x", Role.TARGET, "SSL-L cannot be dialled"),
        (
            "OPENSSL-LISTEN:443,fork,verify=0",
            Role.LISTEN,
            "option 'cert' is missing: the file of a certificate",
        ),
        ("OPENSSL-LISTEN:443,cert", Role.LISTEN, "option 'cert' is not the path of a file"),
        ("tls-listen:443,key=x", Role.LISTEN, "option 'key' needs option 'cert'"),
        ("tls-listen:443,fork=0", Role.LISTEN, "needs socat's spelling"),
        ("tls-listen:443,nosni", Role.LISTEN, "option 'nosni' is not supported here (it belongs to other"),
        ("TCP-LISTEN:443,cert=x", Role.LISTEN, "option 'cert' is not supported here (it belongs to other"),
        ("OPENSSL:host", Role.TARGET, "HOST:PORT"),
        ("OPENSSL:host:443,verify=maybe", Role.TARGET, "'verify=maybe' is neither 0 nor 1"),
        (
            "OPENSSL:host:443,cipher=HIGH",
            Role.TARGET,
            "option 'cipher' is not supported here (leave it out: gnar",
        ),
        ("OPENSSL:host:443,method=TLS1", Role.TARGET, "option 'method' is not supported here (min-version="),
        (
            "OPENSSL:host:443,compress=auto",
            Role.TARGET,
            "'compress=auto' is not supported: compression tells",
        ),
        ("OPENSSL:host:443,min-version=TLS2", Role.TARGET, "'min-version=TLS2' is neither TLS1.2 nor TLS1.3"),
        ("OPENSSL:host:443,max-version=TLS1.1", Role.TARGET, "'max-version=TLS1.1' is refused: it is broken"),
        (
            "tls:h:443,min-version=TLS1.3,max-version=TLS1.2",
            Role.TARGET,
            "'max-version' is older than option",
        ),
        ("tls:h:443,fingerprint=abc", Role.TARGET, "'fingerprint=abc' is not the SHA-256 of a certificate"),
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


@pytest.mark.parametrize(
    ("text", "role", "address"),
    [
        ("TCP-LISTEN:80,fork", Role.LISTEN, Address("tcp", V6, "::", 80)),
        ("TCP4-LISTEN:80,fork", Role.LISTEN, Address("tcp", V4, "0.0.0.0", 80)),
        ("TCP-LISTEN:80,fork,pf=ip4", Role.LISTEN, Address("tcp", V4, "0.0.0.0", 80)),
        ("TCP-LISTEN:80,fork,bind=127.0.0.1", Role.LISTEN, Address("tcp", host="127.0.0.1", port=80)),
        ("TCP:host:80", Role.TARGET, Address("tcp", V6, "host", 80)),
        ("TCP:127.0.0.1:80", Role.TARGET, Address("tcp", host="127.0.0.1", port=80)),
    ],
)
def test_a_version_of_ip_in_front_is_for_addresses_that_do_not_say_which(
    text: str, role: Role, address: Address
) -> None:
    assert parse_address(text, role, V6) == address


HEX = "0123456789abcdef" * 4
COLONS = ":".join(HEX[place : place + 2] for place in range(0, 64, 2)).upper()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("tls-listen:443", Tls(verifies=False)),
        ("tls-listen:443,cert=c,key=k", Tls("c", "k", verifies=False)),
        ("tls-listen:443,cafile=a", Tls(cafile="a")),
        ("tls-listen:443,capath=p,verify=0", Tls(capath="p", verifies=False)),
        ("tls-listen:443,cn=x", Tls(peer_name="x")),
        ("tls-listen:443,verify", Tls()),
        ("OPENSSL-LISTEN:443,cert=c,fork", Tls("c")),
        ("SSL-L:443,certificate=c,openssl-cafile=a,fork,dh=x,compress=none", Tls("c", cafile="a")),
        ("OPENSSL-LISTEN:443,openssl-certificate=c,openssl-verify=0,fork", Tls("c", verifies=False)),
        ("OPENSSL-LISTEN:443,cert=c,min-proto-version=TLS1.3,fork", Tls("c", least=13)),
        ("OPENSSL-LISTEN:443,cert=c,min-version=TLS1,max-version=TLS1.2,fork", Tls("c", most=12)),
        ("tls:h:443", Tls(peer_name="h", sni="h", by_openssl=True)),
        ("tls:443", Tls(peer_name="localhost", sni="localhost", by_openssl=True)),
        ("tls:h:443,cn=x", Tls(peer_name="x", sni="x", by_openssl=True)),
        ("tls:h:443,snihost=x", Tls(peer_name="h", sni="x")),
        ("tls:h:443,nosni", Tls(peer_name="h")),
        ("tls:h:443,commonname=", Tls(sni="h")),
        ("tls:h:443,commonname=,nosni", Tls()),
        (
            f"tls:h:443,fingerprint={COLONS}",
            Tls(verifies=False, peer_name="h", sni="h", fingerprints=(HEX,), by_openssl=True),
        ),
        (
            f"tls:h:443,fingerprint={HEX},cafile=a",
            Tls(cafile="a", peer_name="h", sni="h", fingerprints=(HEX,), by_openssl=True),
        ),
        ("OPENSSL:h:443", Tls(peer_name="h", sni="h")),
        ("SSL:h:443,verify=0", Tls(verifies=False, peer_name="h", sni="h")),
        ("OPENSSL-CONNECT:h:443,cert=c,no-sni,egd=x,pseudo", Tls("c", peer_name="h")),
    ],
)
def test_what_options_say_of_tls(text: str, settings: Tls) -> None:
    role = Role.LISTEN if "listen" in text.lower() or "-L" in text else Role.TARGET
    assert parse_address(text, role).tls == settings


def test_addresses_with_tls_are_as_others_and_take_their_options() -> None:
    listen = parse_address("OPENSSL-LISTEN:443,cert=c,fork,bind=127.0.0.1,max-children=3,retry", Role.LISTEN)
    assert listen == Address(
        "tls-listen", host="127.0.0.1", port=443, most_users=3, retry=Retry(1), tls=Tls("c")
    )
    assert str(listen) == "tls-listen:127.0.0.1:443"
    target = parse_address("SSL:h:https,connect-timeout=1,pf=ip6", Role.TARGET)
    tls = Tls(peer_name="h", sni="h")
    assert target == Address("tls", V6, "h", 443, connect_timeout_s=1, tls=tls)
    assert str(target) == "tls:h:443"
    assert not parse_address("OPENSSL-LISTEN:443,cert=c", Role.LISTEN).fork


@pytest.mark.parametrize(
    ("text", "within", "outside"),
    [
        ("10.0.0.0/8", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0", "::1", "a01::"]),
        ("10.9.9.9:255.0.0.0", ["10.1.2.3"], ["9.255.255.255"]),
        ("192.168.1.7", ["192.168.1.7"], ["192.168.1.6", "192.168.1.8"]),
        ("0.0.0.0/0", ["1.2.3.4"], ["::1"]),
        ("[::1]/128", ["::1"], ["::2", "127.0.0.1"]),
        ("fe80::/10", ["fe80::1%lo", "febf::"], ["fec0::"]),
        ("::/0", ["::1", "127.0.0.1"], []),
    ],
)
def test_what_is_in_a_range(text: str, within: list[str], outside: list[str]) -> None:
    found = read_range(text)
    assert [host for host in [*within, *outside] if found.has(pack_address((host, 1)))] == within
