"""Relays and services in this process, and users who ask through them."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gnar_lib import net
from gnar_lib.relay import Relay, Role, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V4, V6 = socket.AF_INET, socket.AF_INET6
TIMEOUT_S = 20.0


class Service:
    """A service that a relay can reach; keeps the conns that it has accepted."""

    def __init__(self, listener: net.Listener, handle: Callable[[net.SocketConn], None]) -> None:
        self.crew = net.Crew("service")
        self.listener = listener
        self.conns: list[net.SocketConn] = []
        self._handle = handle
        listener.serve(self.crew, self._serve)

    @property
    def address(self) -> str:
        """The address of this service as an argument of a relay."""
        name = self.listener.sock.getsockname()
        return f"unix:{name}" if isinstance(name, str) else f"tcp:127.0.0.1:{name[1]}"

    def _serve(self, conn: net.SocketConn) -> None:
        self.conns.append(conn)
        try:
            self._handle(conn)
        finally:
            conn.close()

    def close(self) -> None:
        """Close the listener and every conn."""
        self.listener.close()
        self.crew.kill()
        assert self.crew.wait_empty(TIMEOUT_S)


def read_all(conn: net.Conn) -> bytes:
    """Read to the end of the stream."""
    data = b""
    while got := conn.recv(65536):
        data += got
    return data


def answer_at_the_end(conn: net.SocketConn) -> None:
    """Read to the end of the stream, then answer."""
    conn.sendall(b"answer to " + read_all(conn))


def speak_first(conn: net.SocketConn) -> None:
    """Send all there is to send and shut down writing; then read what the user sends."""
    conn.sendall(b"hello")
    conn.shutdown(socket.SHUT_WR)
    service_heard.append(read_all(conn))


service_heard: list[bytes] = []


@contextmanager
def serving(
    handle: Callable[[net.SocketConn], None] = answer_at_the_end, listener: net.Listener | None = None
) -> Iterator[Service]:
    """Run a service for the block, and close it."""
    service = Service(listener or net.listen("127.0.0.1", 0), handle)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def relaying(listen: str, target: str) -> Iterator[Relay]:
    """Run a relay for the block, close it, and check that it has left nothing."""
    ends: list[int] = []
    running = Relay(
        parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET), lambda: ends.append(1)
    )
    try:
        yield running
    finally:
        running.close()
        running.users.kill()
        assert running.users.wait_empty(TIMEOUT_S)


def dial(running: Relay) -> net.SocketConn:
    """Connect as a user."""
    name = running.listener.sock.getsockname()
    if isinstance(name, str):
        return net.dial(socket.AF_UNIX, name)
    return net.dial(V4, ("127.0.0.1", name[1]))


def ask(running: Relay, question: bytes = b"question") -> bytes:
    """Send a question, shut down writing, and return the answer, as `nc -N` does."""
    user = dial(running)
    try:
        user.sendall(question)
        user.shutdown(socket.SHUT_WR)
        return read_all(user)
    finally:
        user.close()
