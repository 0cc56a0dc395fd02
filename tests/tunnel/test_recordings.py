"""The recorded conversations of the Go program, replayed byte for byte against our server and our client.

What must differ is set before comparing: the port (a free one, with as many digits), the `conn_id` that our
server makes, and when a heartbeat comes. The recorded logins are sent unchanged: our server's clock shows the
time of the recording. What a recorded server sent to a conn that its client had closed is left out.
"""

from __future__ import annotations

import logging
import re
import socket

import gevent
import pytest

from gnar_lib import auth
from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.net import Listener, SocketConn, deadline, dial, listen
from tests.helpers.conns import accept
from tests.helpers.harness import free_port
from tests.helpers.loop import wait_until
from tests.peers.recording import (
    ECHOED,
    EXCHANGE,
    HEARTBEAT,
    HELLO,
    LOGIN,
    LOOPBACK,
    PLAIN_TCP,
    PROXY_RESP,
    RECORDED_PORT,
    TIMEOUT_S,
    TOKEN,
    WIRE,
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
    recv_frame_but_heartbeats,
    time_of,
)


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


@pytest.mark.parametrize("name", PLAIN_TCP)
def test_our_server_answers_a_recorded_go_client_as_the_go_server_did(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chunks, proxy_port = load(name), free_port()
    with our_server(monkeypatch, time_of(chunks)) as (server, port):
        client = RecordedClient(chunks, port, proxy_port)
        client.replay()
        assert [frame[0] for frame in client.compared] == [PROXY_RESP, 0x02, EXCHANGE, HELLO[0]]
        wait_until(lambda: not len(server.shared.ports) and not len(server.shared.users), "all have left")
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


class RecordedServer:
    """Sends what the Go server sent, at the points where it did, and compares what our client sends."""

    def __init__(self, chunks: list[Chunk], listener: Listener, port: int) -> None:
        self._chunks = chunks
        self._listener = listener
        self._port = port
        self._conns: dict[int, SocketConn] = {}
        self.compared = 0

    def replay_until_cancel(self) -> None:
        """Replay the recording up to the point where the client cancels its proxy and leaves."""
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
        """Receive the cancel on a conn of its own, and send what a Go server sends when a listener ends."""
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
            self._conns[chunk.conn] = accept(self._listener)
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


@pytest.mark.parametrize("name", sorted(path.stem for path in WIRE.glob("*.json")))
def test_recording_begins_with_a_login_that_the_codec_takes(name: str) -> None:
    chunks = load(name)
    frame = frames_of(chunks[0].data)[0]
    assert frame[0] == LOGIN
    assert re.fullmatch(r"[0-9a-f]{32}", str(body_of(frame)["token"]))
    assert body_of(frame)["token"] == auth.md5_token(TOKEN, int(time_of(chunks)))
