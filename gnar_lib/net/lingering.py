"""Resets conns as soon as the peer has what was sent before, which a reset at once would throw away (Linux).

The kernel offers an end without loss, which a peer takes for the end of the whole, or a reset that discards
what has not arrived. So the socket of a conn that is to be reset stays open for a moment.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from time import monotonic
from typing import Any

from gevent.hub import get_hub

from gnar_lib.net.descriptors import descriptors
from gnar_lib.net.progress import tcp_progress, unacknowledged

LINGER_S = 10.0  # for a peer that does not acknowledge
MAX_LINGERING = 128  # sockets; past that, the one that lingers longest is reset
LOOK_EVERY_S = 0.02


class _Lingering:
    """The sockets that are still open for their peers' sake; each will be reset by its `close`."""

    def __init__(self) -> None:
        self._sockets: deque[tuple[float, socket.socket]] = deque()  # with the time at which patience ends
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, sock: socket.socket) -> None:
        """Keep a socket, which has been told to reset when it is closed, until its peer has everything."""
        if len(self._sockets) >= MAX_LINGERING:
            self._close(self._sockets.popleft()[1])
        self._sockets.append((monotonic() + LINGER_S, sock))
        descriptors.taken += 1
        if self._timer is None:
            self._timer = get_hub().loop.timer(LOOK_EVERY_S, LOOK_EVERY_S)
            self._timer.start(self._look)

    def _look(self) -> None:
        now_s = monotonic()
        for _ in range(len(self._sockets)):
            until_s, sock = self._sockets.popleft()
            if is_owed(sock) and now_s < until_s:
                self._sockets.append((until_s, sock))
            else:
                self._close(sock)
        if not self._sockets:
            self._timer.stop()
            self._timer = None

    @staticmethod
    def _close(sock: socket.socket) -> None:
        sock.close()
        descriptors.taken -= 1


lingering = _Lingering()


def is_owed(sock: socket.socket) -> bool:
    """Tell whether a peer that is still there has yet to acknowledge what this socket has been given."""
    progress = tcp_progress(sock)
    try:
        return progress is not None and not progress.is_closed and unacknowledged(sock) > 0
    except OSError:
        return False


def linger(sock: socket.socket) -> None:
    """Keep the connection of `sock` open beyond its `close` for as long as the peer is owed something."""
    if not descriptors.has_room(1):
        return
    try:
        copy = type(sock)(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))
    except OSError:  # no descriptor left
        return
    lingering.add(copy)
