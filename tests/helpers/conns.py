"""Pairs of conns in this process, and calls that wait."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.hub import get_hub

from gnar_lib.errors import ConnError
from gnar_lib.net import Conn, Listener, SocketConn, dial, listen
from tests.helpers.loop import turn

TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
BLACKHOLE = "192.0.2.1"  # an address that no host has (RFC 5737)
MIB = 1 << 20
V4 = socket.AF_INET


def accept(listener: Listener) -> SocketConn:
    """Wait for one conn on a listener that does not serve, and return the conn; the caller closes it."""
    while (conn := listener._accept_one()) is None:
        get_hub().wait(listener._watcher)
    return conn


@contextmanager
def blackhole() -> Iterator[tuple[str, int]]:
    """Yield an address on loopback that answers no attempt to connect: the backlog is full."""
    with socket.socket() as full:
        full.bind((LOOPBACK, 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()
        for filler in fillers:
            filler.close()


@contextmanager
def listening_on_v6_alone() -> Iterator[Listener]:
    """Listen on ::1 alone, as Vite does on Node 17; 127.0.0.1 refuses. Skips the test without IPv6."""
    with socket.socket() as refusing:
        refusing.bind((LOOPBACK, 0))
        try:
            listener = listen("::1", refusing.getsockname()[1])
        except ConnError as exc:
            pytest.skip(f"no listener on ::1: {exc}")
        yield listener
        listener.close()


def tcp_pair() -> tuple[SocketConn, SocketConn]:
    """Return both ends of a connection over loopback, the dialling one first; the caller closes both."""
    listener = listen(LOOPBACK, 0)
    near = dial(V4, listener.sock.getsockname())
    far = accept(listener)
    listener.close()
    return near, far


def unix_pair() -> tuple[SocketConn, SocketConn]:
    """Return both ends of a Unix socket pair; the caller closes both."""
    near, far = socket.socketpair()
    return SocketConn(near), SocketConn(far)


Pair = tuple[SocketConn, SocketConn]


class Waiter:
    """Calls a function that has to wait, in a greenlet of its own, and keeps its result or its ConnError."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._greenlet = gevent.spawn(self._run, call)
        turn()
        assert not self._greenlet.ready(), "it was to wait"

    @staticmethod
    def _run(call: Callable[[], object]) -> object:
        try:
            return call()
        except ConnError as exc:
            return exc

    def result(self) -> object:
        """Wait for the end of the call, and return its result or its ConnError."""
        return self._greenlet.get()


def read_all(conn: Conn) -> bytes:
    """Read to the end of the stream."""
    data = bytearray()
    while more := conn.recv(1 << 16):
        data += more
    return bytes(data)
