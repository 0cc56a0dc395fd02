"""The recorded conversations of the Go programs over UDP, replayed in both roles."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest

from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Tunnels,
    free_port,
    wait_until,
)
from tests.helpers.udp import UdpService, is_bound, user_of
from tests.peers.udp_recording import (
    DATAGRAM,
    EXCHANGE,
    GO_TOKEN,
    LOGIN,
    PROXY_RESP,
    RECORDED_PORT,
    RECORDINGS,
    Recording,
    accepted,
    body_of,
    login_of_today,
    recv_frame,
    say,
    with_fields,
)


@pytest.mark.parametrize("name", RECORDINGS)
def test_our_server_treats_a_recorded_go_client_as_the_go_server_did(
    plain_tunnels: Tunnels, name: str
) -> None:
    recording = Recording(name)
    _, server_port = plain_tunnels.server(token=GO_TOKEN)
    port = free_port()
    login, request = recording.frames(1, "client")
    request = request.replace(RECORDED_PORT, b"%05d" % port)
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(say(server_port, login_of_today(login), request))
        assert recv_frame(control) == recording.of_type(PROXY_RESP, 1, "server")[0]
        exchange = recv_frame(control)
        conn_id = body_of(exchange)["conn_id"]
        assert exchange == with_fields(recording.of_type(EXCHANGE, 1, "server")[0], conn_id=conn_id)
        data = stack.enter_context(say(server_port, login_of_today(login), exchange))
        user = stack.enter_context(user_of(port))
        stranger = stack.enter_context(user_of(port))
        stranger.send(b"I was here before")
        recv_frame(data)
        questions = recording.of_type(DATAGRAM, 2, "server")
        answers = recording.of_type(DATAGRAM, 2, "client")
        said = [(b"hello", b"echo:hello"), (b"\0\xff bytes", b"echo:\0\xff bytes")]
        for (question, answer), theirs, reply in zip(said, questions, answers, strict=True):
            user.send(question)
            address = {"IP": LOOPBACK, "Port": user.getsockname()[1], "Zone": ""}
            assert recv_frame(data) == with_fields(theirs, addr=address)
            data.sendall(reply)
            assert user.recv(100) == answer
        data.close()  # one that ends is asked for again, while the control connection lives
        again = recv_frame(control)
        assert again[0] == EXCHANGE
        data = stack.enter_context(say(server_port, login_of_today(login), again))
        while not select.select([data], [], [], 0.1)[0]:
            user.send(b"hello")
        assert recv_frame(data)[0] == DATAGRAM
        cancel = recording.frames(3, "client")[1].replace(RECORDED_PORT, b"%05d" % port)
        stack.enter_context(say(server_port, login_of_today(login), cancel))
        wait_until(lambda: not is_bound(port), "the port is free")


@pytest.mark.parametrize("name", RECORDINGS)
def test_our_client_answers_a_recorded_go_server_as_the_go_client_did(
    plain_tunnels: Tunnels, name: str
) -> None:
    recording = Recording(name)
    listener = socket.create_server((LOOPBACK, 0))
    listener.settimeout(WAIT_S)
    port = free_port()
    with contextlib.ExitStack() as stack, UdpService(lambda data: b"echo:" + data) as service:
        stack.enter_context(listener)
        flags = ("-y", "udp", "-n", "demo", "--auth", "md5", "-l", str(service.port), "-r", str(port))
        client, _ = plain_tunnels.client(listener.getsockname()[1], *flags, token=GO_TOKEN, wait=False)
        control = stack.enter_context(accepted(listener))
        assert recv_frame(control)[0] == LOGIN
        request = recording.frames(1, "client")[1]
        assert recv_frame(control) == request.replace(RECORDED_PORT, b"%05d" % port)
        (exchange,) = recording.of_type(EXCHANGE, 1, "server")
        control.sendall(recording.of_type(PROXY_RESP, 1, "server")[0] + exchange)
        data = stack.enter_context(accepted(listener))
        assert recv_frame(data)[0] == LOGIN
        assert recv_frame(data) == recording.of_type(EXCHANGE, 2, "client")[0]
        questions = recording.of_type(DATAGRAM, 2, "server")
        answers = recording.of_type(DATAGRAM, 2, "client")
        for question, answer in zip(questions, answers, strict=True):
            data.sendall(question)
            assert recv_frame(data) == answer
        other = with_fields(questions[0], addr={"IP": "192.0.2.1", "Port": 5, "Zone": ""})
        data.sendall(other)
        recv_frame(data)
        assert client.status()["udp_sessions"] == 2  # the service sees users apart, whoever the server is


def test_datagram_too_large_for_a_go_server_is_dropped_and_told_once(plain_tunnels: Tunnels) -> None:
    recording = Recording(RECORDINGS[0])
    listener = socket.create_server((LOOPBACK, 0))
    listener.settimeout(WAIT_S)
    with contextlib.ExitStack() as stack, UdpService(lambda data: data * 12_000) as service:
        stack.enter_context(listener)
        flags = ("-y", "udp", "-n", "demo", "--auth", "md5", "-l", str(service.port), "-r", "19001")
        client, _ = plain_tunnels.client(listener.getsockname()[1], *flags, token=GO_TOKEN, wait=False)
        control = stack.enter_context(accepted(listener))
        recv_frame(control)
        (exchange,) = recording.of_type(EXCHANGE, 1, "server")
        control.sendall(recording.of_type(PROXY_RESP, 1, "server")[0] + exchange)
        data = stack.enter_context(accepted(listener))
        question = recording.of_type(DATAGRAM, 2, "server")[0]
        for _ in range(3):
            data.sendall(question)  # "hello": an answer of 60,000 bytes
        client.wait_log("dropped")
        wait_until(lambda: client.status()["udp_dropped"] == 3, "all three are counted")
        assert client.log.count("dropped:") == 1
        data.sendall(with_fields(question, payload="aGk="))  # "hi": 24,000 bytes
        while recv_frame(data)[0] != DATAGRAM:
            pass
