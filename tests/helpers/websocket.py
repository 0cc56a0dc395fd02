"""Pairs of WebSockets in this process, and what their frames hold."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import gevent

from gnar_lib.net import EventedConn
from gnar_lib.transport.websocket import WebSocketConn
from tests.helpers.conns import tcp_pair

PATH = "/gnar"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
HEAD_END = b"\r\n\r\n"


MASK = b"\x01\x80\xfe\x37"
BINARY, TEXT, CLOSE, PING, PONG = 2, 1, 8, 9, 10
LENGTH_BYTES = {126: 2, 127: 8}


def frames_in(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return the first byte, the mask and the payload of each frame; the frames have to be whole."""
    found = []
    while data:
        first, size, data = data[0], data[1], data[2:]
        is_masked, size = bool(size & 0x80), size & 0x7F
        more = LENGTH_BYTES.get(size, 0)
        size, data = (int.from_bytes(data[:more], "big") if more else size), data[more:]
        mask, data = (data[:4], data[4:]) if is_masked else (b"", data)
        payload, data = data[:size], data[size:]
        assert len(payload) == size
        found.append((first, mask, masked(payload, mask)))
    return found


def masked(payload: bytes, mask: bytes) -> bytes:
    """Apply a mask to a payload, or take the mask off."""
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload


def accept_token(request: bytes) -> bytes:
    """Return what the answer to a request has to say as Sec-WebSocket-Accept (RFC 6455, section 4.2.2)."""
    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    return b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324  (the RFC wants it)


def receive_head(conn: EventedConn) -> bytes:
    """Return the head of a request; what has come behind it is put back."""
    data = b""
    while HEAD_END not in data:
        data += conn.recv(4096)
    head, end, rest = data.partition(HEAD_END)
    conn.unread(rest)
    return head + end


def ask(near: EventedConn, far: EventedConn) -> tuple[WebSocketConn, WebSocketConn]:
    """Return the client's end over `near`, and the server's over `far`."""
    server = gevent.spawn(lambda: WebSocketConn.accept(far, receive_head(far)))
    client = WebSocketConn.connect(near, "gnar.example", PATH, is_tls=False)
    return client, server.get()


def websocket_pair() -> tuple[WebSocketConn, WebSocketConn]:
    """Return both ends of a WebSocket over loopback, the client's first; the caller closes both."""
    return ask(*tcp_pair())
