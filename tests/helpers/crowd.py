"""Thousands of users of one service, without a thread for each."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.helpers.harness import LOOPBACK, dial, wait_until


class Crowd:
    """A service that accepts and keeps connections without a thread for each; and users that use it."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=1024)
        self.port = int(self._listener.getsockname()[1])
        self.accepted: list[socket.socket] = []
        self.users: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.accepted.append(self._listener.accept()[0])

    def come(self, port: int, count: int) -> None:
        """Have so many users connect, a few at a time, as backlogs are short."""
        while len(self.users) < count:
            self.users += [dial(port) for _ in range(100)]
            wait_until(lambda: len(self.accepted) >= len(self.users) - 50, "users are served")
        wait_until(lambda: len(self.accepted) == count, "all users are served")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Have everybody leave."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for conn in (self._listener, *self.users, *self.accepted):
            conn.close()
