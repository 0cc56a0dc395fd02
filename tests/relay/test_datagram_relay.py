"""The relay of datagrams in this process, over UDP and Unix sockets."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gnar_lib import net
from gnar_lib.relay import DatagramRelay, Role, UdpSettings, parse_address
from tests.helpers.datagrams import LOOPBACK, EchoService, udp_user
from tests.helpers.loop import wait_until

DEFAULTS = UdpSettings()
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel drops them at once")


@contextmanager
def relaying(listen: str, target: str, settings: UdpSettings = DEFAULTS) -> Iterator[DatagramRelay]:
    """Run a relay for the block, close it, and check that it has left nothing."""
    running = DatagramRelay(parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET), settings)
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


@LINUX_ONLY
def test_answers_from_another_port_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with (
        udp_user() as service,
        udp_user() as other,
        udp_user() as user,
        relaying("udp:127.0.0.1:0", f"udp:127.0.0.1:{service.getsockname()[1]}") as running,
    ):
        user.sendto(b"question", (LOOPBACK, running.listener.port))
        session = service.recvfrom(100)[1]
        for _ in range(5):
            other.sendto(b"answer", session)
        wait_until(lambda: running.meter.dropped == 5, "the answers are dropped")
        source = net.format_address(other.getsockname())
    told = [record.getMessage() for record in caplog.records if source in record.getMessage()]
    assert len(told) == 1
    assert "udp-any-source" in told[0]


def test_any_source_lets_them_through() -> None:
    settings = UdpSettings(any_source=True)
    with (
        udp_user() as service,
        udp_user() as other,
        udp_user() as user,
        relaying("udp:127.0.0.1:0", f"udp:127.0.0.1:{service.getsockname()[1]}", settings) as running,
    ):
        user.sendto(b"question", (LOOPBACK, running.listener.port))
        other.sendto(b"answer", service.recvfrom(100)[1])
        assert user.recvfrom(100) == (b"answer", (LOOPBACK, running.listener.port))


@LINUX_ONLY
@pytest.mark.parametrize("target", ["udp", "UDP4-SENDTO", "UDP-DATAGRAM"])
@pytest.mark.parametrize("listen", ["udp:0", "UDP4-RECVFROM:0,fork,broadcast"])
def test_broadcast_goes_to_all_who_listen_and_their_answers_come_back(listen: str, target: str) -> None:
    option = "" if target == "udp" else ",broadcast"
    with closing(EchoService("0.0.0.0")) as service:
        target_address = f"{target}:127.255.255.255:{service.port}{option}"
        with relaying(listen, target_address) as running, udp_user() as user:
            user.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for host in (LOOPBACK, "127.255.255.255"):
                user.sendto(b"anybody there?", (host, running.listener.port))
                assert user.recvfrom(100) == (b"anybody there?", (LOOPBACK, running.listener.port))


def test_session_lives_as_long_as_the_relay_was_told() -> None:
    settings = UdpSettings(timeout_s=0.1)
    with (
        closing(EchoService()) as service,
        relaying("udp:127.0.0.1:0", f"udp:127.0.0.1:{service.port}", settings) as running,
        udp_user() as user,
    ):
        user.sendto(b"hello", (LOOPBACK, running.listener.port))
        wait_until(lambda: running.meter.users_total == 1, "a session begins")
        wait_until(lambda: not len(running.sessions) and not running.listener.has_peers, "the session ends")
