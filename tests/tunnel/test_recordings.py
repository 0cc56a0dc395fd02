"""The recorded conversations of the Go program, replayed byte for byte against our server and our client.

What differs of necessity is set before comparing: the port (a free one, with as many digits), the `conn_id`
that our server makes up, and when a heartbeat comes. The recorded logins are sent as they are: our server's
clock is that of the recording. What a recorded server said to a conn that its client had closed is left out.

Of a multiplexed conversation the streams are compared: on each, the bytes, and where between them it is
opened, accepted and ended. Which frame carries a flag, and how bytes are cut into frames, is free.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from gnar_lib.yamux import frame as yamux_frame
from tests.helpers.harness import free_port
from tests.peers.mux import Frame, Peer, encode

WIRE = Path(__file__).resolve().parent.parent / "wire"
PLAIN_TCP = ["go-2023-tcp", "go-2024-tcp"]
RECORDED_PORT = b"19001"
TOKEN = Secret("s3cret")
LOOPBACK = "127.0.0.1"
TIMEOUT_S = 20.0
HEARTBEAT = b"\x02\x00\x02{}"
HELLO, ECHOED = b"hello", b"echo:hello"  # what the recorded user said, and what the service answered
LOGIN, PROXY_RESP, CANCEL, EXCHANGE = 0x01, 0x04, 0x05, 0x06
MULTIPLEXED = "go-2024-tcp-multiplex"
CONTROL_STREAM = 1


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
        assert server.shared.users.wait_empty(TIMEOUT_S)
        assert server.shared.crew.wait_empty(TIMEOUT_S)


def time_of(chunks: list[Chunk]) -> float:
    timestamp = body_of(frames_of(chunks[0].data)[0])["timestamp"]
    assert isinstance(timestamp, int)
    return float(timestamp)


@pytest.mark.parametrize("name", PLAIN_TCP)
def test_our_server_answers_a_recorded_go_client_as_the_go_server_did(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chunks, proxy_port = load(name), free_port()
    with our_server(monkeypatch, time_of(chunks)) as (server, port):
        client = RecordedClient(chunks, port, proxy_port)
        client.replay()
        assert [frame[0] for frame in client.compared] == [PROXY_RESP, 0x02, EXCHANGE, HELLO[0]]
        while len(server.shared.ports) or len(server.shared.users):
            gevent.sleep(0.01)
        assert len(server.shared.conn_map) == 0


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
        assert len(server.shared.ports) == 0


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
    proxy = ProxyConfig(proxy_name="demo", local_port=service.port, remote_port=free_port())
    address = Address(LOOPBACK, listener.port)
    config = ClientConfig(server=address, proxies=(proxy,), token=TOKEN, auth="md5")
    client = Client(config, lambda: ends.append(1))
    server = RecordedServer(load(name), listener, proxy.remote_port)
    with deadline(TIMEOUT_S, "the test"):
        serving = gevent.spawn(answer, service)
        client.start()
        server.replay_until_cancel()
        serving.get()
        client.shared.crew.spawn(client.stop_taking_users)
        server.expect_cancel()
        client.close()
        assert client.shared.crew.wait_empty(TIMEOUT_S)
        assert client.shared.users.wait_empty(TIMEOUT_S)
    server.close()
    service.close()
    assert server.compared == 2 + 3 + 2
    assert not client.failed
    assert not ends
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# ---- multiplexed -------------------------------------------------------------------------------------------


FIRST_FLAGS = ((yamux_frame.SYN, "opened"), (yamux_frame.ACK, "accepted"))
LAST_FLAGS = ((yamux_frame.FIN, "ended"), (yamux_frame.RST, "reset"))


Streams = dict[int, list[str | bytes]]
"""By stream, bytes as they came, and words for the flags between them."""


@dataclass
class Said:
    """What one end of a session said, stream by stream.

    Left out is what a recorded conversation of a second lacks and a longer one has: pings, window updates and
    a GoAway at the end. The Go peer takes each of them at any time (hashicorp/yamux, spec.md).
    """

    streams: Streams = field(default_factory=dict)
    rest: bytes = b""

    def add(self, data: bytes) -> list[Frame]:
        """Take bytes that may be cut anywhere, and return the frames that they complete."""
        self.rest += data
        frames: list[Frame] = []
        while len(self.rest) >= yamux_frame.HEADER_BYTES:
            kind, flags, stream_id, length = yamux_frame.unpack(self.rest)
            end = yamux_frame.HEADER_BYTES + (length if kind == yamux_frame.DATA else 0)
            if len(self.rest) < end:
                break
            payload = self.rest[yamux_frame.HEADER_BYTES : end]
            frames.append((kind, flags, stream_id, payload if kind == yamux_frame.DATA else length))
            self.rest = self.rest[end:]
        self.add_frames(frames)
        return frames

    def add_frames(self, frames: Iterable[Frame]) -> None:
        for kind, flags, stream_id, content in frames:
            if kind in (yamux_frame.PING, yamux_frame.GO_AWAY):
                continue
            said = self.streams.setdefault(stream_id, [])
            said += [word for flag, word in FIRST_FLAGS if flags & flag]
            if isinstance(content, bytes) and content:
                before = said.pop() if said and isinstance(said[-1], bytes) else b""
                assert isinstance(before, bytes)
                said.append(before + content)
            said += [word for flag, word in LAST_FLAGS if flags & flag]

    def messages(self, stream_id: int) -> list[bytes]:
        """Return the whole messages on a stream."""
        data = b"".join(part for part in self.streams.get(stream_id, ()) if isinstance(part, bytes))
        return frames_of(data)

    def compared(self, conn_ids: dict[str, str]) -> Streams:
        """Return the streams without heartbeats and with the `conn_id`s of the recording."""
        return {
            stream_id: [part if isinstance(part, str) else as_recorded_bytes(part, conn_ids) for part in said]
            for stream_id, said in self.streams.items()
        }


def as_recorded_bytes(data: bytes, conn_ids: dict[str, str]) -> bytes:
    """Return a stream's bytes without heartbeats and with the `conn_id`s of the recording."""
    found = []
    for each in frames_of(data):
        if each[0] == EXCHANGE and str(body_of(each)["conn_id"]) in conn_ids:
            found.append(frame_like(each, conn_id=conn_ids[str(body_of(each)["conn_id"])]))
        elif each != HEARTBEAT:
            found.append(each)
    return b"".join(found)


def has_message(frames: list[Frame], packet_type: int) -> bool:
    return any(isinstance(content, bytes) and content[:1] == bytes([packet_type]) for *_, content in frames)


def begin_with(ours: Streams, recorded: Streams) -> bool:
    """Tell whether the streams of ours begin as the recorded ones do: an end may be a frame ahead."""
    return all(
        stream_id in ours and all(map(is_prefix, said, ours[stream_id])) and len(ours[stream_id]) >= len(said)
        for stream_id, said in recorded.items()
    )


def is_prefix(recorded: str | bytes, ours: str | bytes) -> bool:
    if isinstance(recorded, bytes) and isinstance(ours, bytes):
        return ours.startswith(recorded)
    return recorded == ours


def hear_until(peer: Peer, heard: Said, has_come: Callable[[], bool]) -> None:
    """Take frames until `has_come()`; the deadline of the test ends it where that never happens."""
    while not has_come():
        received = peer.recv()
        assert received is not None, f"our end hung up behind {heard.streams}"
        heard.add_frames([received])


class RecordedMuxClient:
    """Sends what the multiplexing Go client sent, at the points where it did, and compares the answers.

    Only its end comes last: the recorder noted that before the answers to what had come before it.
    """

    def __init__(self, chunks: list[Chunk], server_port: int, proxy_port: int) -> None:
        self._chunks = chunks
        self._proxy_port = proxy_port
        self._conn = dial(socket.AF_INET, (LOOPBACK, server_port))
        self._peer = Peer(self._conn)
        self._conn_ids: dict[str, str] = {}  # the recorded by ours
        self._user: SocketConn | None = None
        self.heard, self.recorded = Said(), Said()

    def replay(self) -> None:
        for chunk in self._chunks:
            if chunk.source == "client":
                self._send(chunk.data)
            elif chunk.data:
                self._expect(chunk.data)
        self._conn.close()
        assert self._user is not None
        assert read_to_the_end(self._user) == b""
        self._user.close()

    def _send(self, data: bytes) -> None:
        data = data.replace(RECORDED_PORT, b"%d" % self._proxy_port)
        for ours, recorded in self._conn_ids.items():
            if recorded.encode() in data:
                frames = Said().add(data)
                data = b"".join(
                    encode(kind, flags, stream_id, frame_like(content, conn_id=ours))
                    if isinstance(content, bytes) and content
                    else encode(kind, flags, stream_id, content)
                    for kind, flags, stream_id, content in frames
                )
        self._conn.sendall(data)
        if data == ECHOED:
            assert self._user is not None
            assert recv_exactly(self._user, len(ECHOED)) == ECHOED
            self._user.shutdown(socket.SHUT_WR)

    def _expect(self, data: bytes) -> None:
        frames = self.recorded.add(data)
        if has_message(frames, EXCHANGE):
            self._user = dial(socket.AF_INET, (LOOPBACK, self._proxy_port))
            self._user.sendall(HELLO)
        hear_until(self._peer, self.heard, lambda: begin_with(self.ours(), self.recorded.compared({})))

    def ours(self) -> Streams:
        """Return what our server said, in the words of the recording."""
        exchanges = [
            [str(body_of(each)["conn_id"]) for each in said.messages(CONTROL_STREAM) if each[0] == EXCHANGE]
            for said in (self.heard, self.recorded)
        ]
        self._conn_ids = dict(zip(*exchanges, strict=False))
        return self.heard.compared(self._conn_ids)


def test_our_server_answers_a_recorded_multiplexing_go_client_as_the_go_server_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks, proxy_port = load(MULTIPLEXED), free_port()
    with our_server(monkeypatch, time_of(chunks)) as (server, port):
        client = RecordedMuxClient(chunks, port, proxy_port)
        client.replay()
        assert client.ours() == client.recorded.compared({})
        assert sorted(client.recorded.streams) == [1, 3, 5]
        assert [each[0] for each in client.recorded.messages(CONTROL_STREAM)] == [4, 2, 6, 4]
        while len(server.shared.ports) or len(server.shared.users):
            gevent.sleep(0.01)
        assert len(server.shared.conn_map) == 0


class RecordedMuxServer:
    """Says what the multiplexing Go server said, at the points where it did; compares what our client sends.

    A stream that the recorded client left open when its process ended may be ended by ours.
    """

    def __init__(self, chunks: list[Chunk], listener: Listener, port: int, stop: Callable[[], None]) -> None:
        self._chunks = chunks
        self._listener = listener
        self._port = port
        self._stop = stop
        self.heard, self.recorded = Said(), Said()

    def replay(self) -> None:
        conn = self._listener.accept()
        self._peer = Peer(conn)
        login, *_ = frames_of(self._chunks[0].data)
        assert as_recorded(recv_frame(conn), login, self._port) == login
        for chunk in self._chunks:
            if chunk.source == "server":
                conn.sendall(chunk.data)
            elif chunk.data:
                self._expect(chunk.data.removeprefix(login))
        self._peer.send((yamux_frame.PING, yamux_frame.SYN, 0, 7))
        self._peer.recv_until((yamux_frame.PING, yamux_frame.ACK, 0, 7))  # the session goes on

    def _expect(self, data: bytes) -> None:
        frames = self.recorded.add(data)
        if has_message(frames, CANCEL):
            self._stop()
        hear_until(self._peer, self.heard, lambda: begin_with(self.ours(), self.recorded.streams))

    def ours(self) -> Streams:
        """Return what our client said, in the words of the recording."""
        port, streams = b"%d" % self._port, {}
        for stream_id, said in self.heard.compared({}).items():
            is_left_open = self.recorded.streams.get(stream_id, [])[-1:] != ["ended"]
            kept = said[:-1] if is_left_open and said[-1] == "ended" else said
            streams[stream_id] = [
                part if isinstance(part, str) else part.replace(port, RECORDED_PORT) for part in kept
            ]
        return streams

    def close(self) -> None:
        self._peer.conn.close()
        self._listener.close()


def test_our_client_says_to_a_recorded_multiplexing_go_server_what_the_go_client_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [caplog.handler])
    listener, service = listen(LOOPBACK, 0), listen(LOOPBACK, 0)
    proxy = ProxyConfig(proxy_name="demo", local_port=service.port, remote_port=free_port())
    address = Address(LOOPBACK, listener.port)
    config = ClientConfig(server=address, proxies=(proxy,), token=TOKEN, auth="md5", multiplex=True)
    client = Client(config, lambda: None)

    def stop() -> None:
        serving.get()
        client.shared.crew.spawn(client.stop_taking_users)

    server = RecordedMuxServer(load(MULTIPLEXED), listener, proxy.remote_port, stop)
    with deadline(TIMEOUT_S, "the test"):
        serving = gevent.spawn(answer, service)
        client.start()
        server.replay()
        client.close()
        assert client.shared.crew.wait_empty(TIMEOUT_S)
        assert client.shared.users.wait_empty(TIMEOUT_S)
    server.close()
    service.close()
    assert server.ours() == server.recorded.streams
    assert sorted(server.recorded.streams) == [1, 3, 5]
    assert not client.failed
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in WIRE.glob("*.json")))
def test_recording_begins_with_a_login_that_the_codec_takes(name: str) -> None:
    chunks = load(name)
    frame = frames_of(chunks[0].data)[0]
    assert frame[0] == LOGIN
    assert re.fullmatch(r"[0-9a-f]{32}", str(body_of(frame)["token"]))
    assert body_of(frame)["token"] == auth.md5_token(TOKEN, int(time_of(chunks)))
