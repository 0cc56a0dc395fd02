"""Sockets of a service manager: what the variables say, and what is refused in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from gnar_lib.errors import UsageError
from gnar_lib.net import given
from gnar_lib.net.conn import socket_class
from gnar_lib.net.given import given_sockets

LOOPBACK = "127.0.0.1"


def opened(kind: str) -> socket.socket:
    """Return a socket of a kind, which the test leaves to `given_sockets`."""
    family = {"unix": socket.AF_UNIX}.get(kind, socket.AF_INET)
    sock = socket_class(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    if kind != "unix":
        sock.bind((LOOPBACK, 0))
    if kind == "tcp":
        sock.listen()
    return sock


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let a test set the variables, which `given_sockets` removes."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    yield monkeypatch
    assert not any(name.startswith("LISTEN_") for name in os.environ)


def give(variables: pytest.MonkeyPatch, *kinds: str) -> list[int]:
    """Have sockets of these kinds be at descriptors in a row; return their ports."""
    socks = [opened(kind) for kind in kinds]
    ports = [int(sock.getsockname()[1]) for sock in socks if sock.family == socket.AF_INET]
    first = 700  # high, where nothing else is open
    for index, sock in enumerate(socks):
        os.dup2(sock.fileno(), first + index)
        sock.close()
    variables.setattr(given, "FIRST", first)
    variables.setenv("LISTEN_FDS", str(len(kinds)))
    return ports


def test_sockets_have_the_names_and_ports_that_they_were_given(variables: pytest.MonkeyPatch) -> None:
    ports = give(variables, "tcp", "udp", "tcp")
    variables.setenv("LISTEN_FDNAMES", "control:dns")
    found = given_sockets()
    assert [(each.name, each.kind, each.port) for each in found] == [
        ("control", "tcp", ports[0]),
        ("dns", "udp", ports[1]),
        ("unknown", "tcp", ports[2]),
    ]
    assert not any(os.get_inheritable(each.sock.fileno()) for each in found)
    assert str(found[0]) == f"tcp {LOOPBACK}:{ports[0]} (control)"
    for each in found:
        each.sock.close()


@pytest.mark.parametrize("pid", ["1", "", "x"])
def test_sockets_of_another_process_are_not_ours(variables: pytest.MonkeyPatch, pid: str) -> None:
    variables.setenv("LISTEN_FDS", "1")
    variables.setenv("LISTEN_PID", pid)
    assert given_sockets() == []


@pytest.mark.parametrize("count", ["x", "-1", "9" * 5000, "²"])
def test_count_that_is_no_number_is_refused(variables: pytest.MonkeyPatch, count: str) -> None:
    variables.setenv("LISTEN_FDS", count)
    with pytest.raises(UsageError, match="LISTEN_FDS"):
        given_sockets()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unix", "no socket of TCP or UDP"),
        ("silent", "does not listen; a unit with Accept=yes"),
        ("none", "descriptor 700"),
    ],
)
def test_socket_of_another_kind_is_refused(variables: pytest.MonkeyPatch, kind: str, error: str) -> None:
    give(variables, kind)
    if kind == "none":
        os.close(700)
    with pytest.raises(UsageError, match=error):
        given_sockets()
