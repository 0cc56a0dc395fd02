"""Listening and accepting, also when descriptors run out."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import gnar_lib
from gnar_lib import net
from gnar_lib.errors import ListenError, PortTakenError
from gnar_lib.events import DescriptorsShort, subscribe, unsubscribe
from gnar_lib.net import Crew, SocketConn, dial, listen, set_keepalive
from gnar_lib.net.conn import socket_class
from gnar_lib.net.target import Target
from tests.helpers.conns import BLACKHOLE, LOOPBACK, TIMEOUT_S, V4, accept
from tests.helpers.loop import turn, wait_until


def test_everywhere_is_ipv4_and_ipv6_on_one_port() -> None:
    listener = listen("", 0)
    for host in (LOOPBACK, "::1"):
        near = Target(host, listener.port).dial()
        far = accept(listener)
        assert net.host_of(far.getpeername()) == (f"[{host}]" if ":" in host else host)
        near.close()
        far.close()
    listener.close()


def test_port_that_is_taken_and_address_that_is_not_ours() -> None:
    listener = listen(LOOPBACK, 0)
    with pytest.raises(PortTakenError, match=f"{LOOPBACK}:{listener.port} is already in use"):
        listen(LOOPBACK, listener.port)
    with pytest.raises(PortTakenError):
        listen("", listener.port)
    listener.close()
    with pytest.raises(ListenError, match="Cannot assign requested address"):
        listen(BLACKHOLE, 0)


def test_socket_that_has_failed_is_asked_again_later_and_holds_nobody_up() -> None:
    told: list[DescriptorsShort] = []
    subscribe(DescriptorsShort, told.append)
    listener = listen(LOOPBACK, 0)
    listener.sock.shutdown(socket.SHUT_RD)  # as another process can that has the socket, too
    listener.serve(Crew("test"), SocketConn.close)
    turn()
    unsubscribe(DescriptorsShort, told.append)
    assert [each.reason for each in told] == ["Invalid argument"]
    assert not listener._watcher.active
    assert listener._pause.active
    listener.close()


def test_listener_that_was_closed_does_not_listen_again() -> None:
    """The event loop would end the process for a descriptor that it cannot watch."""
    crew = Crew("test")
    listener = listen(LOOPBACK, 0)
    listener.serve(crew, SocketConn.close)
    listener.close()
    listener.serve(crew, SocketConn.close)
    assert not listener._watcher.active
    turn()


def test_many_at_once_are_all_accepted_each_in_a_greenlet_of_its_own() -> None:
    crew, listener, count = Crew("test"), listen(LOOPBACK, 0), 300
    seen: list[SocketConn] = []

    def handle(conn: SocketConn) -> None:
        seen.append(conn)
        conn.sendall(conn.recv(10))
        conn.close()

    listener.serve(crew, handle)
    conns = [dial(V4, listener.sock.getsockname()) for _ in range(count)]
    wait_until(lambda: len(seen) == count, "all are accepted")
    assert len(crew) == count
    for conn in reversed(conns):
        conn.sendall(b"x")
        assert conn.recv(10) == b"x"
        conn.close()
    assert crew.wait_empty(TIMEOUT_S)
    listener.close()


def test_handler_may_close_the_listener_and_a_defect_of_one_harms_no_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [caplog.handler])
    crew, listener = Crew("test"), listen(LOOPBACK, 0)
    seen: list[int] = []

    def handle(conn: SocketConn) -> None:
        seen.append(1)
        conn.close()
        if len(seen) == 1:
            raise ZeroDivisionError
        listener.close()

    address = listener.sock.getsockname()
    conns = [dial(V4, address) for _ in range(3)]
    listener.serve(crew, handle)
    wait_until(lambda: len(seen) >= 2, "two are accepted")
    turn()
    assert len(seen) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert crew.wait_empty(TIMEOUT_S)
    for conn in conns:
        conn.close()


FEW_DESCRIPTORS = """
import resource, socket, sys
import gevent
from gnar_lib import eventlog, logger, net
logger.setup()
eventlog.start()
held, crew, listener = [], net.Crew("test"), net.listen("127.0.0.1", 0)
listener.serve(crew, held.append)
clients = [socket.socket() for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 6, 200))
for client in clients:
    client.connect(listener.sock.getsockname())
while not 0 < len(held) < 20 or listener._watcher.active:
    gevent.sleep(0.005)
for _ in range(9):  # it tries again and again
    listener.serve(crew, held.append)
    while listener._watcher.active:
        gevent.sleep(0.005)
print("waits with", len(held) < 20, flush=True)
served = 0
while served < 20:
    gevent.sleep(0.005)
    served += len(held)
    while held:
        held.pop().close()
print("served", served, flush=True)
"""


def test_keep_alive_on_a_socket_that_takes_no_options_any_more_is_no_error() -> None:
    sock = socket_class(socket.AF_INET, socket.SOCK_STREAM)
    sock.close()  # as macOS refuses any option once the peer has reset
    set_keepalive(sock)


def test_out_of_descriptors_makes_accepting_wait_and_then_go_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        env=os.environ | {"PYTHONPATH": str(Path(gnar_lib.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout == "waits with True\nserved 20\n", done.stderr
    assert done.stderr.count("accepting waits: Too many open files") == 1
    assert "Traceback" not in done.stderr
