"""A WebSocket over a conn, for either end: binary messages carry a stream of bytes; knows not which.

wsproto does the handshake and the frames (RFC 6455). One core masks and writes 700 MB/s in frames of 16 KiB,
and reads as many, under CPython 3.11; without masks, as a server sends, it is three times as much. A tunnel
with TLS inside takes a third of a core at each end for 1 Gbit/s (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gnar_lib.errors import ConnClosed, WriteError
from gnar_lib.net import EventedConn
from gnar_lib.net.rota import Rota
from gnar_lib.transport.layer import LayeredConn
from gnar_lib.transport.refusal import see_off
from gnar_lib.transport.ws_engine import WebSocketEngine
from gnar_lib.transport.ws_handshake import Asking, RefusedError, answer_to

PING_S: Final = 20.0  # within which something is sent: CDNs and proxies cut an idle connection after 60-100 s
_READ_BYTES: Final = 4096


def _look_every_s() -> float:
    """Return the seconds between two looks at a WebSocket, of which the second may find it silent."""
    return PING_S / 2


_rota = Rota(_look_every_s)  # of all WebSockets: the process has one loop


class WebSocketConn(LayeredConn[WebSocketEngine]):
    """A conn whose bytes travel as binary messages of a WebSocket. Fulfils `EventedConn`, which describes it.

    The end of the stream is Close with the status 1000; the conn below stays open then, since programs in
    between would take its end for the end of both directions. `close` and `abort` close the conn below, too.
    The end of the conn below without Close is an error. A message of text is an error, too.
    """

    __slots__ = ()

    _NAME = "the WebSocket"

    def __init__(self, conn: EventedConn, engine: WebSocketEngine) -> None:
        super().__init__(conn, engine)
        _rota.add(self)

    @classmethod
    def connect(cls, conn: EventedConn, host: str, path: str, *, is_tls: bool) -> WebSocketConn:
        """Ask a server for a WebSocket, and return the conn to it.

        `host` is the server's as Host names it, with the port where that is not the usual one; `is_tls`:
        there is TLS below. Raises `DialError`, with one line that says what the server answers instead, or
        `ConnError`. The caller has a deadline around this, and closes `conn` then.
        """
        asking = Asking(host, path, is_tls=is_tls)
        conn.sendall(asking.request)
        data = bytearray()
        while not (size := asking.head_size(data)):
            if not (more := conn.recv(_READ_BYTES)):
                raise ConnClosed(f"{conn}: the other end has gone before its answer about a WebSocket")
            data += more
        asking.check(bytes(data[:size]))
        engine = WebSocketEngine(is_client=True)
        engine.receive(bytes(data[size:]))
        return cls(conn, engine)

    @classmethod
    def accept(cls, conn: EventedConn, head: bytes) -> WebSocketConn:
        """Answer a client that has asked for a WebSocket, and return the conn to it.

        `head` is the head of its request; what has come behind that was put back. Raises `ProtocolError`,
        behind an answer that says why, or `ConnError`. The caller has a deadline around this, and closes
        `conn` then.
        """
        try:
            answer = answer_to(head)
        except RefusedError as exc:
            with suppress(WriteError):
                conn.send_now(exc.answer)
            see_off(conn)
            raise
        conn.sendall(answer)
        return cls(conn, WebSocketEngine(is_client=False))

    def tick(self, _now_s: float) -> None:
        """Send Ping if nothing was sent for a while; runs in the hub."""
        self._engine.look()
        if self._engine.made.pending:
            self._flush_if_possible()

    def _half_close_below(self) -> None:
        """Leave the conn below open: see the class."""

    def _close(self, close_below: Callable[[], None]) -> None:
        _rota.discard(self)
        super()._close(close_below)
