"""A control connection at a real server: what happens to its ports when things go wrong at the wrong moment."""

from __future__ import annotations

import errno
import os

import pytest
from test_auth import answer_of, serving

from gnar_lib.net.conn import socket_class
from gnar_lib.proto import ProxyReq, send


@pytest.mark.parametrize(("kind", "module"), [("tcp", "endpoint"), ("udp", "datagram")])
def test_port_for_which_no_descriptor_is_left_may_be_asked_for_again(
    kind: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoDescriptorLeft(socket_class):  # type: ignore[valid-type,misc]  # which class is known when it runs
        def __init__(self, *_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def __del__(self) -> None:
            """There is no socket that could be left open."""

    with serving() as running:
        ours, _ = running.log_in("ours")
        monkeypatch.setattr(f"gnar_lib.net.{module}.socket_class", NoDescriptorLeft)
        send(ours.conn, ProxyReq(remote_port=9001, proxy_name="x", subdomain="", proxy_type=kind))
        answer = answer_of(ours.conn)
        assert (answer.status, answer.retry) == ("failed", True)
        assert "Too many open files" in answer.error
        ours.conn.close()
