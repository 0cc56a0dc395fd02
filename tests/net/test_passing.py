"""Sockets go from one process to another with a message, or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from gnar_lib.errors import ConnClosed, ConnError, ProtocolError
from gnar_lib.net import SocketConn
from gnar_lib.net.conn import socket_class
from gnar_lib.net.passing import is_of_this_user, recv_with_sockets, send_with_sockets
from tests.helpers.descriptors import descriptors_of_this_process

Pair = tuple[SocketConn, SocketConn]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Return both ends of a connection by a Unix socket."""
    listener = socket_class(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(b"")  # the system chooses a name without a file
    listener.listen()
    one = socket_class(socket.AF_UNIX, socket.SOCK_STREAM)
    one.connect(listener.getsockname())
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    ends = SocketConn(one), SocketConn(socket_class(fileno=fd))
    yield ends
    listener.close()
    for end in ends:
        end.close()


def test_sockets_come_with_their_message_and_stay_open_at_the_sender(pair: Pair) -> None:
    ours, theirs = pair
    sent = [socket_class(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    sent[0].bind(("127.0.0.1", 0))
    send_with_sockets(ours, b"two", sent)
    send_with_sockets(ours, b"")
    message, received = recv_with_sockets(theirs)
    assert message == b"two"
    assert [each.getsockname() for each in received] == [each.getsockname() for each in sent]
    assert not any(os.get_inheritable(each.fileno()) for each in received)
    assert recv_with_sockets(theirs) == (b"", [])
    for each in [*sent, *received]:
        each.close()


def test_descriptor_of_a_file_is_closed(pair: Pair) -> None:
    ours, theirs = pair
    before = descriptors_of_this_process()
    with open("/dev/null", "rb") as file:
        socket.send_fds(ours.sock, [b"\0\0\0\0"], [file.fileno()])
    assert recv_with_sockets(theirs) == (b"", [])
    assert descriptors_of_this_process() <= before


def test_message_that_ends_early_or_is_too_long_leaves_no_socket(pair: Pair) -> None:
    ours, theirs = pair
    before = descriptors_of_this_process()
    with socket_class() as sock:
        socket.send_fds(ours.sock, [b"\xff\0\0\0"], [sock.fileno()])
        with pytest.raises(ProtocolError, match="a message of"):
            recv_with_sockets(theirs)
        socket.send_fds(ours.sock, [b"\0\0\0\2x"], [sock.fileno()])
    ours.close()
    with pytest.raises(ConnClosed):
        recv_with_sockets(theirs)
    assert descriptors_of_this_process() <= before


def test_end_before_any_message_and_a_peer_that_has_gone_are_errors_of_the_connection(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(ConnError, match="cannot pass sockets on"):
        send_with_sockets(ours, b"x")
    with pytest.raises(ConnClosed, match="the connection ended"):
        recv_with_sockets(ours)


def test_too_few_descriptors_is_one_line(pair: Pair) -> None:
    resource = pytest.importorskip("resource")
    ours, theirs = pair
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket_class() as sock:
        send_with_sockets(ours, b"x", [sock] * 3)
    with socket_class() as next_one:
        lowest_free = next_one.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, limit[1]))  # one of the three
    try:
        with pytest.raises(ConnError, match="ulimit -n"):
            recv_with_sockets(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_peer_is_of_this_user(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_of_this_user(pair[0])
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert not is_of_this_user(pair[0])
