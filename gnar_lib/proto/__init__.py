"""The protocol: `send(conn, message)` and `recv(conn)` on any conn; knows neither server nor client."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.proto import packet
from gnar_lib.proto.announcing import announcement, exchange_of
from gnar_lib.proto.msg import (
    Challenge,
    Exchange,
    Heartbeat,
    Login,
    Message,
    Proof,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    UDPDatagram,
    Welcome,
    from_frame,
    to_frame,
)

if TYPE_CHECKING:  # `health` speaks the protocol without loading gevent
    from gnar_lib.net import Conn

__all__ = [
    "Challenge",
    "Exchange",
    "Heartbeat",
    "Login",
    "Message",
    "Proof",
    "ProxyCancel",
    "ProxyReq",
    "ProxyResp",
    "UDPDatagram",
    "Welcome",
    "announcement",
    "expect",
    "recv",
    "send",
    "to_frame",
]

_READ_BYTES = 4096  # several frames of the usual size; bytes behind the first frame go back into the conn

M = TypeVar("M", bound=Message)


def send(conn: Conn, message: Message) -> None:
    """Send one message; raises `ConnError`, or `MessageTooLongError` before any byte is sent."""
    conn.sendall(to_frame(message))


def recv(conn: Conn, max_bytes: int = packet.HEADER.size + packet.MAX_BODY_BYTES) -> Message:
    """Wait for one message and return it; the bytes behind it stay in the conn.

    Raises `ProtocolError` if what comes is no message or is larger than `max_bytes`, `ConnClosed` if the
    stream ends, or another `ConnError`.
    """
    data = conn.recv(_READ_BYTES)
    while (size := packet.frame_size(data)) is None or len(data) < size:
        if size is not None and size > max_bytes:
            raise ProtocolError(f"a frame of {size} bytes where at most {max_bytes} are allowed")
        more = conn.recv(_READ_BYTES if size is None else size - len(data)) if data else b""
        if not more:
            raise ConnClosed("the peer closed the connection" + (" inside a message" if data else ""))
        data += more
    if size > max_bytes:
        raise ProtocolError(f"a frame of {size} bytes where at most {max_bytes} are allowed")
    if len(data) > size:
        conn.unread(data[size:])
        data = data[:size]
    return exchange_of(data) if data[0] == packet.PacketType.EXCHANGE else from_frame(data)


def expect(conn: Conn, kind: type[M], max_bytes: int = packet.HEADER.size + packet.MAX_BODY_BYTES) -> M:
    """Wait for one message and return it; as `recv`, and raises `ProtocolError` for another kind."""
    message = recv(conn, max_bytes)
    if not isinstance(message, kind):
        raise ProtocolError(f"{type(message).__name__} where {kind.__name__} was expected")
    return message
