"""The same address at socat and at gnar: what users, files and services see is the same."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from gnar_lib import net
from gnar_lib.errors import ConnError
from gnar_lib.relay import Relay, Role, parse_address, take_options
from tests.helpers.loop import turn, wait_until
from tests.helpers.onefile import needs_root
from tests.helpers.relays import TIMEOUT_S, read_all, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")

Runs = Callable[..., AbstractContextManager[None]]


@contextmanager
def socat(*line: str) -> Iterator[None]:
    """Run socat for the block."""
    running = subprocess.Popen(["socat", *line], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(running.pid, 15)  # with a process for each user
        running.wait(TIMEOUT_S)


@contextmanager
def gnar(*line: str) -> Iterator[None]:
    """Run a relay in this process for the block."""
    (listen, target), options = take_options([*line])
    relay = Relay(
        parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET), lambda: None, options
    )
    try:
        yield
    finally:
        relay.close()
        relay.users.kill()
        assert relay.users.wait_empty(TIMEOUT_S)


BOTH = pytest.mark.parametrize("program", [socat, gnar])


def connect(path: Path) -> net.SocketConn:
    """Connect as a user once the path is listened on; the caller closes the conn."""
    conns: list[net.SocketConn] = []

    def is_connected() -> bool:
        with suppress(ConnError):
            conns.append(net.dial(socket.AF_UNIX, str(path)))
        return bool(conns)

    wait_until(is_connected, "it listens")
    return conns[0]


def ask(user: net.SocketConn) -> bytes:
    """Send a question, and return the answer; closes the conn."""
    user.sendall(b"question")
    user.shutdown(socket.SHUT_WR)
    answer = read_all(user)
    user.close()
    return answer


@BOTH
@needs_root
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("umask=027", (0, 0, 0o750)),
        ("user=12,group=13,mode=0660", (12, 13, 0o660)),
        ("perm=606,uid=1", (1, 0, 0o606)),
    ],
)
def test_file_of_a_socket(program: Runs, tmp_path: Path, options: str, found: tuple[int, int, int]) -> None:
    path = tmp_path / "x"
    with program(f"UNIX-LISTEN:{path},fork,{options}", f"UNIX-CONNECT:{tmp_path}/nobody"):
        connect(path).close()
        is_now = path.stat()
        assert (is_now.st_uid, is_now.st_gid, stat.S_IMODE(is_now.st_mode)) == found


@BOTH
def test_no_more_users_than_max_children_at_once(program: Runs, tmp_path: Path) -> None:
    path = tmp_path / "x"
    listen = f"UNIX-LISTEN:{path},fork,max-children=1"
    with serving() as service, program(listen, service.address.upper()):
        first, second = connect(path), connect(path)
        wait_until(lambda: service.conns, "one is served")
        turn()
        assert len(service.conns) == 1
        assert [ask(first), ask(second)] == [b"answer to question"] * 2


@BOTH
def test_user_waits_for_a_target_that_is_tried_again(program: Runs, tmp_path: Path) -> None:
    path, later = tmp_path / "x", tmp_path / "later"
    target = f"UNIX-CONNECT:{later},retry=200,interval=0.1"
    with program(f"UNIX-LISTEN:{path},fork", target):
        user = connect(path)
        with serving(listener=net.listen_unix(str(later))):
            assert ask(user) == b"answer to question"


@BOTH
def test_one_way_in_front_of_the_addresses(program: Runs, tmp_path: Path) -> None:
    path = tmp_path / "x"
    heard: list[bytes] = []

    def talk(conn: net.SocketConn) -> None:
        conn.sendall(b"nobody hears this")
        heard.append(read_all(conn))

    listen = f"UNIX-LISTEN:{path},fork"
    with serving(talk) as service, program("-d", "-u", listen, service.address.upper()):
        assert ask(connect(path)) == b""
        wait_until(lambda: heard, "the service has heard all")
    assert heard == [b"question"]


@BOTH
@pytest.mark.parametrize("allowed", ["127.0.0.1/32", "10.0.0.0:255.0.0.0"])
def test_user_out_of_range(program: Runs, allowed: str) -> None:
    with serving() as gone:
        port = gone.listener.port
    with serving() as service:
        target = service.address.upper()
        with program(f"TCP4-LISTEN:{port},fork,reuseaddr,bind=127.0.0.1,range={allowed}", target):
            users: list[net.SocketConn] = []

            def is_connected() -> bool:
                with suppress(ConnError):
                    users.append(net.dial(socket.AF_INET, ("127.0.0.1", port)))
                return bool(users)

            wait_until(is_connected, "it listens")
            try:
                answer = ask(users[0])
            except ConnError:
                answer = b""
            users[0].close()
    assert answer == (b"answer to question" if allowed.startswith("127") else b"")
