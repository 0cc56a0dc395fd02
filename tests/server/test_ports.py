"""The proxied ports of a server: which are opened, and what is said of those that are not."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

import pytest

from gnar_lib.config import PortRanges
from gnar_lib.errors import ListenError, PortTakenError, ProxyRefusedError
from gnar_lib.net import descriptors, listen
from gnar_lib.net.conn import socket_class
from gnar_lib.server import ports as ports_module
from gnar_lib.server.ports import TRIES_FOR_ANY_PORT, Ports
from tests.helpers.harness import free_port

LOOPBACK = "127.0.0.1"
ALL = PortRanges()
A_THOUSAND = PortRanges("9001-10000", ((9001, 10000),))


def fail(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Have each socket fail with this error number; returns a list that grows with each."""
    made: list[int] = []

    class Failing(socket_class):  # type: ignore[valid-type,misc]  # which class is known when it runs
        def __init__(self, *_: object) -> None:
            made.append(number)
            raise OSError(number, os.strerror(number))

        def __del__(self) -> None:
            """Do nothing: the socket was never opened."""

    for module in ("endpoint", "datagram"):
        monkeypatch.setattr(f"gnar_lib.net.{module}.socket_class", Failing)
    return made


def test_any_port_is_one_of_those_that_are_allowed_and_free() -> None:
    first, free = listen(LOOPBACK, 0), free_port()
    taken = first.port
    ranges = tuple(sorted([(taken, taken), (free, free)]))
    ports = Ports(LOOPBACK)
    opened = ports.listen(0, PortRanges("two", ranges))
    assert opened.port == free
    ports.hold("tcp", free)
    with pytest.raises(PortTakenError, match="no allowed port is free"):
        ports.listen(0, PortRanges("two", ranges))
    first.close()
    opened.close()


def test_free_port_of_many_is_found_without_looking_at_all_of_them() -> None:
    looked_at: list[int] = []

    class Allowed(PortRanges):
        def __getitem__(self, index: int) -> int:
            looked_at.append(index)
            return index + 1024

        def __iter__(self) -> NoReturn:
            raise AssertionError("all ports are listed")

    Ports(LOOPBACK).listen(0, Allowed("most", ((1024, 65535),))).close()
    assert 1 <= len(looked_at) < TRIES_FOR_ANY_PORT


@pytest.mark.parametrize("count", [1, 2, 9, 10, 64])
def test_each_port_is_a_candidate_once(count: int) -> None:
    ports = Ports(LOOPBACK)
    ports.hold("tcp", 9000)
    ranges = PortRanges("some", ((9000, 9000), (9002, 9000 + count)))
    for _ in range(20):
        assert sorted(ports._candidates("tcp", ranges)) == [*range(9002, 9001 + count)]


def test_port_that_is_held_is_not_tried_and_is_once_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(ports_module, "bind_udp", lambda _bind, port: tried.append(port))
    ports, two = Ports(LOOPBACK), PortRanges("9001-9002", ((9001, 9002),))
    ports.hold("udp", 9001)
    ports.hold("tcp", 9002)
    assert len(ports) == 2
    ports.bind_udp(0, two)
    assert tried == [9002]
    ports.release("udp", 9001)
    ports.hold("udp", 9002)
    ports.bind_udp(0, two)
    assert tried == [9002, 9001]


@pytest.mark.parametrize(
    ("bind", "udp_bind", "expected"), [("a", "", "a"), ("a", "b", "b"), ("", "b", "b"), ("", "", "")]
)
def test_udp_has_the_address_of_tcp_unless_it_is_given_its_own(
    bind: str, udp_bind: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[str] = []
    monkeypatch.setattr(ports_module, "bind_udp", lambda address, _port: bound.append(address))
    Ports(bind, udp_bind).bind_udp(9001, ALL)
    assert bound == [expected]


def test_port_that_is_not_allowed_is_refused_for_good() -> None:
    with pytest.raises(ProxyRefusedError, match=r"^port 9000 is not allowed \(allowed: 9001-10000\)$"):
        Ports(LOOPBACK).listen(9000, A_THOUSAND)


def test_port_that_cannot_be_opened_is_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, errno.EACCES)
    with pytest.raises(ProxyRefusedError, match=r"[Pp]ermission denied"):
        Ports(LOOPBACK).listen(9001, ALL)


@pytest.mark.parametrize(("port", "tries"), [(9001, 1), (0, 1)], ids=["one port", "any port"])
def test_lack_of_descriptors_is_said_after_one_try(
    port: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fail(monkeypatch, errno.EMFILE)
    with pytest.raises(ListenError, match="Too many open files"):
        Ports(LOOPBACK).listen(port, A_THOUSAND)
    assert len(made) == tries


def test_ports_leave_descriptors_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(descriptors), "for_ports", property(lambda _: 2))
    ports = Ports(LOOPBACK)
    ports.hold("tcp", 9001)
    ports.listen(0, ALL).close()
    ports.hold("udp", 9001)
    for open_port in (ports.listen, ports.bind_udp):
        with pytest.raises(ListenError, match=r"^2 ports are open: .* raise the limit") as caught:
            open_port(0, ALL)
        assert not isinstance(caught.value, ProxyRefusedError)  # the same request may succeed later


def test_reason_is_said_when_no_allowed_port_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fail(monkeypatch, errno.EACCES)
    with pytest.raises(ListenError, match=r"[Pp]ermission denied"):
        Ports(LOOPBACK).bind_udp(0, A_THOUSAND)
    assert len(made) == TRIES_FOR_ANY_PORT
