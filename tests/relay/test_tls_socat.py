"""A relay by TLS and socat, either of which comes to the other."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from gevent.hub import get_hub

from gnar_lib import net
from gnar_lib.errors import ConnError
from tests.helpers.loop import wait_until
from tests.helpers.relays import TIMEOUT_S, ask, read_all, relaying, serving
from tests.helpers.tls_relays import (
    LISTEN,
    LOOPBACK,
)

needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")


def run_socat(*line: str, said: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run socat with some text as its standard input, while the loop goes on."""
    return get_hub().threadpool.apply(
        subprocess.run,
        (["socat", "-t10", "-d", *line],),
        {"input": said, "capture_output": True, "timeout": TIMEOUT_S},
    )


@needs_socat
@pytest.mark.parametrize("version", ["TLS1.2", "TLS1.3"])
def test_socat_comes_to_a_relay(made: Path, version: str) -> None:
    listen = f"OPENSSL-LISTEN:0,bind={LOOPBACK},cert={made}/server.pem,cafile={made}/user.crt,fork"
    with serving() as service, relaying(listen, service.address) as running:
        address = f"OPENSSL:localhost:{running.listener.port},cafile={made}/server.crt,cert={made}/user.pem"
        run = run_socat("-", f"{address},openssl-max-proto-version={version}", said=b"question" * 10_000)
        assert run.stdout == b"answer to " + b"question" * 10_000, run.stderr
        assert run.returncode == 0


@needs_socat
def test_socat_sends_on_after_the_service_has_ended() -> None:
    heard: list[bytes] = []

    def speak_first(conn: net.SocketConn) -> None:
        conn.sendall(b"hello")
        conn.shutdown(socket.SHUT_WR)
        heard.append(read_all(conn))

    with serving(speak_first) as service, relaying(LISTEN, service.address) as running:
        client = subprocess.Popen(
            ["socat", "-t10", "-", f"OPENSSL:localhost:{running.listener.port},verify=0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None
        assert get_hub().threadpool.apply(client.stdout.read, (5,)) == b"hello"
        get_hub().threadpool.apply(client.communicate, (b"later",), {"timeout": TIMEOUT_S})
        wait_until(lambda: heard, "the service has heard the end")
    assert heard == [b"later"]


@needs_socat
def test_relay_comes_to_socat(made: Path) -> None:
    with serving() as gone:
        port = gone.listener.port
    cert = f"cert={made}/server.pem,cafile={made}/user.crt"
    listening = subprocess.Popen(
        ["socat", f"OPENSSL-LISTEN:{port},bind={LOOPBACK},reuseaddr,fork,{cert}", "SYSTEM:sort"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        ends = f"cafile={made}/server.crt,cert={made}/user.pem,forever,interval=0.1"
        for target in (f"OPENSSL:localhost:{port},{ends}", f"tls:localhost:{port},{ends}"):
            with relaying(f"tcp:{LOOPBACK}:0", target) as running:
                lines = [b"%06d\n" % number for number in range(10_000)]
                assert ask(running, b"".join(reversed(lines))) == b"".join(lines)  # sorted behind the end
    finally:
        os.killpg(listening.pid, signal.SIGTERM)  # with a process for each user
        listening.wait(TIMEOUT_S)


@needs_socat
def test_socat_and_a_relay_refuse_the_same(made: Path) -> None:
    """A name that is not the server's, and a server that nobody has vouched for."""
    with serving() as service, relaying(f"{LISTEN},cert={made}/other.pem", service.address) as running:
        for options in (f"cafile={made}/other.crt", f"cafile={made}/server.crt", "commonname=other.example"):
            address = f"OPENSSL:localhost:{running.listener.port},{options}"
            assert run_socat("-", address, said=b"").returncode == 1
            with relaying(f"tcp:{LOOPBACK}:0", address) as second, pytest.raises(ConnError):
                ask(second)
        good = f"OPENSSL:localhost:{running.listener.port},cafile={made}/other.crt,cn=other.example"
        assert run_socat("-", good, said=b"question").stdout == b"answer to question"
        with relaying(f"tcp:{LOOPBACK}:0", good) as second:
            assert ask(second) == b"answer to question"
