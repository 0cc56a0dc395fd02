"""The health check tells whether a server answers, with any settings, and leaves nothing at the server."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from gnar_lib import cmd, health
from gnar_lib.config import Address
from gnar_lib.errors import ConnError, DeadlineError, ProtocolError
from gnar_lib.proto import Heartbeat, Login, ProxyReq, Welcome, to_frame
from gnar_lib.proto.msg import AUTH_NONE, from_frame
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Service,
    Tunnels,
    dial,
    echo,
    free_port,
    greet,
    read_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHORT_S = 0.3  # for answers that never come
QUESTION = Login(token="", timestamp=0, auth=AUTH_NONE, nonce="ab" * 32)


def run_health(pyz: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `gnar health` with settings of a server in its environment."""
    return subprocess.run(
        [pyz, "health", *args],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S * 3,
    )


# ---- with a server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "options"), [(TOKEN, ""), (TOKEN, "--auth hmac"), ("", "")], ids=["token", "hmac", "no-token"]
)
def test_a_server_answers_without_the_token_and_notes_nothing(
    plain_tunnels: Tunnels, token: str, options: str
) -> None:
    server, port = plain_tunnels.server(*options.split(), token=token)
    for _ in range(3):
        health.check(Address(LOOPBACK, port), WAIT_S)
    assert server.wait_idle()["clients"] == 0
    said = [line for line in server.log.splitlines() if "status:" not in line]
    usual = ("listening on", "no token: ", "the certificate has the SHA-256")
    assert [line for line in said if not any(words in line for words in usual)] == []


def test_the_command_finds_the_server_by_its_settings_or_by_an_address(
    plain_tunnels: Tunnels, gnar_pyz: Path
) -> None:
    server, number = plain_tunnels.server()
    port = str(number)
    done = run_health(gnar_pyz, GNAR_PORT=port)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gnar answers at {LOOPBACK}:{port}\n", "")
    assert run_health(gnar_pyz, f"localhost:{port}").returncode == 0
    server.stop()
    done = run_health(gnar_pyz, GNAR_PORT=port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gnar: no answer from {LOOPBACK}:{port}: Connection refused\n"


def test_a_server_that_is_stuck_does_not_pass(plain_tunnels: Tunnels) -> None:
    server, port = plain_tunnels.server()
    server.signal(signal.SIGSTOP)  # the kernel still accepts connections for it
    try:
        with pytest.raises(DeadlineError, match=rf"^no answer from {LOOPBACK}:{port} within {SHORT_S} s$"):
            health.check(Address(LOOPBACK, port), SHORT_S)
    finally:
        server.signal(signal.SIGCONT)
    health.check(Address(LOOPBACK, port), WAIT_S)


def test_nothing_can_be_opened_behind_a_health_check(plain_tunnels: Tunnels) -> None:
    server, port = plain_tunnels.server(token="")
    request = ProxyReq(remote_port=0, proxy_name="x", subdomain="", proxy_type="tcp")
    with dial(port) as sock:
        sock.sendall(to_frame(QUESTION) + to_frame(request))
        answer = from_frame(read_all(sock))
    assert isinstance(answer, Welcome)
    assert (answer.session, answer.error) == ("", "")
    assert server.wait_idle()["proxies"] == 0


@pytest.mark.usefixtures("unmeasured")
def test_the_command_does_not_load_gevent(plain_tunnels: Tunnels) -> None:
    _, port = plain_tunnels.server()
    code = "import sys, gnar; status = gnar.main(); assert 'gevent' not in sys.modules; sys.exit(status)"
    done = subprocess.run(
        [sys.executable, "-c", code, "health", f"{LOOPBACK}:{port}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- with something else -----------------------------------------------------------------------------------


def hang_up(conn: socket.socket) -> None:
    conn.recv(1)


def reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answer_heartbeat(conn: socket.socket) -> None:
    conn.sendall(to_frame(Heartbeat()))
    conn.recv(4096)


def answer_http(conn: socket.socket) -> None:
    conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    conn.recv(4096)


def answer_half(conn: socket.socket) -> None:
    conn.sendall(to_frame(Welcome())[:2])
    conn.shutdown(socket.SHUT_WR)
    conn.recv(4096)


@pytest.mark.parametrize(
    ("serve", "error", "said"),
    [
        (echo, ProtocolError, "not a gnar server at .*: it answered Login"),
        (greet, ProtocolError, "not a gnar server at .*: unknown packet type 0x68"),
        (answer_http, ProtocolError, "not a gnar server at .*: this is HTTP"),
        (answer_heartbeat, ProtocolError, "not a gnar server at .*: it answered Heartbeat"),
        (answer_half, ConnError, "no answer from .*: it hung up instead"),
        (hang_up, ConnError, "no answer from .*: (it hung up instead|Connection reset by peer)"),
        (reset, ConnError, "no answer from .*: "),
    ],
)
def test_what_is_no_server_does_not_pass(
    serve: Callable[[socket.socket], None], error: type[Exception], said: str
) -> None:
    with Service(serve) as service, pytest.raises(error, match=said):
        health.check(Address(LOOPBACK, service.port), WAIT_S)


def test_an_answer_that_comes_byte_by_byte_has_no_more_time_than_another() -> None:
    def trickle(conn: socket.socket) -> None:
        for byte in b"\x12\xff\xff" + b" " * 1000:
            conn.sendall(bytes([byte]))
            time.sleep(SHORT_S / 10)  # each byte is well in time

    began_s = time.monotonic()
    with Service(trickle) as service, pytest.raises(DeadlineError):
        health.check(Address(LOOPBACK, service.port), SHORT_S)
    assert time.monotonic() - began_s < SHORT_S * 50  # of the 100 that the whole answer takes


def test_a_deadline_that_has_passed_is_said_before_anything_is_sent() -> None:
    with Service(hang_up) as service, pytest.raises(DeadlineError, match="no answer from"):
        health.check(Address(LOOPBACK, service.port), 0.0)


def test_a_name_that_leads_nowhere_is_no_answer() -> None:
    with pytest.raises(ConnError, match=r"no answer from a\.\.b:1: "):
        health.check(Address("a..b", 1), SHORT_S)


def test_the_addresses_of_a_name_are_tried_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def welcome(conn: socket.socket) -> None:
        conn.sendall(to_frame(Welcome()))
        read_all(conn)

    with Service(welcome) as service:
        unreachable, shut = ("255.255.255.255", 1), (LOOPBACK, free_port())
        addresses = [unreachable, shut, (LOOPBACK, service.port)]
        lookup = socket.getaddrinfo

        def look_up(host: str, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
            if host == "three":
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
            return [*lookup(host, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        health.check(Address("three", 1), WAIT_S)
        addresses.pop()
        with pytest.raises(ConnError, match=r"^no answer from three:1: Connection refused$"):
            health.check(Address("three", 1), WAIT_S)


def test_a_link_local_address_is_dialled_on_its_own_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    address = ("fe80::1", 8910, 0, 7)  # the last number is that of the interface
    dialled = []

    def look_up(host: str, *_: Any, **_options: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", address if "%" in host else (host, 8910, 0, 0))]

    class Dials(socket.socket):
        def connect(self, where: Any) -> None:
            dialled.append(where)
            raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "socket", Dials)
    with pytest.raises(ConnError, match="Connection refused"):
        health.check(Address("fe80::1%eth0", 8910), SHORT_S)
    assert dialled == [address]


@pytest.mark.parametrize("text", ["nan", "-1", "1e9", "0", "0.05", "x"])
def test_a_timeout_out_of_bounds_is_refused_with_both_bounds(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cmd.main(["health", f"--timeout={text}"]) == 2
    assert capsys.readouterr().err == f"gnar: --timeout: '{text}': expected seconds from 0.1 to 86400\n"
