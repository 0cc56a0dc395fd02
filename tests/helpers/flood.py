"""Floods of datagrams, for tests with real processes."""

from __future__ import annotations

import contextlib
import threading

from tests.helpers.harness import (
    WAIT_S,
)
from tests.helpers.udp import user_of


class Flood:
    """Sends datagrams as fast as one thread can, for as long as the block lasts."""

    def __init__(self, port: int, size: int = 100) -> None:
        self.sent = 0
        self._port = port
        self._data = b"x" * size
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with user_of(self._port) as user:
            user.setblocking(False)
            while not self._is_ending.is_set():
                with contextlib.suppress(OSError):
                    user.send(self._data)
                    self.sent += 1

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        self._thread.join(WAIT_S)
