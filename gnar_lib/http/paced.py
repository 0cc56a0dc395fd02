"""A conn whose greenlet queues for its turn after each wait for the peer; knows no HTTP."""

from __future__ import annotations

from typing import Protocol

from gnar_lib.http.share import share
from gnar_lib.net import SocketConn, network_of

PIECE_BYTES = 64 * 1024  # that are sent in one turn


class Wire(Protocol):
    """What a codec needs of a conn."""

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""


class PacedConn:
    """A conn of a service. What its greenlet does is done in a turn of `share`."""

    def __init__(self, conn: SocketConn) -> None:
        self._conn = conn
        self._network = network_of(conn.getpeername())

    def __str__(self) -> str:
        return str(self._conn)

    def take_turn(self) -> None:
        """Wait for a turn."""
        share.take(self._network)

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        while (data := self._conn.recv_now(size)) is None:
            self._conn.wait_readable()
            self.take_turn()
        return data

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""
        rest = memoryview(data)
        rest = rest[self._conn.send_now(rest[:PIECE_BYTES]) :]
        while rest:
            self._conn.wait_writable()
            self.take_turn()
            rest = rest[self._conn.send_now(rest[:PIECE_BYTES]) :]
