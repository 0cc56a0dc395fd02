"""Dialling addresses, names and targets."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import DialError, ExhaustedError, RefusedError, UnreachableError
from gnar_lib.net import SocketConn, dial, listen, resolve
from gnar_lib.net.target import Target
from tests.helpers.conns import BLACKHOLE, LOOPBACK, TIMEOUT_S, V4, accept, blackhole
from tests.helpers.loop import wait_until


def test_refused_dial_says_who_refused() -> None:
    listener = listen(LOOPBACK, 0)
    address = listener.sock.getsockname()
    listener.close()
    with pytest.raises(RefusedError, match=rf"cannot connect to {LOOPBACK}:{address[1]}: Connection refused"):
        dial(V4, address)


def test_dial_that_nobody_answers_ends_in_time() -> None:
    """The kernel would try again for two minutes."""
    with blackhole() as address, pytest.raises(UnreachableError, match=r"connecting took longer than 0.2 s"):
        dial(V4, address, timeout_s=0.2)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNREFUSED, RefusedError),
        (errno.ENETUNREACH, UnreachableError),
        (errno.EHOSTUNREACH, UnreachableError),
        (errno.ETIMEDOUT, UnreachableError),
        (errno.EADDRNOTAVAIL, ExhaustedError),
        (errno.EMFILE, ExhaustedError),
        (errno.EAFNOSUPPORT, DialError),
    ],
)
def test_error_tells_whose_fault_it_is(
    number: int, kind: type[DialError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gnar_lib.net.dialling.socket_class", fail)
    with pytest.raises(DialError, match=os.strerror(number)) as caught:
        dial(V4, (LOOPBACK, 1))
    assert type(caught.value) is kind


def test_name_that_dns_cannot_tell_now_is_the_networks_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("gevent.socket.getaddrinfo", fail)
    with pytest.raises(UnreachableError, match=r"cannot resolve 'name\.example': Temporary failure"):
        resolve("name.example", 1)


def test_dial_that_is_killed_closes_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SocketConn] = []

    def never(conn: SocketConn) -> None:
        made.append(conn)
        gevent.sleep(TIMEOUT_S)

    monkeypatch.setattr(SocketConn, "wait_writable", never)
    with blackhole() as address:
        dialling = gevent.spawn(dial, V4, address)
        wait_until(lambda: made, "the dial waits")
        dialling.kill()
    assert made[0].closed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only an event tells")
def test_dial_within_this_machine_needs_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    for wait in ("wait_writable", "call_when_writable"):
        monkeypatch.setattr(SocketConn, wait, lambda *_: pytest.fail("it waits"))
    listener = listen(LOOPBACK, 0)
    address = LOOPBACK, listener.port
    dial(V4, address).close()
    Target(*address).dial().close()
    listener.close()
    with pytest.raises(RefusedError, match="Connection refused"):
        Target(*address).dial()


def test_dial_from_an_address_is_seen_as_coming_from_it() -> None:
    listener = listen(LOOPBACK, 0)
    near = dial(V4, listener.sock.getsockname(), source="127.0.0.2")
    far = accept(listener)
    assert net.host_of(far.getpeername()) == "127.0.0.2"
    for thing in (near, far, listener):
        thing.close()
    with pytest.raises(DialError, match="Cannot assign requested address"):
        dial(V4, (LOOPBACK, 1), source=BLACKHOLE)


def test_target_goes_on_to_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(LOOPBACK, 0)
    port = listener.port
    found = [(socket.AF_INET6, ("::1", port, 0, 0)), (V4, (LOOPBACK, port))]
    monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: [*found])
    Target("name", port).dial().close()
    listener.close()
    with pytest.raises(DialError, match=f"{LOOPBACK}:{port}"):
        Target("name", port).dial()


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a" * 300, "..", "\udcff"])
def test_name_that_does_not_resolve_is_a_dial_error(host: str) -> None:
    with pytest.raises(DialError, match="cannot resolve"):
        resolve(host, 1)


def test_a_dial_that_failed_leaves_nothing_to_the_collector() -> None:
    def held() -> int:
        return sum(isinstance(thing, SocketConn) for thing in gc.get_objects())

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(10):
            with pytest.raises(DialError):
                Target(LOOPBACK, port).dial()
        assert held() <= before + 1
    finally:
        gc.enable()


def test_target_is_looked_up_again_only_when_its_address_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = listen(LOOPBACK, 0), listen(LOOPBACK, 0)
    ports, asked = [first.port], list[int]()

    def lookup(*_: object) -> list[tuple[int, net.Sockaddr]]:
        asked.append(1)
        return [(V4, (LOOPBACK, port)) for port in ports]

    monkeypatch.setattr("gnar_lib.net.place.resolve", lookup)
    monkeypatch.setattr("gnar_lib.net.place.LOOK_UP_PAUSE_S", 0.0)
    target = Target("name", 1)
    for _ in range(3):
        target.dial().close()
    assert len(asked) == 1
    first.close()
    ports[:] = [second.port]
    conn = target.dial()
    assert conn.getpeername() == (LOOPBACK, second.port)
    conn.close()
    target.dial().close()
    assert len(asked) == 2
    second.close()
    with pytest.raises(DialError, match="Connection refused"):
        target.dial()
    assert len(asked) == 3
