"""The recorded bytes of the Go programs, given to a session of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.loop import turn
from tests.peers.mux import (
    clean,
    session_and_peer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


WIRE = Path(__file__).resolve().parent.parent / "wire"
TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", ["go-2024-tcp-multiplex", "go-2024-udp-multiplex"])
def test_what_a_go_client_sent_reaches_the_streams(name: str, cut: bool) -> None:
    chunks = json.loads((WIRE / f"{name}.json").read_text())
    data = b"".join(bytes.fromhex(chunk["hex"]) for chunk in chunks if chunk["from"] == "client")
    data = data[3 + int.from_bytes(data[1:3], "big") :]  # Login comes before the first frame
    with session_and_peer() as (session, peer):
        for piece in (data[at : at + 1] for at in range(len(data))) if cut else [data]:
            peer.conn.sendall(piece)
            if cut:
                turn()
        messages = [session.accept().recv(5) for _ in range(3)]
        assert [message[0] for message in messages] == [3, 6, 5]  # ProxyReq, Exchange, ProxyCancel


@pytest.mark.parametrize("name", ["go-2024-tcp-multiplex", "go-2024-udp-multiplex"])
def test_what_a_go_server_sent_reaches_the_streams(name: str) -> None:
    chunks = json.loads((WIRE / f"{name}.json").read_text())
    with session_and_peer(is_client=True) as (session, peer):
        control, data, cancel = session.open(), session.open(), session.open()
        turn()
        for chunk in chunks:
            if chunk["from"] == "server":
                peer.conn.sendall(bytes.fromhex(chunk["hex"]))
        assert control.recv(1) == b"\4"  # ProxyResp
        assert data.recv(1) in (b"h", b"\7")  # the user's bytes, or a datagram
        assert cancel.recv(1) == b""
        assert not session.closed
