"""Recorded conversations of the Go programs over UDP, and peers over plain sockets that replay them."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import time
from pathlib import Path

from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
)

WIRE = Path(__file__).resolve().parent.parent / "wire"
RECORDINGS = ["go-2024-udp", "go-2023-udp"]
LOGIN, PROXY_RESP, EXCHANGE, DATAGRAM = 0x01, 0x04, 0x06, 0x07
RECORDED_PORT = b"19001"
GO_TOKEN = "s3cret"


class Recording:
    """A recorded conversation, by connection and by the end that sent."""

    def __init__(self, name: str) -> None:
        self._chunks = json.loads((WIRE / f"{name}.json").read_text())

    def bytes_of(self, conn: int, source: str) -> bytes:
        """Return what an end sent on a connection."""
        return b"".join(
            bytes.fromhex(chunk["hex"])
            for chunk in self._chunks
            if (chunk["conn"], chunk["from"]) == (conn, source)
        )

    def frames(self, conn: int, source: str) -> list[bytes]:
        """Return the frames that an end sent on a connection."""
        data = self.bytes_of(conn, source)
        found = []
        while data:
            size = 3 + int.from_bytes(data[1:3], "big")
            found.append(data[:size])
            data = data[size:]
        return found

    def of_type(self, kind: int, conn: int, source: str) -> list[bytes]:
        """Return the frames of one type that an end sent on a connection."""
        return [frame for frame in self.frames(conn, source) if frame[0] == kind]


def body_of(frame: bytes) -> dict[str, object]:
    """Return the fields of a frame."""
    body: dict[str, object] = json.loads(frame[3:])
    return body


def with_fields(frame: bytes, **changed: object) -> bytes:
    """Return a copy of a frame in which some fields have other values."""
    body = json.dumps(body_of(frame) | changed, separators=(",", ":")).encode()
    return struct.pack(">BH", frame[0], len(body)) + body


def login_of_today(frame: bytes) -> bytes:
    """Return a recorded Login with the present time, which a server checks."""
    now = int(time.time())
    digest = hashlib.md5(f"{GO_TOKEN}{now}".encode(), usedforsecurity=False).hexdigest()
    return with_fields(frame, token=digest, timestamp=now)


def recv_frame(conn: socket.socket) -> bytes:
    """Return the next frame that is not a heartbeat."""
    while True:
        head = recv_exactly(conn, 3)
        frame = head + recv_exactly(conn, int.from_bytes(head[1:], "big"))
        if head[0] != 0x02:
            return frame


def recv_exactly(conn: socket.socket, size: int) -> bytes:
    """Receive so many bytes; fails the test if the stream ends before."""
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        assert more, f"the stream ended behind {data!r}"
        data += more
    return data


def say(port: int, *frames: bytes) -> socket.socket:
    """Connect to a port and send these frames; the caller closes the socket."""
    conn = socket.create_connection((LOOPBACK, port), WAIT_S)
    conn.sendall(b"".join(frames))
    return conn


def accepted(listener: socket.socket) -> socket.socket:
    """Accept a connection; the caller closes the socket."""
    conn, _ = listener.accept()
    conn.settimeout(WAIT_S)
    return conn
