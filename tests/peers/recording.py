"""Recorded conversations of the Go program over TCP, and what both roles of a replay need."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from gnar_lib import auth
from gnar_lib.config import Secret, ServerConfig
from gnar_lib.errors import ConnError
from gnar_lib.net import Listener, SocketConn, deadline
from gnar_lib.proto import packet
from gnar_lib.server.serve import Server
from tests.helpers.conns import accept

PLAIN_TCP = ["go-2023-tcp", "go-2024-tcp"]
RECORDED_PORT = b"19001"
TOKEN = Secret("s3cret")
TIMEOUT_S = 20.0
HEARTBEAT = b"\x02\x00\x02{}"
HELLO, ECHOED = b"hello", b"echo:hello"  # what the recorded user said, and what the service answered
LOGIN, PROXY_RESP, CANCEL, EXCHANGE = 0x01, 0x04, 0x05, 0x06
MULTIPLEXED = "go-2024-tcp-multiplex"
LOOPBACK = "127.0.0.1"
WIRE = Path(__file__).resolve().parent.parent / "wire"
CONTROL_STREAM = 1


@dataclass(frozen=True)
class Chunk:
    """What one read returned when the conversation was recorded; empty data is the end of the stream."""

    conn: int
    source: str
    data: bytes


def load(name: str) -> list[Chunk]:
    """Return the chunks of a recording in tests/wire."""
    rows = json.loads((WIRE / f"{name}.json").read_text())
    return [Chunk(row["conn"], row["from"], bytes.fromhex(row["hex"])) for row in rows]


def frames_of(data: bytes) -> list[bytes]:
    """Split data into its frames; bytes behind the last frame are one more item."""
    found: list[bytes] = []
    while data:
        if data[0] not in {*map(int, packet.PacketType)}:
            return [*found, data]
        size = 3 + int.from_bytes(data[1:3], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def body_of(frame: bytes) -> dict[str, object]:
    """Return the fields of a frame."""
    body: dict[str, object] = json.loads(frame[3:])
    return body


def frame_like(frame: bytes, **changed: object) -> bytes:
    """Return a copy of a frame in which some fields have other values."""
    body = json.dumps(body_of(frame) | changed, separators=(",", ":")).encode()
    return packet.HEADER.pack(frame[0], len(body)) + body


def recv_exactly(conn: SocketConn, size: int) -> bytes:
    """Receive so many bytes; fails the test if the stream ends before."""
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        assert more, f"the stream ended behind {data!r}"
        data += more
    return data


def recv_frame(conn: SocketConn) -> bytes:
    """Return the next frame, header included."""
    head = recv_exactly(conn, 3)
    return head + recv_exactly(conn, int.from_bytes(head[1:], "big"))


def recv_frame_but_heartbeats(conn: SocketConn) -> bytes:
    """Return the next frame that is not a heartbeat."""
    while (frame := recv_frame(conn)) == HEARTBEAT:
        pass
    return frame


def read_to_the_end(conn: SocketConn) -> bytes:
    """Read to the end of the stream, be it a reset."""
    data = b""
    try:
        while more := conn.recv(65536):
            data += more
    except ConnError:
        pass
    return data


@contextmanager
def our_server(monkeypatch: pytest.MonkeyPatch, now: float) -> Iterator[tuple[Server, int]]:
    """Run a server for which every login comes at the time of a recording."""
    monkeypatch.setattr(auth, "ServerLogin", partial(auth.ServerLogin, clock=lambda: now))
    server = Server(ServerConfig(port=0, bind=LOOPBACK, token=TOKEN))
    port = server.start()
    try:
        with deadline(TIMEOUT_S, "the test"):
            yield server, port
    finally:
        server.stop_listening()
        server.close()
        assert server.shared.users.wait_empty(TIMEOUT_S)
        assert server.shared.crew.wait_empty(TIMEOUT_S)


def time_of(chunks: list[Chunk]) -> float:
    """Return the time of the recorded login, in seconds."""
    timestamp = body_of(frames_of(chunks[0].data)[0])["timestamp"]
    assert isinstance(timestamp, int)
    return float(timestamp)


def as_recorded(frame: bytes, recorded: bytes, port: int) -> bytes:
    """Return a frame of our client in which the fields that must differ have the recording's values.

    Fields that a Go server does not know are left out, since it ignores them.
    """
    if frame[0] != LOGIN:
        return frame.replace(b"%d" % port, RECORDED_PORT)
    ours, theirs = body_of(frame), body_of(recorded)
    assert str(ours["version"]).startswith("gnar-py/")
    timestamp = ours["timestamp"]
    assert isinstance(timestamp, int)
    assert ours["token"] == auth.md5_token(TOKEN, timestamp)
    assert abs(timestamp - time.time()) < TIMEOUT_S
    kept = {"client_version" if key == "version" and key not in theirs else key: ours[key] for key in ours}
    assert [key for key in kept if key in theirs] == [*theirs]
    return recorded


def answer(service: Listener) -> None:
    """Accept one user, and answer as the recorded service did."""
    conn = accept(service)
    conn.sendall(b"echo:" + conn.recv(100))
    assert read_to_the_end(conn) == b""
    conn.close()
