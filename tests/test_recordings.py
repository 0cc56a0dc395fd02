"""The recorded conversations of the Go program, replayed byte for byte against our server and our client.

What differs of necessity is set before comparing: the port (a free one, with as many digits), the `conn_id`
that our server makes up, and when a heartbeat comes. The recorded logins are sent as they are: our server's
clock is that of the recording. What a recorded server said to a conn that its client had closed is left out.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gevent
import pytest

from gnar_lib import auth
from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig, Secret, ServerConfig
from gnar_lib.errors import ConnError
from gnar_lib.net import Listener, SocketConn, deadline, dial, listen
from gnar_lib.proto import packet
from gnar_lib.server.serve import Server

WIRE = Path(__file__).with_name("wire")
PLAIN_TCP = ["go-2023-tcp", "go-2024-tcp"]
RECORDED_PORT = b"19001"
TOKEN = Secret("s3cret")
LOOPBACK = "127.0.0.1"
TIMEOUT_S = 20.0
HEARTBEAT = b"\x02\x00\x02{}"
HELLO, ECHOED = b"hello", b"echo:hello"  # what the recorded user said, and what the service answered
LOGIN, PROXY_RESP, EXCHANGE = 0x01, 0x04, 0x06


@dataclass(frozen=True)
class Chunk:
    """What one read from a socket brought when the conversation was recorded; no data is its end."""

    conn: int
    source: str
    data: bytes


def load(name: str) -> list[Chunk]:
    rows = json.loads((WIRE / f"{name}.json").read_text())
    return [Chunk(row["conn"], row["from"], bytes.fromhex(row["hex"])) for row in rows]


def frames_of(data: bytes) -> list[bytes]:
    """Split data into its frames; raw bytes behind the last are one more."""
    found: list[bytes] = []
    while data:
        if data[0] not in {*map(int, packet.PacketType)}:
            return [*found, data]
        size = 3 + int.from_bytes(data[1:3], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def body_of(frame: bytes) -> dict[str, object]:
    body: dict[str, object] = json.loads(frame[3:])
    return body


def frame_like(frame: bytes, **changed: object) -> bytes:
    """Return a frame with some fields set, in the spelling of the wire."""
    body = json.dumps(body_of(frame) | changed, separators=(",", ":")).encode()
    return packet.HEADER.pack(frame[0], len(body)) + body


def free_port_of_5_digits() -> int:
    for port in range(20011, 65000, 7):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not probe.connect_ex((LOOPBACK, port)):
                continue
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def recv_exactly(conn: SocketConn, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        assert more, f"the stream ended behind {data!r}"
        data += more
    return data


def recv_frame(conn: SocketConn) -> bytes:
    head = recv_exactly(conn, 3)
    return head + recv_exactly(conn, int.from_bytes(head[1:], "big"))


def recv_frame_but_heartbeats(conn: SocketConn) -> bytes:
    while (frame := recv_frame(conn)) == HEARTBEAT:
        pass
    return frame


def read_to_the_end(conn: SocketConn) -> bytes:
    data = b""
    try:
        while more := conn.recv(65536):
            data += more
    except ConnError:
        pass
    return data


# ---- our server answers a recorded Go client ---------------------------------------------------------------


class RecordedClient:
    """Sends what the Go client sent, at the points where it did, and compares the answers."""

    def __init__(self, chunks: list[Chunk], server_port: int, proxy_port: int) -> None:
        self._chunks = chunks
        self._server_port = server_port
        self._proxy_port = proxy_port
        self._conns: dict[int, SocketConn] = {}
        self._closed: set[int] = set()
        self._conn_ids: dict[str, str] = {}
        self._user: SocketConn | None = None
        self.compared: list[bytes] = []

    def replay(self) -> None:
        for chunk in self._chunks:
            if chunk.source == "client":
                self._send(chunk)
            elif chunk.conn not in self._closed:
                self._expect(chunk)
        for conn in self._conns.values():
            conn.close()

    def _send(self, chunk: Chunk) -> None:
        conn = self._conns.get(chunk.conn)
        if conn is None:
            conn = self._conns[chunk.conn] = dial(socket.AF_INET, (LOOPBACK, self._server_port))
        if not chunk.data:
            conn.shutdown(socket.SHUT_WR)
            self._closed.add(chunk.conn)
            return
        data = chunk.data.replace(RECORDED_PORT, b"%d" % self._proxy_port)
        for recorded, ours in self._conn_ids.items():
            data = b"".join(
                frame_like(frame, conn_id=ours) if recorded.encode() in frame else frame
                for frame in frames_of(data)
            )
        conn.sendall(data)
        if self._user is not None and data == ECHOED:
            assert recv_exactly(self._user, len(ECHOED)) == ECHOED
            self._user.shutdown(socket.SHUT_WR)

    def _expect(self, chunk: Chunk) -> None:
        conn = self._conns[chunk.conn]
        if not chunk.data:
            assert read_to_the_end(conn) == b""
            return
        for frame in frames_of(chunk.data):
            self.compared.append(frame)
            if frame == HELLO:
                assert recv_exactly(conn, len(frame)) == frame
            elif frame == HEARTBEAT:
                assert recv_frame(conn) == HEARTBEAT
            elif frame[0] == EXCHANGE:
                self._user_comes()
                ours = recv_frame_but_heartbeats(conn)
                conn_id = str(body_of(ours)["conn_id"])
                self._conn_ids[str(body_of(frame)["conn_id"])] = conn_id
                assert ours == frame_like(frame, conn_id=conn_id)
            else:
                assert recv_frame_but_heartbeats(conn) == frame

    def _user_comes(self) -> None:
        self._user = dial(socket.AF_INET, (LOOPBACK, self._proxy_port))
        self._conns[-1] = self._user
        self._user.sendall(HELLO)


@contextmanager
def our_server(monkeypatch: pytest.MonkeyPatch, now: float) -> Iterator[tuple[Server, int]]:
    """Run a server whose clock, as far as logins go, stands at the time of a recording."""
    monkeypatch.setattr(auth, "ServerLogin", partial(auth.ServerLogin, clock=lambda: now))
    server = Server(ServerConfig(port=0, bind=LOOPBACK, token=TOKEN))
    port = server.start()
    try:
        with deadline(TIMEOUT_S, "the test"):
            yield server, port
    finally:
        server.stop_listening()
        server.close()
        assert server.users.wait_empty(TIMEOUT_S)
        assert server.crew.wait_empty(TIMEOUT_S)


def time_of(chunks: list[Chunk]) -> float:
    timestamp = body_of(frames_of(chunks[0].data)[0])["timestamp"]
    assert isinstance(timestamp, int)
    return float(timestamp)


@pytest.mark.parametrize("name", PLAIN_TCP)
def test_our_server_answers_a_recorded_go_client_as_the_go_server_did(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chunks, proxy_port = load(name), free_port_of_5_digits()
    with our_server(monkeypatch, time_of(chunks)) as (server, port):
        client = RecordedClient(chunks, port, proxy_port)
        client.replay()
        assert [frame[0] for frame in client.compared] == [PROXY_RESP, 0x02, EXCHANGE, HELLO[0]]
        while len(server.ports) or len(server.users):
            gevent.sleep(0.01)
        assert len(server.connmap) == 0


@pytest.mark.parametrize("name", PLAIN_TCP)
def test_a_recorded_login_is_refused_past_its_15_minutes_without_a_word(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chunks = load(name)
    with our_server(monkeypatch, time_of(chunks) + auth.MD5_WINDOW_S + 1) as (server, port):
        conn = dial(socket.AF_INET, (LOOPBACK, port))
        conn.sendall(chunks[0].data)
        assert read_to_the_end(conn) == b""
        conn.close()
        assert len(server.ports) == 0


# ---- our client talks to a recorded Go server --------------------------------------------------------------


def as_recorded(frame: bytes, recorded: bytes, port: int) -> bytes:
    """Return a frame of our client with what differs of necessity taken from the recording.

    A Go server ignores the fields that it does not know: they are left out here.
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


class RecordedServer:
    """Says what the Go server said, at the points where it did, and compares what our client sends."""

    def __init__(self, chunks: list[Chunk], listener: Listener, port: int) -> None:
        self._chunks = chunks
        self._listener = listener
        self._port = port
        self._conns: dict[int, SocketConn] = {}
        self.compared = 0

    def replay_until_cancel(self) -> None:
        """Go through the recording up to where the client cancels its proxy and goes."""
        for chunk in self._chunks:
            if chunk.conn == 3:
                return
            if chunk.source == "client":
                self._expect(chunk)
            elif chunk.data:
                self._conns[chunk.conn].sendall(chunk.data.replace(RECORDED_PORT, b"%d" % self._port))
            else:
                self._conns[chunk.conn].shutdown(socket.SHUT_WR)

    def expect_cancel(self) -> None:
        """Take the cancel, on a conn of its own, and say what the Go server says when its listener ends."""
        (cancel,) = (c for c in self._chunks if c.conn == 3 and c.source == "client" and c.data)
        self._expect(cancel)
        assert read_to_the_end(self._conns[3]) == b""
        for chunk in self._chunks[self._chunks.index(cancel) :]:
            if chunk.source == "server" and chunk.conn == 1:
                self._conns[1].sendall(chunk.data)
        self._conns[3].close()

    def close(self) -> None:
        for conn in self._conns.values():
            conn.close()
        self._listener.close()

    def _expect(self, chunk: Chunk) -> None:
        if chunk.conn not in self._conns and chunk.data:
            self._conns[chunk.conn] = self._listener.accept()
        conn = self._conns[chunk.conn]
        if not chunk.data:
            if chunk.conn != 1:  # the control connection stays until the client has cancelled
                assert read_to_the_end(conn) == b""
            return
        for recorded in frames_of(chunk.data):
            if recorded == ECHOED:
                assert recv_exactly(conn, len(recorded)) == recorded
            else:
                assert as_recorded(recv_frame(conn), recorded, self._port) == recorded
            self.compared += 1


def answer(service: Listener) -> None:
    """Serve one user as the recorded service did."""
    conn = service.accept()
    conn.sendall(b"echo:" + conn.recv(100))
    assert read_to_the_end(conn) == b""
    conn.close()


@pytest.mark.parametrize("name", PLAIN_TCP)
def test_our_client_says_to_a_recorded_go_server_what_the_go_client_said(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [caplog.handler])
    listener, service, ends = listen(LOOPBACK, 0), listen(LOOPBACK, 0), list[int]()
    proxy = ProxyConfig(proxy_name="demo", local_port=service.port, remote_port=free_port_of_5_digits())
    address = Address(LOOPBACK, listener.port)
    config = ClientConfig(server=address, proxies=(proxy,), token=TOKEN, auth="md5")
    client = Client(config, lambda: ends.append(1))
    server = RecordedServer(load(name), listener, proxy.remote_port)
    with deadline(TIMEOUT_S, "the test"):
        serving = gevent.spawn(answer, service)
        client.start()
        server.replay_until_cancel()
        serving.get()
        client.crew.spawn(client.stop_taking_users)
        server.expect_cancel()
        assert client.crew.wait_empty(TIMEOUT_S) or not client.failed
        client.close()
        assert client.crew.wait_empty(TIMEOUT_S)
        assert client.users.wait_empty(TIMEOUT_S)
    server.close()
    service.close()
    assert server.compared == 2 + 3 + 2
    assert not client.failed
    assert not ends
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in WIRE.glob("*.json")))
def test_recording_begins_with_a_login_that_the_codec_takes(name: str) -> None:
    chunks = load(name)
    frame = frames_of(chunks[0].data)[0]
    assert frame[0] == LOGIN
    assert re.fullmatch(r"[0-9a-f]{32}", str(body_of(frame)["token"]))
    assert body_of(frame)["token"] == auth.md5_token(TOKEN, int(time_of(chunks)))
