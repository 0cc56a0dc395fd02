"""What a WebSocket adds to what `tests/net/test_contract.py` says of every conn."""

from __future__ import annotations

import os
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial

import gevent
import pytest
from gevent.hub import get_hub
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from gnar_lib.errors import ConnClosed, ConnError, DialError, ProtocolError, WriteError
from gnar_lib.net import dial, listen
from gnar_lib.transport import websocket
from gnar_lib.transport.websocket import WebSocketConn
from gnar_lib.transport.ws_engine import MAX_TINY_FRAMES, WebSocketEngine
from tests.helpers.conns import LOOPBACK, MIB, V4, accept, tcp_pair
from tests.helpers.exchanges import frame
from tests.helpers.loop import WAIT_S, turn, wait_until
from tests.helpers.websocket import (
    BINARY,
    CLOSE,
    MASK,
    PATH,
    PING,
    PONG,
    accept_token,
    ask,
    frames_in,
    receive_head,
    websocket_pair,
)

FIN = 0x80
GONE = "gone without the end of the WebSocket"
KEY = b64encode(bytes(16))
REQUEST = (
    b"GET /gnar HTTP/1.1\r\nHost: gnar.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % KEY
)


class Peer:
    """A client whose bytes the test sends as it likes; `conn` is the server's end."""

    def __init__(self) -> None:
        self.below, self.far = tcp_pair()
        self.below.sendall(REQUEST)
        self.conn = WebSocketConn.accept(self.far, receive_head(self.far))
        assert receive_head(self.below).startswith(b"HTTP/1.1 101 ")

    def send(self, code: int, payload: bytes = b"", first: int = FIN) -> None:
        self.below.sendall(frame(code, payload, mask=MASK, first=first))

    def received(self) -> list[tuple[int, bytes]]:
        return [(first, payload) for first, _, payload in frames_in(self.below.recv(MIB))]

    def close(self) -> None:
        self.below.close()
        self.conn.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()
    turn()


# ---- the beginning -----------------------------------------------------------------------------------------


def test_frames_right_behind_the_heads_are_read() -> None:
    near, far = tcp_pair()
    near.sendall(REQUEST + frame(BINARY, b"hello", mask=MASK))
    calls: list[bytes | None] = []
    server = WebSocketConn.accept(far, receive_head(far))
    server.call_when_readable(lambda: calls.append(server.recv_now(MIB)))
    turn()
    assert calls == [b"hello"]
    near.close()
    server.close()

    near, far = tcp_pair()
    connecting = gevent.spawn(WebSocketConn.connect, near, "gnar.example", PATH, is_tls=False)
    token = accept_token(receive_head(far))
    head = b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
    far.sendall(head % token + frame(BINARY, b"hello"))
    client = connecting.get()
    assert client.recv(MIB) == b"hello"
    client.close()
    far.close()


def test_client_whose_request_is_refused_is_told_why() -> None:
    near, far = tcp_pair()
    near.sendall(REQUEST.replace(b"Version: 13", b"Version: 8") + b"more")
    accepting = gevent.spawn(_error_of, lambda: WebSocketConn.accept(far, receive_head(far)))
    answer = b""
    while more := near.recv(MIB):
        answer += more
    near.close()
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer
    assert isinstance(accepting.get(), ProtocolError)
    far.close()


def test_client_is_told_what_a_server_answers_instead() -> None:
    for answer, kind, words in (
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", DialError, "answers 404 Not Found"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", DialError, "does not answer in HTTP"),
        (b"HTTP/1.1 404 Not", ConnClosed, "has gone before its answer"),
        (b"", ConnClosed, "has gone before its answer"),
    ):
        near, far = tcp_pair()
        far.sendall(answer)
        far.shutdown(socket.SHUT_WR)
        error = _error_of(partial(WebSocketConn.connect, near, "gnar.example", PATH, is_tls=False))
        assert isinstance(error, kind)
        assert words in str(error)
        near.close()
        far.close()


def _error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except (ConnError, ProtocolError) as exc:
        return exc
    raise AssertionError("no error")


# ---- the end -----------------------------------------------------------------------------------------------


def test_end_of_the_conn_below_without_close_is_an_error_behind_the_bytes(peer: Peer) -> None:
    peer.send(BINARY, b"all that came")
    peer.below.shutdown(socket.SHUT_WR)
    assert peer.conn.recv(MIB) == b"all that came"
    for _ in range(2):
        with pytest.raises(ConnError, match=GONE):
            peer.conn.recv(MIB)


def test_frame_that_is_cut_off_is_an_error_behind_its_bytes(peer: Peer) -> None:
    peer.below.sendall(frame(BINARY, b"hello", mask=MASK)[:-1])
    peer.below.shutdown(socket.SHUT_WR)
    assert peer.conn.recv(MIB) == b"hell"
    with pytest.raises(ConnError, match=GONE):
        peer.conn.recv(MIB)


def test_half_close_is_close_and_the_conn_below_stays_open(peer: Peer) -> None:
    """Programs in between, such as nginx, take the end of one direction below for the end of both."""
    peer.conn.sendall(b"answer")
    peer.conn.shutdown(socket.SHUT_WR)
    turn()
    assert peer.received() == [(FIN | BINARY, b"answer"), (FIN | CLOSE, (1000).to_bytes(2, "big"))]
    assert peer.below.recv_now(1) is None
    peer.send(BINARY, b"still here")
    assert peer.conn.recv(MIB) == b"still here"


def test_close_of_the_peer_leaves_the_other_direction_open(peer: Peer) -> None:
    peer.send(CLOSE, (1000).to_bytes(2, "big"))
    assert peer.conn.recv(MIB) == b""
    assert peer.conn.has_hung_up
    peer.conn.sendall(b"answer")
    peer.conn.close()
    turn()
    assert peer.received() == [(FIN | BINARY, b"answer"), (FIN | CLOSE, (1000).to_bytes(2, "big"))]
    assert peer.below.recv(1) == b""


def test_peer_that_breaks_the_protocol_is_told_and_gets_no_more(peer: Peer) -> None:
    peer.send(1, b"text")
    for _ in range(2):
        with pytest.raises(ConnError, match="WebSocket: text has come"):
            peer.conn.recv(MIB)
    with pytest.raises(WriteError, match="WebSocket: text has come"):
        peer.conn.sendall(b"x")
    assert peer.received() == [(FIN | CLOSE, (1003).to_bytes(2, "big"))]


def test_abort_sends_no_close(peer: Peer) -> None:
    peer.conn.sendall(b"x")
    turn()
    peer.conn.abort()
    assert peer.received() == [(FIN | BINARY, b"x")]
    with pytest.raises(ConnError):
        peer.below.recv(1)


# ---- pings -------------------------------------------------------------------------------------------------


def test_nobody_is_called_for_a_ping_and_it_is_answered(peer: Peer) -> None:
    calls: list[str] = []
    peer.conn.call_once_readable(lambda: calls.append("once"))
    peer.send(PING, b"?")
    turn()
    assert peer.received() == [(FIN | PONG, b"?")]
    assert calls == []
    peer.send(BINARY, b"x")
    turn()
    assert calls == ["once"]


def test_conn_that_sends_nothing_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_S", 0.02)
    peer = Peer()
    assert peer.received() == [(FIN | PING, b"")]
    assert peer.received() == [(FIN | PING, b"")]
    peer.conn.shutdown(socket.SHUT_WR)
    wait_until(lambda: peer.below.recv(MIB)[-4:] == b"\x88\x02" + (1000).to_bytes(2, "big"), "Close")
    peer.close()
    assert peer.conn not in websocket._rota._due_s


def test_both_ends_ping_each_other_and_carry_on() -> None:
    near, far = websocket_pair()
    for _ in range(5):
        near.tick(0.0)
        far.tick(0.0)
        turn()
    for one, other in ((near, far), (far, near)):
        one.sendall(b"hello")
        assert other.recv(MIB) == b"hello"
    near.close()
    assert far.recv(1) == b""
    far.close()


def test_flood_of_pings_ends_the_conn_and_makes_nothing_queue(peer: Peer) -> None:
    pings = frame(PING, b"x" * 125, mask=MASK) * (2 * MAX_TINY_FRAMES)
    flooding = gevent.spawn(peer.below.sendall, pings)
    with pytest.raises(ConnError, match="too many frames"):
        peer.conn.recv(MIB)
    assert peer.conn.unacknowledged() < len(pings) / 20
    flooding.kill()


def test_peer_that_takes_no_pong_makes_nothing_queue(peer: Peer) -> None:
    data, sent = os.urandom(MIB), 0
    while count := peer.conn.send_now(data):
        sent += count
    waiting = peer.conn._outgoing.count
    peer.conn.call_when_readable(lambda: None)
    for _ in range(MAX_TINY_FRAMES // 2):
        peer.send(PING, b"x" * 125)
        turn()
    assert peer.conn._outgoing.count - waiting < 200


# ---- other programs ----------------------------------------------------------------------------------------


SIZES = (1, 125, 126, 65_535, 65_536, 300_000)
PIECE_BYTES = 10_000


def test_client_of_websockets_gets_back_what_it_sends_in_messages_and_fragments() -> None:
    listener = listen(LOOPBACK, 0)
    url = f"ws://{LOOPBACK}:{listener.sock.getsockname()[1]}{PATH}"
    data = [os.urandom(size) for size in SIZES]

    def client() -> tuple[bytes, int | None]:
        with connect(url, max_size=None) as peer:  # offers permessage-deflate
            assert peer.protocol.extensions == []
            got = bytearray()
            for each in data:
                peer.send(each)
                peer.send([each[:PIECE_BYTES], b"", each[PIECE_BYTES:]])
                end = len(got) + 2 * len(each)
                while len(got) < end:
                    got += peer.recv(decode=False)
                assert peer.ping().wait(WAIT_S)
        return bytes(got), peer.close_code

    running = get_hub().threadpool.spawn(client)
    below = accept(listener)
    listener.close()
    conn = WebSocketConn.accept(below, receive_head(below))
    while more := conn.recv(MIB):
        conn.sendall(more)
    conn.close()
    assert running.get() == (b"".join(each * 2 for each in data), 1000)


def test_server_of_websockets_sends_back_what_it_gets_until_the_end() -> None:
    codes: list[int | None] = []
    pongs: list[threading.Event] = []

    def echo(peer: ServerConnection) -> None:
        for message in peer:  # which reads no further while 16 messages wait: a Pong may be behind them
            assert isinstance(message, bytes)
            pongs.append(peer.ping())
            peer.send([message[at : at + PIECE_BYTES] for at in range(0, len(message), PIECE_BYTES)])
        codes.append(peer.close_code)

    with serve(echo, LOOPBACK, 0, max_size=None) as server:
        serving = get_hub().threadpool.spawn(server.serve_forever)
        below = dial(V4, server.socket.getsockname())
        conn = WebSocketConn.connect(below, "gnar.example", PATH, is_tls=False)
        for size in SIZES:
            data, got = os.urandom(size), b""
            conn.sendall(data)
            while len(got) < size:
                got += conn.recv(MIB)
            assert got == data
        conn.shutdown(socket.SHUT_WR)
        assert conn.recv(1) == b""
        conn.close()
        wait_until(lambda: codes, "the server's end of the WebSocket")
        server.shutdown()
        serving.get()
    assert codes == [1000]
    assert pongs
    assert all(pong.is_set() for pong in pongs)


# ---- layers ------------------------------------------------------------------------------------------------


def test_websocket_travels_on_a_websocket_and_knows_no_certificate() -> None:
    near, far = ask(*websocket_pair())
    data = os.urandom(MIB)
    sending = gevent.spawn(near.sendall, data)
    received = bytearray()
    while len(received) < len(data):
        received += far.recv(MIB)
    assert received == data
    sending.get()
    near.close()
    assert far.recv(1) == b""
    assert far.certificate == ""
    far.close()


SMALL = 3000  # frames, which come at once


def test_many_small_frames_are_all_read_whoever_waits(peer: Peer) -> None:
    peer.below.sendall(frame(BINARY, b"12345678", mask=MASK) * SMALL)
    read = b""
    while len(read) < 4 * SMALL:
        read += peer.conn.recv(MIB)
    rest: list[bytes] = []

    def take() -> None:
        while data := peer.conn.recv_now(MIB):
            rest.append(data)

    peer.conn.call_when_readable(take)
    wait_until(lambda: len(read) + sum(map(len, rest)) == 8 * SMALL, "the rest of the frames")


def test_a_conn_that_is_closed_reads_nothing_more(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    peer.below.sendall(frame(BINARY, b"12345678", mask=MASK) * SMALL)
    assert peer.conn.recv(8) == b"12345678"
    reads: list[int] = []
    monkeypatch.setattr(WebSocketEngine, "read_into", lambda _engine, buffer: reads.append(len(buffer)))
    peer.conn.close()
    assert not reads
