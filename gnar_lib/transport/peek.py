"""Looks at the first message of TLS on a conn, and leaves it there; knows not who serves the conn."""

from __future__ import annotations

from typing import Final

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.net import EventedConn
from gnar_lib.transport.hello import server_name

PIECE_BYTES: Final = 4096
MAX_PIECES: Final = 256  # each is read with those before it, so that single bytes would take long


def host_in_hello(conn: EventedConn) -> str:
    """Return the host that a client wants whose ClientHello comes, in lower case; the message stays unread.

    Empty if the client names none, or if what comes is no ClientHello: the handshake says what is wrong then.
    Raises `ConnClosed` if the end comes first, or far too many pieces. The caller has a deadline around this.
    """
    data, name = b"", None
    try:
        for _ in range(MAX_PIECES):
            if (name := server_name(data)) is not None:
                break
            if not (more := conn.recv(PIECE_BYTES)):
                break
            data += more
    except ProtocolError:
        name = ""
    if name is None:
        raise ConnClosed(f"{conn}: the other end has gone before the handshake of TLS")
    conn.unread(data)
    return name
