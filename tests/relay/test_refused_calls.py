"""Users are served by a kernel that refuses system calls without which gnar can do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gnar_lib import net
from tests.helpers import seccomp
from tests.helpers.harness import free_port
from tests.helpers.loop import wait_until
from tests.helpers.relays import TIMEOUT_S, V4, Service, answer_at_the_end, read_all, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such filter")

GNAR = str(Path(__file__).resolve().parent.parent.parent / "gnar.py")
BULK = os.urandom(1 << 20)


def answer_through_relay(service: Service, error: str, *refused: str) -> tuple[bytes, str]:
    """Send bulk through a relay whose system calls are refused; return the answer, and the relay's log."""
    port = free_port()
    relay = subprocess.Popen(
        [
            *seccomp.command(error, *refused),
            *(sys.executable, GNAR, "relay", f"tcp:127.0.0.1:{port}", service.address),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    with relay:
        try:
            assert relay.stderr is not None
            assert "relaying" in relay.stderr.readline()
            user = net.dial(V4, ("127.0.0.1", port))
            user.sendall(BULK)
            user.shutdown(socket.SHUT_WR)
            answer = read_all(user)
            user.close()
            relay.terminate()
            wait_until(lambda: relay.poll() is not None, "the relay has ended", TIMEOUT_S)
        finally:
            relay.kill()
        return answer, relay.stderr.read()


@pytest.mark.parametrize("error", ["EINVAL", "ENOSYS", "EPERM"])
def test_bulk_arrives_whole_where_splice_is_refused(error: str) -> None:
    with serving(answer_at_the_end) as service:
        answer, log = answer_through_relay(service, error, "splice")
    assert answer == b"answer to " + BULK
    assert log.count("the system refuses splice") == 1


@pytest.mark.parametrize("refused", ["fcntl:F_SETPIPE_SZ", "pipe2"])
def test_bulk_arrives_whole_without_a_pipe_that_is_large_enough(refused: str) -> None:
    with serving(answer_at_the_end) as service:
        answer, log = answer_through_relay(service, "EPERM", refused)
    assert answer == b"answer to " + BULK
    assert "Traceback" not in log
