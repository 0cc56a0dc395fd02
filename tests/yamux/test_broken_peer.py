"""A session whose peer breaks the rules, sends what is unusual but allowed, or cannot be written to."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError, MuxError
from gnar_lib.yamux import sender
from gnar_lib.yamux import session as session_module
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from tests.helpers.loop import turn
from tests.peers.mux import (
    Frame,
    Peer,
    clean,
    conn_pair,
    encode,
    read_all,
    session_and_peer,
    wait_end,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


TIMEOUT_S = 20.0
GONE: Frame = (GO_AWAY, 0, 0, PROTOCOL_ERROR)
BROKEN: dict[str, list[bytes | Frame]] = {
    "unknown version": [b"\1" + bytes(11)],
    "unknown type": [b"\0\4" + bytes(10)],
    "stream opened twice": [(WINDOW_UPDATE, SYN, 1, 0), (DATA, SYN, 1, b"x")],
    "stream id of the wrong parity": [(WINDOW_UPDATE, SYN, 2, 0)],
    "stream id of the session": [(WINDOW_UPDATE, SYN, 0, 0)],
    "data beyond the window": [(DATA, SYN, 1, bytes(INITIAL_WINDOW_BYTES + 1))],
    "data beyond the window in parts": [(DATA, SYN, 1, bytes(INITIAL_WINDOW_BYTES)), (DATA, 0, 1, b"x")],
    "window that overflows": [(WINDOW_UPDATE, SYN, 1, 0xFFFFFFFF)],
    "second FIN": [(WINDOW_UPDATE, SYN | FIN, 1, 0), (WINDOW_UPDATE, FIN, 1, 0)],
    "data after FIN": [(WINDOW_UPDATE, SYN | FIN, 1, 0), (DATA, 0, 1, b"x")],
}


@pytest.fixture(autouse=True)
def _bounded_and_clean() -> Iterator[None]:
    with clean(TIMEOUT_S):
        yield


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cut", [False, True])
def test_peer_that_breaks_the_rules_is_told_and_left(name: str, cut: bool) -> None:
    data = b"".join(each if isinstance(each, bytes) else encode(*each) for each in BROKEN[name])
    with session_and_peer() as (session, peer):
        if cut and len(data) < 100:
            for at in range(len(data)):
                if not session.closed:  # it need not wait for a payload
                    peer.conn.sendall(data[at : at + 1])
                turn()
        else:
            send_in_background(peer, data)
        assert peer.recv_to_end()[-1] == GONE
        assert session.closed
        assert session.error is not None
        with pytest.raises(MuxError):
            session.open()


def send_in_background(peer: Peer, data: bytes) -> None:
    """Send in a greenlet; an error is ignored, since the session may end meanwhile."""

    def send() -> None:
        with suppress(ConnError):
            peer.conn.sendall(data)

    gevent.spawn(send)


@pytest.mark.parametrize("odd_or_zero", [3, 0])
def test_session_for_a_client_takes_even_ids_only(odd_or_zero: int) -> None:
    with session_and_peer(is_client=True) as (_, peer):
        peer.send((DATA, SYN, 2, b"fine"), (DATA, SYN, odd_or_zero, b"not"))
        assert peer.recv_to_end()[-1] == GONE


def test_any_frame_type_may_open_and_flags_are_bits() -> None:
    with session_and_peer() as (session, peer):
        peer.send(
            (DATA, SYN | FIN, 1, b"one"),
            (WINDOW_UPDATE, SYN | FIN, 3, 5),
            (DATA, SYN | ACK, 5, b"three"),
            (WINDOW_UPDATE, FIN | ACK, 5, 0),
        )
        assert [read_all(session.accept()) for _ in range(3)] == [b"one", b"", b"three"]
        peer.send((WINDOW_UPDATE, SYN | RST, 7, 0), (DATA, SYN, 9, b"five"))
        assert session.accept().recv(4) == b"five"  # a stream that has been reset already concerns nobody


def test_session_that_took_bytes_with_its_conn_handles_them_first() -> None:
    ours, theirs = conn_pair()
    ours.unread(encode(DATA, SYN, 1, b"early")[:-2])
    session, peer = session_module.Session(ours, is_client=False), Peer(theirs)
    peer.conn.sendall(b"ly" + encode(DATA, FIN, 1, b" and late"))
    assert read_all(session.accept()) == b"early and late"
    session.close()
    theirs.close()


def test_write_that_fails_half_way_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "UNSENT_BYTES", 4096)
    with session_and_peer(is_client=True) as (session, peer):
        stream = session.open()
        crew = net.Crew("writer")
        crew.spawn(stream.sendall, bytes(200_000))
        crew.spawn(session.open().sendall, bytes(2_000_000))
        turn()
        peer.conn.abort()
        assert "reset" in wait_end(session) or "Broken pipe" in str(session.error)
        assert crew.wait_empty(5)
        with pytest.raises(ConnClosed):
            stream.sendall(b"x")


@pytest.mark.parametrize("size", [1, 30_000])
def test_write_that_fails_ends_the_session_while_nothing_can_be_read(size: int) -> None:
    with session_and_peer(is_client=True) as (session, peer):
        stream = session.open()
        turn()
        peer.conn.sock.shutdown(socket.SHUT_RD)
        stream.send_now(bytes(size))
        assert session.closed
        assert "Broken pipe" in str(session.error)
