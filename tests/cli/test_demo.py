"""What the demo says when the page does not come through the tunnel."""

from __future__ import annotations

import socket

import pytest

from gnar_lib import demo
from gnar_lib.errors import ConnError
from tests.helpers.harness import LOOPBACK, Service, free_port


def test_a_tunnel_that_does_not_answer_is_said() -> None:
    port = free_port()
    with pytest.raises(ConnError, match=rf"^http://{LOOPBACK}:{port}/ did not answer: "):
        demo._fetch(f"{LOOPBACK}:{port}")


def test_another_page_than_the_sample_is_said() -> None:
    def serve(conn: socket.socket) -> None:
        conn.recv(4096)
        conn.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nother")

    with Service(serve) as service, pytest.raises(ConnError, match="answered with something else"):
        demo._fetch(f"{LOOPBACK}:{service.port}")
