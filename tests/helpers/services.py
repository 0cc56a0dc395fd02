"""Services for tests, besides those of the harness."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.helpers.harness import (
    read_all,
)


def answer_with(text: bytes) -> Callable[[socket.socket], None]:
    """Return a service that reads to the end of the stream and then sends a text."""

    def serve(conn: socket.socket) -> None:
        read_all(conn)
        conn.sendall(text)

    return serve
