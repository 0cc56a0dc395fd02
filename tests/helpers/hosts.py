"""Programs on two hosts with a link between them, as `bench.wan` makes them, for end-to-end tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.procs import Host
from bench.wan import LongPath, WanError, wan
from tests.helpers.harness import TOKEN, wait_until

SERVICE = 3000
START_S = 20.0

ECHO = f"""
import socket, threading
def serve(conn):
    with conn:
        while data := conn.recv(65536):
            conn.sendall(data)
listener = socket.create_server(("127.0.0.1", {SERVICE}))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def long_path(delay_ms: float, what: str) -> Iterator[LongPath]:
    """Yield two hosts, so many milliseconds apart one way; skip the test where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(wan(delay_ms))
        except WanError as exc:
            pytest.skip(f"{what} IS NOT TESTED: {exc}")
        yield hosts


class Program:
    """A program on one of the hosts; its output goes to a file."""

    def __init__(self, host: Host, folder: Path, name: str, *argv: object, token: str = TOKEN) -> None:
        self.name = name
        self._path = folder / f"{name}.log"
        with self._path.open("wb") as log:
            self.process = host.popen(
                ["env", f"GNAR_TOKEN={token}", "NO_COLOR=1", "DEBUG=1", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """The output so far."""
        return self._path.read_text()

    def wait_log(self, text: str, timeout_s: float = START_S, count: int = 1) -> None:
        """Wait until a text stands in the output `count` times."""
        wait_until(
            lambda: self.log.count(text) >= count,
            f"{text!r} in the log of {self.name}:\n{self.log}",
            timeout_s,
        )

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.wait(START_S)
