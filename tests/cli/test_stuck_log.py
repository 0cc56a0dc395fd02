"""Processes whose standard error nobody reads any more: they serve, stop and end as if somebody did."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import tty
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.harness import LOOPBACK, SOON_S, Service, ask, echo, free_port, is_open, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
SMALLEST_PIPE_BYTES = 4096
USERS = 60


def full_pipe() -> tuple[int, int]:
    """Return both ends of a pipe that takes no byte more, the end to read first."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE_BYTES)
    fill(writer)
    return reader, writer


def stopped_terminal() -> tuple[int, int]:
    """Return both ends of a terminal on which ^S was pressed, the end to read first."""
    screen, terminal = pty.openpty()
    tty.setraw(terminal)
    termios.tcflow(terminal, termios.TCOOFF)
    return screen, terminal


def fill(file: int) -> None:
    """Write to a file that nobody reads until it takes no byte more."""
    os.set_blocking(file, False)
    with suppress(BlockingIOError):
        while True:
            os.write(file, b"." * SMALLEST_PIPE_BYTES)
    os.set_blocking(file, True)


@contextmanager
def process(output: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run gnar at debug level for the block; the process is killed if it has not ended by then."""
    running = subprocess.Popen(
        [sys.executable, ROOT / "gnar.py", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | {"DEBUG": "1", "NO_COLOR": "1"},
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("stuck", [full_pipe, stopped_terminal])
def test_users_are_served_and_sigterm_ends_a_relay_whose_log_nobody_reads(
    stuck: Callable[[], tuple[int, int]],
) -> None:
    reader, writer = stuck()
    port = free_port()
    with (
        Service(echo) as service,
        process(writer, "relay", f"tcp:{LOOPBACK}:{port}", f"tcp:{LOOPBACK}:{service.port}") as relay,
    ):
        wait_until(lambda: is_open(port), "the relay listens")
        assert [ask(port) for _ in range(USERS)] == [b"ping"] * USERS
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(SOON_S) == 0
    os.close(writer)
    os.close(reader)


def test_demo_whose_output_nobody_reads_works_and_ends() -> None:
    reader, writer = full_pipe()
    port = free_port()
    with process(writer, "demo", str(port)) as demo:
        wait_until(lambda: ask(port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200"), "the page")
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(SOON_S) == 0
    os.close(writer)
    os.close(reader)


def test_an_error_that_nobody_reads_ends_the_process_all_the_same() -> None:
    reader, writer = full_pipe()
    with process(writer, "relay", "nonsense", "tcp:1") as relay:
        assert relay.wait(SOON_S) == 2
    os.close(writer)
    os.close(reader)
