"""A Go server that is played over plain sockets in threads: one proxy for each control connection, by md5."""

from __future__ import annotations

import socket
import threading
import uuid
from contextlib import suppress

from gnar_lib.proto import Exchange, Login, ProxyCancel, ProxyReq, ProxyResp, to_frame
from tests.helpers.harness import Service
from tests.peers.plain import recv_message


class GoServer:
    """The server; ports in `refused` are not opened, for which it gives no reason."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused
        self.cancelled: list[int] = []
        self._waiting: dict[str, socket.socket] = {}  # users by conn_id
        self._service = Service(self._serve)
        self.port = self._service.port

    def close(self) -> None:
        self._service.stop()

    def _serve(self, conn: socket.socket) -> None:
        if not conn.recv(1, socket.MSG_PEEK):
            return  # somebody who only looks whether the port is open
        assert isinstance(recv_message(conn), Login)
        match recv_message(conn):
            case ProxyReq(remote_port=port) as request:
                self._serve_control(conn, request, port)
            case Exchange(conn_id=conn_id):
                _join(conn, self._waiting.pop(conn_id))
            case ProxyCancel(remote_port=port):
                self.cancelled.append(port)

    def _serve_control(self, conn: socket.socket, request: ProxyReq, port: int) -> None:
        if port in self.refused:
            conn.sendall(to_frame(ProxyResp(domain="", status="failed")))
            return
        users = Service(lambda user: self._announce(conn, user, request), port)
        conn.sendall(to_frame(ProxyResp(domain="", status="success")))
        with suppress(AssertionError, OSError):
            while True:
                recv_message(conn)
        users.stop()

    def _announce(self, control: socket.socket, user: socket.socket, request: ProxyReq) -> None:
        conn_id = str(uuid.uuid4())
        self._waiting[conn_id] = user.dup()
        control.sendall(to_frame(Exchange(conn_id=conn_id, proxy_type=request.proxy_type)))


def _join(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes both ways until both directions have ended; closes `other`."""
    with other:
        back = threading.Thread(target=_copy, args=(other, one), daemon=True)
        back.start()
        _copy(one, other)
        back.join()


def _copy(src: socket.socket, dst: socket.socket) -> None:
    with suppress(OSError):
        while data := src.recv(1 << 16):
            dst.sendall(data)
    with suppress(OSError):
        dst.shutdown(socket.SHUT_WR)
