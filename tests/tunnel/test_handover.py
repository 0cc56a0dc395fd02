"""No user is refused while a server or a client is replaced, and nobody who is there loses anything."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers.harness import Service, Tunnels, dial, echo, free_port, is_open, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Users:
    """Users who come one after the other, each of whom wants one answer; `failed` has the errors."""

    def __init__(self, port: int) -> None:
        self.served = 0
        self.failed: list[str] = []
        self._port = port
        self._is_over = False
        self._thread = threading.Thread(target=self._come)
        self._thread.start()

    def _come(self) -> None:
        while not self._is_over:
            try:
                with dial(self._port) as user:
                    user.sendall(b"hello")
                    assert user.recv(5) == b"hello", "closed without an answer"
                self.served += 1
            except (OSError, AssertionError) as exc:
                self.failed.append(f"after {self.served}: {exc!r}")

    def wait_served(self, count: int) -> None:
        """Wait until so many more have been served."""
        wanted = self.served + count
        wait_until(lambda: self.served >= wanted or bool(self.failed), f"{count} more users are served")

    def end(self) -> None:
        self._is_over = True
        self._thread.join()


@contextlib.contextmanager
def users_at(port: int) -> Iterator[Users]:
    """Have users come during the block, none of whom may fail."""
    users = Users(port)
    try:
        users.wait_served(5)
        yield users
        users.wait_served(5)
    finally:
        users.end()
    assert users.failed == []


def served(user: socket.socket) -> bool:
    """Tell whether an echo service answers a user who has been there for a while."""
    user.sendall(b"still")
    return user.recv(5) == b"still"


def test_server_is_replaced_without_refusing_a_user_and_those_who_are_there_stay(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        old, server_port = tunnels.server()
        client, port = tunnels.client(server_port, "-l", str(service.port), "-r", str(free_port()))
        with dial(port) as before, users_at(port) as users:
            assert served(before)
            new, _ = tunnels.server("--replace", port=server_port)
            client.wait_log("connected to", count=2)
            users.wait_served(5)
            assert served(before)
            assert old.process.poll() is None
            status = new.status()
            assert (status["clients"], status["proxies"]) == (1, 1)
        assert old.wait_exit() == 0
        assert "trying again" not in client.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_users_of_a_client_that_stops_stay_although_the_server_is_replaced_meanwhile(
    tunnels: Tunnels, number: signal.Signals
) -> None:
    with Service(echo) as service:
        old, server_port = tunnels.server()
        client, port = tunnels.client(server_port, "-l", str(service.port), "--grace", "60")
        with dial(port) as user:
            assert served(user)
            client.signal(number)
            client.wait_log("waiting up to")
            new, _ = tunnels.server("--replace", port=server_port)
            old.wait_log("takes over")
            time.sleep(1.0)  # more than a client takes to lose a connection
            assert served(user)
            assert new.process.poll() is None
        assert client.wait_exit() == 0


def test_client_is_restarted_without_refusing_a_user_and_old_users_stay_with_it(tunnels: Tunnels) -> None:
    with Service(echo) as service:
        _, server_port = tunnels.server()
        forwarded = ("-l", str(service.port), "-r", str(free_port()))
        old, port = tunnels.client(server_port, *forwarded)
        with dial(port) as idle, users_at(port) as users:
            assert served(idle)
            old.signal(signal.SIGTERM)
            old.wait_log("waiting up to")
            successor, _ = tunnels.client(server_port, *forwarded)
            users.wait_served(5)
            assert "taken" not in successor.log
            assert served(idle)
            assert old.process.poll() is None
        assert old.wait_exit() == 0
        assert successor.stop() == 0
        assert is_open(port)  # for the next one
