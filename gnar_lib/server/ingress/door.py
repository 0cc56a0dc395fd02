"""Those who begin with HTTP on the control port: clients that come by WebSocket, and people."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.http.head import HeadBuffer
from gnar_lib.http.heads import read_request
from gnar_lib.http.limits import Limits
from gnar_lib.http.message import HTTPError, phrase
from gnar_lib.net import EventedConn, SocketConn, deadline
from gnar_lib.server.shared import Shared

PIECE_BYTES: Final = 4096
LINGER_S: Final = 1.0  # for whoever has got an answer to hang up
MAX_PIECES: Final = 16  # that are read meanwhile
HEALTH_PATH: Final = "/healthz"
LIMITS: Final = Limits()
_HEALTHY: Final = b"ok\n"
_PAGE: Final = b"This is a gnar server. Its clients come here; there is nothing to see.\n"


class ControlDoor:
    """Takes those who begin with TLS or HTTP, and may be no clients."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def takes_tls(self, conn: SocketConn) -> bool:  # noqa: ARG002
        """Tell whether a ClientHello is for a service that ends TLS itself; if so, serve and close `conn`."""
        return False

    def open(self, conn: EventedConn, scheme: str) -> EventedConn | None:  # noqa: ARG002
        """Return the WebSocket of a client; None if somebody else has come, who has been answered.

        Raises `ConnError` or `ProtocolError`.
        """
        try:
            head, rest = _receive_head(conn)
            request = read_request(head, LIMITS)
        except HTTPError as exc:
            _answer(conn, exc.status, b"%b\n" % str(exc).encode())
            return None
        if request.upgrade and request.path == self._shared.config.ws_path:
            from gnar_lib.transport.websocket import WebSocketConn

            conn.unread(rest)
            return WebSocketConn.accept(conn, head)
        status, text = (200, _HEALTHY) if request.path == HEALTH_PATH else (404, _PAGE)
        _answer(conn, status, text)
        return None


def _receive_head(conn: EventedConn) -> tuple[bytes, bytes]:
    """Return the head of a request, and what came behind it; raises `HTTPError` or `ConnError`."""
    buffer = HeadBuffer(LIMITS)
    while (head := buffer.take()) is None:
        if not (more := conn.recv(PIECE_BYTES)):
            raise ConnClosed(f"{conn}: the other end has gone before the end of a request")
        buffer.received += more
    return head, bytes(buffer.received)


def _answer(conn: EventedConn, status: int, text: bytes) -> None:
    """Answer, and wait a moment until the peer hangs up: with bytes unread, `close` would reset the conn."""
    head = b"HTTP/1.1 %d %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    with suppress(ConnError), deadline(LINGER_S, f"{conn}: an answer"):
        conn.sendall(head % (status, phrase(status).encode(), len(text)) + text)
        conn.shutdown(socket.SHUT_WR)
        for _ in range(MAX_PIECES):
            if not conn.recv(PIECE_BYTES):
                break
    conn.close()
