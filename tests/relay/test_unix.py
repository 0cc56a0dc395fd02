"""The file of a Unix socket on which a relay listens."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from gnar_lib import net
from gnar_lib.errors import ListenError, PortTakenError
from tests.helpers.loop import wait_until
from tests.helpers.relays import ask, relaying, serving


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving() as service, relaying(f"unix:{path}", service.address) as running:
        assert ask(running) == b"answer to question"


@pytest.mark.parametrize("options", ["", ",unlink-early"])
def test_a_socket_in_use_is_not_replaced(tmp_path: Path, options: str) -> None:
    with serving(listener=net.listen_unix(f"{tmp_path}/x.sock")) as service:
        with (
            pytest.raises(PortTakenError, match=r"x\.sock is already in use"),
            relaying(f"UNIX-LISTEN:{tmp_path}/x.sock,fork{options}", service.address),
        ):
            pass
        wait_until(lambda: not len(service.crew), "the service has nobody")
        user = net.dial(socket.AF_UNIX, f"{tmp_path}/x.sock")
        user.close()


def test_a_datagram_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"{tmp_path}/x.sock")
        with pytest.raises(PortTakenError):
            net.listen_unix(f"{tmp_path}/x.sock")


@pytest.mark.parametrize("options", ["", ",unlink-early"])
def test_a_file_that_is_not_a_socket_is_not_touched(tmp_path: Path, options: str) -> None:
    path = tmp_path / "notes"
    path.write_text("precious")
    with (
        pytest.raises(ListenError, match="not a socket"),
        relaying(f"UNIX-LISTEN:{path},fork{options}", "tcp:127.0.0.1:1"),
    ):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("path", ["/nonexistent/x.sock", "/" + "x" * 200])
def test_a_path_that_cannot_be_made_is_refused(path: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on /"):
        net.listen_unix(path)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_mode_is_exact_whatever_the_umask_is(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with relaying(f"unix:{tmp_path}/x.sock,mode={mode:o}", "tcp:127.0.0.1:1"):
            assert stat.S_IMODE((tmp_path / "x.sock").stat().st_mode) == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_file_goes_when_listening_ends_unless_it_is_to_stay(tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    with relaying(f"UNIX-LISTEN:{gone},fork", "tcp:127.0.0.1:1") as running:
        assert gone.exists()
        running.close()
        assert not gone.exists()
    with relaying(f"UNIX-LISTEN:{kept},fork,unlink-close=0", "tcp:127.0.0.1:1"):
        pass
    assert kept.exists()


def test_the_file_of_another_that_took_the_path_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with relaying(f"unix:{path}", "tcp:127.0.0.1:1") as running:
        path.unlink()
        with serving(listener=net.listen_unix(str(path))):
            running.close()
            assert path.exists()
