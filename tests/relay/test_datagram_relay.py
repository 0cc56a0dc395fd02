"""The relay of datagrams in this process, over UDP and Unix sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gnar_lib.relay import DatagramRelay, Role, parse_address
from tests.helpers.datagrams import LOOPBACK, EchoService, udp_user
from tests.helpers.loop import wait_until


@contextmanager
def relaying(listen: str, target: str) -> Iterator[DatagramRelay]:
    """Run a relay for the block, close it, and check that it has left nothing."""
    running = DatagramRelay(parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET))
    try:
        yield running
    finally:
        running.close()
    assert len(running.sessions) == 0


@pytest.mark.parametrize("listen", ["udp:127.0.0.1:0", "UDP4-LISTEN:0,fork,reuseaddr", "UDP-RECVFROM:0,fork"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_relay_carries_datagrams_of_many_users_to_their_own_sessions(listen: str, host: str) -> None:
    with (
        closing(EchoService(host.strip("[]"))) as service,
        relaying(listen, f"udp:{host}:{service.port}") as running,
    ):
        asking = [udp_user() for _ in range(20)]
        for number, user in enumerate(asking):
            user.sendto(b"%d" % number, (LOOPBACK, running.listener.port))
        for number, user in enumerate(asking):
            assert user.recv(100) == b"%d" % number
            user.close()
        assert len(running.sessions) == len({port for _, port in service.heard}) == 20


def test_relay_between_udp_and_unix_datagrams_both_ways(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.sock"
    with (
        closing(EchoService()) as service,
        relaying(f"unix-dgram:{path},mode=600", f"udp:127.0.0.1:{service.port}"),
        relaying("udp:127.0.0.1:0", f"UNIX-SENDTO:{path}") as outer,
        udp_user() as user,
    ):
        for payload in (b"hello", b"", b"x" * 5000):
            user.sendto(payload, (LOOPBACK, outer.listener.port))
            assert user.recv(65536) == payload
    assert not Path(path).exists()


@pytest.mark.parametrize(("listen", "dropped"), [("UNIX-RECV", 0), ("unix-dgram", 1)])
def test_user_of_a_unix_socket_without_a_name_is_heard_and_not_answered(
    tmp_path: Path, listen: str, dropped: int
) -> None:
    path = f"{tmp_path}/log"
    with (
        closing(EchoService()) as service,
        relaying(f"{listen}:{path}", f"udp:127.0.0.1:{service.port}") as running,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
    ):
        nameless.sendto(b"<13>line", path)
        wait_until(lambda: service.heard, "the service has heard the user")
        assert service.heard[0][0] == b"<13>line"
        wait_until(lambda: len(running.sessions) == 1, "there is a session")
        wait_until(lambda: running.meter.dropped == dropped, "the answer is dropped")


def test_without_fork_one_user_is_served_and_no_other() -> None:
    with (
        closing(EchoService()) as service,
        relaying("UDP4-LISTEN:0,bind=127.0.0.1", f"udp:127.0.0.1:{service.port}") as running,
        udp_user() as first,
        udp_user() as second,
    ):
        for number in range(3):
            first.sendto(b"%d" % number, (LOOPBACK, running.listener.port))
            assert first.recv(100) == b"%d" % number
            second.sendto(b"me, too", (LOOPBACK, running.listener.port))
        assert {payload for payload, _ in service.heard} == {b"0", b"1", b"2"}
