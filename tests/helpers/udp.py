"""UDP services and users in threads, for tests with real processes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

import pytest

from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Tunnels,
)

# For tests that take much of the processor's time, or find with one way what they find with the other.
plain_is_slow = pytest.mark.parametrize(
    "tunnels",
    [pytest.param((), marks=pytest.mark.slow, id="plain"), pytest.param(("-m",), id="multiplexed")],
    indirect=True,
)


class UdpService:
    """A UDP service in a thread: answers each datagram with `answer(datagram)`, and notes its sender."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda data: data, port: int = 0) -> None:
        self.sock = udp_socket(port)
        self.port = int(self.sock.getsockname()[1])
        self.peers: list[tuple[str, int]] = []
        self._answer = answer
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_ending.is_set():
            if select.select([self.sock], [], [], 0.05)[0]:
                data, peer = self.sock.recvfrom(65536)
                if peer not in self.peers[-1:]:
                    self.peers.append(peer)
                with contextlib.suppress(OSError):
                    self.sock.sendto(self._answer(data), peer)

    def __enter__(self) -> UdpService:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        self._thread.join(WAIT_S)
        self.sock.close()


def udp_socket(port: int = 0, host: str = LOOPBACK, timeout_s: float = WAIT_S) -> socket.socket:
    """Return a bound UDP socket with a large receive buffer, which the caller closes."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((host, port))
    sock.settimeout(timeout_s)
    return sock


def user_of(port: int, host: str = LOOPBACK, timeout_s: float = WAIT_S) -> socket.socket:
    """Return a user's socket that is connected, so that only answers from that address are received."""
    sock = udp_socket(0, "::1" if ":" in host else LOOPBACK, timeout_s)
    sock.connect((host, port))
    return sock


def ask_udp(port: int, question: bytes = b"ping", host: str = LOOPBACK) -> bytes:
    """Send a question until there is an answer, and return the answer; UDP may lose either."""
    with user_of(port, host, 0.2) as user:
        for _ in range(int(WAIT_S / 0.2)):
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                user.send(question)
                return user.recv(65536)
    raise AssertionError(f"no answer from port {port}")


def echoes_of_users(port: int, count: int) -> int:
    """Have `count` users send one datagram each, and return how many get their own datagram back."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(user_of(port)) for _ in range(count)]
        for number, user in enumerate(users):
            user.send(b"%d" % number)
        return sum(user.recv(100) == b"%d" % number for number, user in enumerate(users))


def is_bound(port: int) -> bool:
    """Tell whether a UDP port of loopback is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


class UdpTunnel:
    """A server and a client with one UDP proxy."""

    def __init__(self, tunnels: Tunnels, local_port: int, *flags: str) -> None:
        self.server, self.server_port = tunnels.server()
        mapping = ("-y", "udp", "-l", str(local_port), "-r", "0")
        self.client, self.port = tunnels.client(self.server_port, *mapping, *flags)
        assert ask_udp(self.port, b"ready?")


def answered(user: socket.socket) -> bool:
    """Send datagrams until there is an answer; tells whether the answer is the question."""
    for _ in range(100):
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            user.send(b"ping")
            return user.recv(100) == b"ping"
    return False
