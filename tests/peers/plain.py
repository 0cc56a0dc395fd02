"""Peers that tests play by hand over plain sockets: a Go client, and our own ends as far as the login."""

from __future__ import annotations

import hashlib
import socket
import time
from dataclasses import replace

from gnar_lib import auth
from gnar_lib.config import Secret
from gnar_lib.proto import (
    Challenge,
    Heartbeat,
    Login,
    Message,
    Proof,
    ProxyReq,
    ProxyResp,
    Welcome,
    numbers,
    to_frame,
)
from gnar_lib.proto.msg import from_frame
from gnar_lib.yamux import frame
from tests.helpers.harness import TOKEN, dial


def go_login(token: str = TOKEN) -> bytes:
    """Return the login of a Go client with the present time."""
    now = int(time.time())
    md5 = hashlib.md5(f"{token}{now}".encode(), usedforsecurity=False).hexdigest()
    return to_frame(Login(token=md5, version="v0.0.1-", timestamp=now))


def recv_message(conn: socket.socket) -> Message:
    """Return the next message that is not a heartbeat."""
    while True:
        data = b""
        while len(data) < 3 or len(data) < 3 + int.from_bytes(data[1:3], "big"):
            part = conn.recv(1)
            assert part, "the server hung up"
            data += part
        if not isinstance(message := from_frame(data), Heartbeat):
            return message


def go_client(server_port: int, port: int, name: str = "go") -> socket.socket:
    """Open a proxy as a Go client does, and return its control connection."""
    conn = dial(server_port)
    conn.sendall(go_login() + to_frame(ProxyReq(port, name, "", "tcp")))
    answer = recv_message(conn)
    assert answer == ProxyResp(domain="", status="success")
    return conn


# ---- our own ends ------------------------------------------------------------------------------------------


def own_client(server_port: int, token: str = TOKEN) -> socket.socket:
    """Log in as a client of ours does, and return the connection, which the caller closes.

    Raises AuthError when the server refuses the token.
    """
    login = auth.ClientLogin(Secret(token), auth.HMAC)
    conn = dial(server_port)
    try:
        conn.sendall(to_frame(login.message()))
        challenge = recv_message(conn)
        assert isinstance(challenge, Challenge)
        conn.sendall(to_frame(login.answer(challenge)))
        welcome = recv_message(conn)
        assert isinstance(welcome, Welcome)
        login.accept(welcome)
    except BaseException:
        conn.close()
        raise
    return conn


def own_server(conn: socket.socket, features: tuple[str, ...] = numbers.FEATURES, token: str = TOKEN) -> None:
    """Let a client of ours log in, as a server with these features does."""
    hello = recv_message(conn)
    assert isinstance(hello, Login)
    login = auth.ServerLogin(Secret(token), "any", hello)
    conn.sendall(to_frame(login.challenge()))
    proof = recv_message(conn)
    assert isinstance(proof, Proof)
    login.prove(proof)
    _, welcome = login.welcome()
    conn.sendall(to_frame(replace(welcome, features=features)))


# ---- multiplexed -------------------------------------------------------------------------------------------


class MuxPeer:
    """The far end of a multiplexed session over a plain socket: sends frames, and sorts data by stream."""

    def __init__(self, conn: socket.socket) -> None:
        self._conn = conn
        self._heard: dict[int, bytearray] = {}

    def open(self, stream_id: int) -> None:
        """Open a stream as hashicorp's library does, by a window update."""
        self._conn.sendall(frame.pack(frame.WINDOW_UPDATE, frame.SYN, stream_id, 0))

    def send(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        """Send data on a stream."""
        self._conn.sendall(frame.pack(frame.DATA, flags, stream_id, len(data)) + data)

    def recv_packet(self, stream_id: int) -> bytes:
        """Return the next frame of gnar's protocol on a stream that is not a heartbeat."""
        while True:
            heard = self._heard.setdefault(stream_id, bytearray())
            size = 3 + int.from_bytes(heard[1:3], "big")
            if len(heard) < max(size, 3):
                self._hear()
                continue
            packet = bytes(heard[:size])
            del heard[:size]
            if packet[0] != Heartbeat.TYPE:
                return packet

    def _hear(self) -> None:
        kind, flags, stream_id, length = frame.unpack(self._recv(frame.HEADER_BYTES))
        if kind == frame.DATA:
            self._heard.setdefault(stream_id, bytearray()).extend(self._recv(length))
        elif kind == frame.PING and flags & frame.SYN:
            self._conn.sendall(frame.pack(frame.PING, frame.ACK, frame.SESSION_ID, length))

    def _recv(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._conn.recv(size - len(data))
            assert part, "the session ended"
            data += part
        return data
