"""Pairs of connected conns."""

from __future__ import annotations

import socket

from gnar_lib.net import SocketConn, dial, listen

LOOPBACK = "127.0.0.1"


def tcp_pair() -> tuple[SocketConn, SocketConn]:
    """Return both ends of a connection over loopback, the dialling one first; the caller closes both."""
    listener = listen(LOOPBACK, 0)
    near = dial(socket.AF_INET, listener.getsockname())
    far = listener.accept()
    listener.close()
    return near, far
