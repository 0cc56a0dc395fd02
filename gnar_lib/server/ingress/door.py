"""Those who begin with HTTP on the control port: clients that come by WebSocket, users of names, people.

Knows no login.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

from gnar_lib.config.model import HEALTH_PATH
from gnar_lib.errors import ConnClosed, DeadlineError, WriteError
from gnar_lib.http.head import HeadBuffer
from gnar_lib.http.heads import RequestToPass, read_request
from gnar_lib.http.limits import Limits
from gnar_lib.http.message import HTTPError, phrase
from gnar_lib.net import EventedConn, SocketConn, deadline
from gnar_lib.server.shared import Shared
from gnar_lib.transport.refusal import see_off

PIECE_BYTES: Final = 4096
HEAD_S: Final = 8.0  # then whoever is slow waits among users, or is told so
_HEALTHY: Final = "ok"
_PAGE: Final = (
    "This is a gnar server. Programs come here, by gnar client -s and this address. There is no page to see."
)
_HEAD: Final = (
    "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n"
    "Cache-Control: no-store\r\n{fields}\r\n\r\n"
)
_OK, _NOT_FOUND, _UPGRADE_REQUIRED = 200, 404, 426
_CLOSE = "Connection: close"
_UPGRADE = "Upgrade: websocket\r\nConnection: close, upgrade"  # RFC 9110, section 15.5.22


class Web(Protocol):
    """Serves users of names, where the server has names."""

    @property
    def has_control_port(self) -> bool:
        """Whether users may come to the control port."""

    @property
    def limits(self) -> Limits:
        """The bounds of a request."""

    def has_name(self, host: str) -> bool:
        """Tell whether a request at the control port is a user's, by its host."""

    def take(self, conn: EventedConn, scheme: str) -> None:
        """Serve a user who has come to the control port, in a greenlet of its own; closes the conn."""

    def takes_tls(self, conn: SocketConn, host: str) -> bool:
        """Tell whether TLS for a host is for a proxy that ends TLS itself; if so, serve and close `conn`."""


class ControlDoor:
    """Takes those who begin with TLS or HTTP, and may be no clients.

    A user's request is that of a host that is somebody's name, whatever its path. Where the server has names,
    users get what is nothing else here, too, since their pages say what is wrong.
    """

    def __init__(self, shared: Shared, web: Web) -> None:
        self._shared = shared
        self._web = web

    def takes_tls(self, conn: SocketConn, host: str) -> bool:
        """Tell whether TLS for a host is for a proxy that ends TLS itself; if so, serve and close `conn`."""
        return self._web.takes_tls(conn, host)

    def open(self, conn: EventedConn, scheme: str) -> EventedConn | None:
        """Return the WebSocket of a client; None if somebody else has come, whose conn is taken over.

        Raises `ConnError` or `ProtocolError`.
        """
        buffer, head, request = HeadBuffer(self._web.limits), b"", None
        error = HTTPError(_NOT_FOUND, _PAGE)
        try:
            head = _receive_head(conn, buffer)
            request = read_request(head, self._web.limits)
        except HTTPError as exc:
            error = exc
        rest = bytes(buffer.received)
        if request is not None and not self._web.has_name(request.host):
            is_for_clients = request.path == self._shared.config.ws_path
            if is_for_clients and request.upgrade:
                from gnar_lib.transport.websocket import WebSocketConn

                conn.unread(rest)
                return WebSocketConn.accept(conn, head)
            if is_for_clients and not self._web.has_control_port:
                # A person, or a client of whose request something in between has left out what matters.
                _answer(conn, request, _UPGRADE_REQUIRED, _PAGE, _UPGRADE)
                return None
            if request.path == HEALTH_PATH and request.method in (b"GET", b"HEAD"):
                _answer(conn, request, _OK, _HEALTHY)
                return None
        if self._web.has_control_port:
            conn.unread(head + rest)
            self._web.take(conn, scheme)
        else:
            _answer(conn, request, error.status, str(error))
        return None


def _receive_head(conn: EventedConn, buffer: HeadBuffer) -> bytes:
    """Return the head of a request; what came behind it, or instead of it, stays in `buffer`.

    Raises `HTTPError` or `ConnError`.
    """
    try:
        with deadline(HEAD_S, f"{conn}: the head of a request"):
            while (head := buffer.take()) is None:
                if not (more := conn.recv(PIECE_BYTES)):
                    raise ConnClosed(f"{conn}: the other end has gone before the end of a request")
                buffer.received += more
    except DeadlineError:
        raise HTTPError(408, "the head of the request took too long") from None
    return head


def _answer(
    conn: EventedConn, request: RequestToPass | None, status: int, text: str, fields: str = _CLOSE
) -> None:
    """Answer whoever has sent a request, see the peer off, and close the conn."""
    body = f"{text}\n".encode()
    head = _HEAD.format(status=status, phrase=phrase(status), length=len(body), fields=fields).encode()
    is_for_head = request is not None and request.method == b"HEAD"
    with suppress(WriteError):
        conn.send_now(head if is_for_head else head + body)
    see_off(conn)
    conn.close()
