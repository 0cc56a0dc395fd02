"""The relay as a real process, with signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gnar_lib
from gnar_lib import net
from gnar_lib.errors import DialError, PortTakenError, UsageError
from gnar_lib.relay import RelaySettings, Role, UdpSettings, parse_address, run_relay, serve
from tests.helpers.loop import wait_until
from tests.helpers.relays import TIMEOUT_S, read_all, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(gnar_lib.__file__).parent.parent
RUN = """
import sys
from gnar_lib.relay import RelaySettings, run_relay
sys.exit(run_relay(sys.argv[1], sys.argv[2], RelaySettings(float(sys.argv[3]))))
"""


@contextmanager
def process(*args: str, grace_s: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    """Run a relay for the block; it is killed when it has not ended by then."""
    running = subprocess.Popen(
        [sys.executable, "-c", RUN, *args, str(grace_s)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        if running.stderr is not None:
            running.stderr.close()


def wait_for_end(running: subprocess.Popen[str]) -> int:
    """Return the exit status, while the service in this process goes on."""
    wait_until(lambda: running.poll() is not None, "the relay has ended")
    return running.returncode


def dial_path(path: Path) -> net.SocketConn:
    """Connect to the path as soon as the relay listens there; the caller closes the conn."""
    conns: list[net.SocketConn] = []

    def is_connected() -> bool:
        with suppress(DialError):
            conns.append(net.dial(socket.AF_UNIX, str(path)))
        return bool(conns)

    wait_until(is_connected, f"{path} is listened on")
    return conns[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_users_finish_and_removes_the_file(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "x.sock"
    with serving() as service, process(f"unix:{path}", service.address) as running:
        user = dial_path(path)
        wait_until(lambda: service.conns, "the service has the user")
        running.send_signal(number)
        wait_until(lambda: not path.exists(), "the file is gone")
        user.sendall(b"late question")
        user.shutdown(socket.SHUT_WR)
        assert read_all(user) == b"answer to late question"
        user.close()
        assert wait_for_end(running) == 0


def test_a_second_signal_ends_users_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service, process(f"unix:{path}", service.address) as running:
        user = dial_path(path)
        wait_until(lambda: service.conns, "the service has the user")
        running.terminate()
        wait_until(lambda: not path.exists(), "the file is gone")
        before = time.monotonic()
        running.terminate()
        assert wait_for_end(running) == 0
        assert time.monotonic() - before < 15  # half of the grace
        user.close()


@pytest.mark.parametrize(
    ("listen", "target", "said"),
    [
        ("tcp:127.0.0.1:0", "tcp:127.0.0.1:1", "users=0"),
        ("udp:127.0.0.1:0", "udp:127.0.0.1:1", "udp_sessions=0"),
    ],
)
def test_a_relay_tells_what_there_is(tmp_path: Path, listen: str, target: str, said: str) -> None:
    log = tmp_path / "log"
    code = "from gnar_lib import logger; logger.setup()\n" + RUN
    with log.open("wb") as stream:
        running = subprocess.Popen(
            [sys.executable, "-c", code, listen, target, "1"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=stream,
        )
    try:
        wait_until(lambda: "relaying" in log.read_text(), "the relay listens")
        running.send_signal(signal.SIGUSR1)
        wait_until(lambda: f"status: {said}" in log.read_text(), "the status")
        running.terminate()
        assert running.wait(TIMEOUT_S) == 0
    finally:
        running.kill()
        running.wait()


def test_a_process_without_fork_ends_with_its_user(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service, process(f"UNIX-LISTEN:{path}", service.address) as running:
        user = dial_path(path)
        user.sendall(b"question")
        user.shutdown(socket.SHUT_WR)
        assert read_all(user) == b"answer to question"
        user.close()
        assert wait_for_end(running) == 0
        assert not path.exists()


def test_a_process_without_fork_fails_when_its_target_is_down(tmp_path: Path) -> None:
    with process(f"UNIX-LISTEN:{tmp_path}/x.sock", f"unix:{tmp_path}/nobody") as running:
        dial_path(tmp_path / "x.sock").close()
        assert wait_for_end(running) == 1
        assert running.stderr is not None
        assert "cannot connect to" in running.stderr.read()


def test_a_killed_relay_is_followed_by_another_on_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service:
        with process(f"unix:{path}", service.address) as running:
            dial_path(path).close()
            running.kill()
            wait_for_end(running)
        assert path.exists()
        with process(f"unix:{path}", service.address):
            user = dial_path(path)
            user.shutdown(socket.SHUT_WR)
            assert read_all(user) == b"answer to "
            user.close()


def test_wrong_addresses_are_refused_before_anything_is_listened_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run_relay(f"unix:{tmp_path}/x.sock", "tcp:nowhere", RelaySettings(0.0))
    with pytest.raises(UsageError, match="one is for connections, the other for datagrams"):
        run_relay(f"unix:{tmp_path}/x.sock", "udp:53", RelaySettings(0.0))
    with pytest.raises(UsageError, match="are for relays of datagrams"):
        run_relay(f"unix:{tmp_path}/x.sock", "tcp:53", RelaySettings(0.0, UdpSettings(timeout_s=60.0)))
    assert not (tmp_path / "x.sock").exists()


def test_a_tcp_port_that_is_taken_is_said() -> None:
    with serving() as service, pytest.raises(PortTakenError, match="is already in use"):
        serve._listen(parse_address(f"tcp:127.0.0.1:{service.listener.port}", Role.LISTEN))
