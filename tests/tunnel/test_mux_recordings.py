"""The recorded multiplexed conversation of the Go programs over TCP, replayed in both roles.

The streams are compared: on each, the bytes, and where between them it is opened, accepted and ended. Which
frame carries a flag, and how bytes are cut into frames, is free.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import gevent
import pytest

from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.net import Listener, SocketConn, deadline, dial, listen
from gnar_lib.yamux import frame as yamux_frame
from tests.helpers.conns import accept
from tests.helpers.harness import free_port
from tests.helpers.loop import wait_until
from tests.peers.mux import Frame, Peer, encode
from tests.peers.recording import (
    CANCEL,
    CONTROL_STREAM,
    ECHOED,
    EXCHANGE,
    HEARTBEAT,
    HELLO,
    LOOPBACK,
    MULTIPLEXED,
    RECORDED_PORT,
    TIMEOUT_S,
    TOKEN,
    Chunk,
    answer,
    as_recorded,
    body_of,
    frame_like,
    frames_of,
    load,
    our_server,
    read_to_the_end,
    recv_exactly,
    recv_frame,
    time_of,
)

FIRST_FLAGS = ((yamux_frame.SYN, "opened"), (yamux_frame.ACK, "accepted"))
LAST_FLAGS = ((yamux_frame.FIN, "ended"), (yamux_frame.RST, "reset"))
Streams = dict[int, list[str | bytes]]
"""By stream, bytes as they came, and words for the flags between them."""


@dataclass
class Said:
    """What one end of a session sent, stream by stream.

    Pings, window updates and GoAway are left out: a recorded conversation is too short to have them, and a Go
    peer takes each of them at any time (hashicorp/yamux, spec.md).
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
    """Tell whether each stream of ours begins as the recorded one; its end may come one frame earlier."""
    return all(
        stream_id in ours and all(map(is_prefix, said, ours[stream_id])) and len(ours[stream_id]) >= len(said)
        for stream_id, said in recorded.items()
    )


def is_prefix(recorded: str | bytes, ours: str | bytes) -> bool:
    if isinstance(recorded, bytes) and isinstance(ours, bytes):
        return ours.startswith(recorded)
    return recorded == ours


def hear_until(peer: Peer, heard: Said, has_come: Callable[[], bool]) -> None:
    """Take frames until `has_come()` holds; the deadline of the test ends the wait."""
    while not has_come():
        received = peer.recv()
        assert received is not None, f"our end hung up behind {heard.streams}"
        heard.add_frames([received])


class RecordedMuxClient:
    """Sends what the multiplexing Go client sent, at the points where it did, and compares the answers.

    The end of its stream is moved to the end: the recorder noted it before earlier answers.
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
        """Return what our server sent, with the recording's values for what must differ."""
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
        wait_until(lambda: not len(server.shared.ports) and not len(server.shared.users), "all have left")
        assert len(server.shared.conn_map) == 0


class RecordedMuxServer:
    """Sends what the multiplexing Go server sent, when it did, and compares what our client sends.

    Our client may end a stream that the recorded client left open when its process ended.
    """

    def __init__(self, chunks: list[Chunk], listener: Listener, port: int, stop: Callable[[], None]) -> None:
        self._chunks = chunks
        self._listener = listener
        self._port = port
        self._stop = stop
        self.heard, self.recorded = Said(), Said()

    def replay(self) -> None:
        conn = accept(self._listener)
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
        """Return what our client sent, with the recording's values for what must differ."""
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
