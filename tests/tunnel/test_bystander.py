"""The bounds of `uninvolved_user` fail when they should: a stall, a process that grows, a lost connection."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.harness import Tunnel, Tunnels, dial, echo, wait_until

ATTACKERS = 50

plain = pytest.mark.parametrize("shared_tunnel", [()], ids=["plain"], indirect=True)


@plain
def test_process_that_stands_still_is_found(shared_tunnel: Tunnel) -> None:
    def attack() -> None:
        with uninvolved_user(shared_tunnel.port, shared_tunnel.server, bounds=Bounds(worst_s=0.3)):
            shared_tunnel.server.signal(signal.SIGSTOP)
            try:
                time.sleep(0.5)  # how long the process stands still
            finally:
                shared_tunnel.server.signal(signal.SIGCONT)

    with pytest.raises(AssertionError, match=r"longer than 0\.3 s: worst delay \d{3,} ms"):
        attack()


@plain
def test_process_that_grows_is_found(shared_tunnel: Tunnel) -> None:
    def attack() -> None:
        server, bounds = shared_tunnel.server, Bounds(grown_fds=ATTACKERS // 2)
        with (
            uninvolved_user(shared_tunnel.port, server, bounds=bounds) as user,
            contextlib.ExitStack() as stack,
        ):
            for _ in range(ATTACKERS):
                stack.enter_context(dial(shared_tunnel.server_port))
            wait_until(lambda: server.status()["logins"] == ATTACKERS, "all are logging in")
            looks = user.looks
            wait_until(lambda: user.looks > looks + 1, "the server has been looked at since")

    with pytest.raises(AssertionError, match="server opened more than 25 descriptors"):
        attack()


def test_user_who_is_cut_off_is_found(plain_tunnels: Tunnels) -> None:
    def attack() -> None:
        with uninvolved_user(tunnel.port, tunnel.server):
            tunnel.client.kill()

    tunnel = Tunnel(plain_tunnels, echo)
    with pytest.raises(AssertionError, match="the user was cut off"):
        attack()
    tunnel.service.stop()
