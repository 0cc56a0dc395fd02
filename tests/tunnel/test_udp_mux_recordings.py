"""The recorded conversation of the Go programs over UDP with multiplexing, replayed in both roles."""

from __future__ import annotations

import contextlib
import socket

from gnar_lib.yamux import frame
from tests.helpers.harness import LOOPBACK, WAIT_S, Tunnels, free_port, wait_until
from tests.helpers.udp import UdpService, is_bound, user_of
from tests.peers.plain import MuxPeer
from tests.peers.udp_recording import (
    GO_TOKEN,
    LOGIN,
    RECORDED_PORT,
    Recording,
    accepted,
    body_of,
    login_of_today,
    recv_frame,
    with_fields,
)

NAME = "go-2024-udp-multiplex"
CONTROL, DATA, CANCEL = 1, 3, 5  # the streams that the Go client opened
HEARTBEAT = 0x02
SAID = [(b"hello", b"echo:hello"), (b"\0\xff bytes", b"echo:\0\xff bytes")]


class MuxRecording:
    """What each end sent on each stream, and the login before the session."""

    def __init__(self) -> None:
        recording = Recording(NAME)
        client = recording.bytes_of(1, "client")
        size = 3 + int.from_bytes(client[1:3], "big")
        self.login = client[:size]
        self._said = {"client": client[size:], "server": recording.bytes_of(1, "server")}

    def packets(self, source: str, stream_id: int) -> list[bytes]:
        """Return the frames of gnar's protocol on a stream, without heartbeats."""
        data, rest = b"", self._said[source]
        while rest:
            kind, _, stream, length = frame.unpack(rest)
            size = frame.HEADER_BYTES + (length if kind == frame.DATA else 0)
            if kind == frame.DATA and stream == stream_id:
                data += rest[frame.HEADER_BYTES : size]
            rest = rest[size:]
        found = []
        while data:
            size = 3 + int.from_bytes(data[1:3], "big")
            found.append(data[:size])
            data = data[size:]
        return [packet for packet in found if packet[0] != HEARTBEAT]


def test_our_server_treats_the_recorded_client_as_the_go_server_did(multiplexed_tunnels: Tunnels) -> None:
    recording = MuxRecording()
    _, server_port = multiplexed_tunnels.server(token=GO_TOKEN)
    port = free_port()
    with contextlib.ExitStack() as stack:
        conn = stack.enter_context(socket.create_connection((LOOPBACK, server_port), WAIT_S))
        conn.sendall(login_of_today(recording.login))
        peer = MuxPeer(conn)
        (request,) = recording.packets("client", CONTROL)
        peer.open(CONTROL)
        peer.send(CONTROL, request.replace(RECORDED_PORT, b"%05d" % port))
        answer, recorded_exchange = recording.packets("server", CONTROL)
        assert peer.recv_packet(CONTROL) == answer
        exchange = peer.recv_packet(CONTROL)
        assert exchange == with_fields(recorded_exchange, conn_id=body_of(exchange)["conn_id"])
        peer.open(DATA)
        peer.send(DATA, exchange)
        user = stack.enter_context(user_of(port))
        questions = recording.packets("server", DATA)
        _, *answers = recording.packets("client", DATA)
        for (question, reply), theirs, ours in zip(SAID, questions, answers, strict=True):
            user.send(question)
            address = {"IP": LOOPBACK, "Port": user.getsockname()[1], "Zone": ""}
            assert peer.recv_packet(DATA) == with_fields(theirs, addr=address)
            peer.send(DATA, ours)
            assert user.recv(100) == reply
        (cancel,) = recording.packets("client", CANCEL)
        peer.open(CANCEL)
        peer.send(CANCEL, cancel.replace(RECORDED_PORT, b"%05d" % port))
        wait_until(lambda: not is_bound(port), "the port is free")


def test_our_client_answers_the_recorded_server_as_the_go_client_did(multiplexed_tunnels: Tunnels) -> None:
    recording = MuxRecording()
    port = free_port()
    with contextlib.ExitStack() as stack, UdpService(lambda data: b"echo:" + data) as service:
        listener = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        listener.settimeout(WAIT_S)
        flags = ("-y", "udp", "-n", "demo", "--auth", "md5", "-l", str(service.port), "-r", str(port))
        multiplexed_tunnels.client(listener.getsockname()[1], *flags, token=GO_TOKEN, wait=False)
        conn = stack.enter_context(accepted(listener))
        assert recv_frame(conn)[0] == LOGIN
        peer = MuxPeer(conn)
        (request,) = recording.packets("client", CONTROL)
        assert peer.recv_packet(CONTROL) == request.replace(RECORDED_PORT, b"%05d" % port)
        for packet in recording.packets("server", CONTROL)[:2]:
            peer.send(CONTROL, packet)
        exchange, *answers = recording.packets("client", DATA)
        assert peer.recv_packet(DATA) == exchange
        for question, answer in zip(recording.packets("server", DATA), answers, strict=True):
            peer.send(DATA, question)
            assert peer.recv_packet(DATA) == answer
