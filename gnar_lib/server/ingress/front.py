"""What comes in front of a login on the control port: the PROXY protocol, TLS, a WebSocket.

Knows neither logins nor clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from gnar_lib.errors import ConnClosed
from gnar_lib.http.share import handshakes
from gnar_lib.net import EventedConn, SocketConn, network_of
from gnar_lib.transport.first import First, first_of
from gnar_lib.transport.peek import host_in_hello

if TYPE_CHECKING:
    from gnar_lib.transport.certificates import Certificates

PIECE_BYTES: Final = 4096

# What may be next behind each layer. Whatever else comes is left to the login, which says what is wrong.
_AT_FIRST: Final = frozenset({First.PROXY, First.TLS, First.HTTP})
_BEHIND_HEADER: Final = frozenset({First.TLS, First.HTTP})
_BEHIND_TLS: Final = frozenset({First.HTTP})
_BEHIND_WEBSOCKET: Final = frozenset({First.TLS})
_NOTHING: Final[frozenset[First]] = frozenset()


class Door(Protocol):
    """Takes those who begin with TLS or HTTP and may be no clients."""

    def takes_tls(self, conn: SocketConn, host: str) -> bool:
        """Tell whether TLS for a host is for a proxy that ends TLS itself; if so, serve and close `conn`."""

    def open(self, conn: EventedConn, scheme: str) -> EventedConn | None:
        """Return the WebSocket of a client; None if somebody else has come, whose conn is taken over.

        Raises `ConnError` or `ProtocolError`.
        """


class Front:
    """Goes through the layers of a connection until a login is next.

    `certificates` is None where this Python has no TLS. `receive_header` takes the header of the PROXY
    protocol off a conn, or raises `ProtocolError`. Nothing here has a deadline: `in_progress` closes
    connections that take too long.
    """

    def __init__(
        self, certificates: Certificates | None, receive_header: Callable[[SocketConn], None], door: Door
    ) -> None:
        self._certificates = certificates
        self._receive_header = receive_header
        self._door = door

    def open(self, bottom: SocketConn) -> EventedConn | None:
        """Return the conn on which a login is next; None if somebody else has come, whose conn is taken over.

        Closing the conn closes `bottom`, too. Raises `ConnError` or `ProtocolError`; the caller closes
        `bottom` then.
        """
        layers: list[EventedConn] = [bottom]
        try:
            return layers[-1] if self._go_through(bottom, layers) else None
        except BaseException:
            layers[-1].close()  # a layer may be known elsewhere, as a WebSocket is in its rota
            raise

    def _go_through(self, bottom: SocketConn, layers: list[EventedConn]) -> bool:
        """Put each layer behind the others; tell whether a login is next on the last one."""
        expected, scheme = _AT_FIRST, "http"
        while (first := _first_of(layers[-1])) in expected:
            conn = layers[-1]
            match first:
                case First.PROXY:
                    self._receive_header(bottom)
                    expected = _BEHIND_HEADER
                case First.HTTP:
                    socket = self._door.open(conn, scheme)
                    if socket is None:
                        return False
                    layers.append(socket)
                    expected = _BEHIND_WEBSOCKET
                case First.TLS:
                    host = host_in_hello(conn)
                    if conn is bottom and self._door.takes_tls(bottom, host):
                        return False
                    if self._certificates is None:
                        break
                    layers.append(_encrypt(conn, self._certificates))
                    scheme = "https"
                    expected = _NOTHING if expected is _BEHIND_WEBSOCKET else _BEHIND_TLS
        return True


def _encrypt(conn: EventedConn, certificates: Certificates) -> EventedConn:
    """Shake hands with a client whose ClientHello is there, in a turn that its network gets for that."""
    from gnar_lib.transport.tls import TlsConn

    handshakes.take(network_of(conn.getpeername()))
    return TlsConn.accept(conn, certificates.context)


def _first_of(conn: EventedConn) -> First:
    """Return what comes next on a conn, which stays there; raises `ConnClosed`."""
    data = b""
    while (first := first_of(data)) is None:
        if not (more := conn.recv(PIECE_BYTES)):
            raise ConnClosed(f"{conn}: the other end has gone before a login")
        data += more
    conn.unread(data)
    return first


def certificate_of(conn: EventedConn) -> str:
    """Return the SHA-256, in hex, of the certificate that this end has shown on a conn; empty without TLS."""
    return str(getattr(conn, "certificate", ""))
