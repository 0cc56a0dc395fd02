"""History of real servers: whatever ends them, and whatever is wrong with the disk."""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.harness import (
    LOOPBACK,
    SOON_S,
    WAIT_S,
    Gnar,
    Service,
    Tunnels,
    ask,
    echo,
    free_port,
    tunnels_of_test,
    wait_until,
)

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = "history.sqlite3"

# gnar, but it writes its history ten times a second; `{more}` are further changes.
QUICK = """#!{python}
import sys, time
sys.path.insert(0, {root!r})
from gnar_lib.patch import prepared_process
with prepared_process(sys.argv[1:]):
    from gnar_lib.server.admin import history, store
    history.WRITE_EVERY_S = history.RETRY_S = 0.1
    {more}
    from gnar_lib import cmd
    sys.exit(cmd.main(sys.argv[1:]))
"""
HANG = """
    from gevent.monkey import get_original
    store.Store.write = lambda *_: get_original("time", "sleep")(600)
"""


class Scene:
    """Servers, one after the other, with the same ports and folder, and clients with a proxy."""

    def __init__(self, tunnels: Tunnels, folder: Path, service: Service) -> None:
        self.tunnels = tunnels
        self.folder = folder
        self.service = service
        self.admin_port, self.server_port, self.port = free_port(), free_port(), free_port()

    def server(self, *args: str, admin_port: int = 0, server_port: int = 0) -> Gnar:
        admin = "-a", str(admin_port or self.admin_port), "--state-dir", str(self.folder)
        return self.tunnels.server(*admin, *args, port=server_port or self.server_port)[0]

    def client(self, name: str = "nas") -> Gnar:
        args = "-l", str(self.service.port), "-r", str(self.port), "-n", name
        return self.tunnels.client(self.server_port, *args)[0]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(
            f"http://{LOOPBACK}:{self.admin_port}/api/v1/{path}", timeout=WAIT_S
        ) as answer:
            return json.loads(answer.read())

    def wait_proxies(self, *expected: tuple[str, str, str]) -> list[dict[str, Any]]:
        """Wait until these proxies are listed, by name, state and reason, and return them."""
        found: list[dict[str, Any]] = []

        def are_listed() -> bool:
            found[:] = self.get("proxies")["proxies"]
            return [(each["name"], each["state"], each["reason"]) for each in found] == [*expected]

        try:
            wait_until(are_listed, "proxies are listed")
        except AssertionError:
            raise AssertionError(f"not listed: {expected}, but {found}") from None
        return found

    def wait_in_file(self, text: str) -> None:
        """Wait until a text has been written to the file."""
        log = self.folder / f"{FILE}-wal"
        wait_until(lambda: log.exists() and text.encode() in log.read_bytes(), f"{text!r} is written")


@pytest.fixture
def scene(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Return a scene with the servers of gnar.pyz."""
    with Service(echo) as service:
        for tunnels in tunnels_of_test(gnar_pyz, tmp_path, request):
            yield Scene(tunnels, tmp_path / "state", service)


@pytest.fixture
def quick_scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Return a scene with servers that write often; the parameter is what else is changed in them."""
    program = tmp_path / "gnar"
    program.write_text(
        QUICK.format(python=sys.executable, root=str(ROOT), more=getattr(request, "param", ""))
    )
    program.chmod(0o755)
    with Service(echo) as service:
        for tunnels in tunnels_of_test(program, tmp_path, request):
            yield Scene(tunnels, tmp_path / "state", service)


def test_a_server_that_is_stopped_or_replaced_hands_its_history_over(scene: Scene) -> None:
    server, client = scene.server(), scene.client()
    assert ask(scene.port, b"x" * 1000) == b"x" * 1000
    client.kill()
    assert server.stop() == 0
    assert {path.name for path in scene.folder.iterdir()} == {FILE, "tls.pem"}  # closed in order
    server = scene.server()
    (gone,) = scene.wait_proxies(("nas", "gone", "the server stopped"))
    assert (gone["bytes_up"], gone["bytes_down"], gone["users_total"]) == (1000, 1000, 1)
    (client_gone,) = scene.get("clients")["clients"]
    assert (client_gone["state"], client_gone["proxies"]) == ("gone", [gone["id"]])
    scene.client()
    scene.wait_proxies(("nas", "open", ""))
    new = scene.server("--replace")
    assert server.wait_exit() == 0
    scene.wait_proxies(("nas", "open", ""))
    assert "history" not in server.log
    assert "history" not in new.log
    states = [each["state"] for each in scene.get("clients")["clients"]]
    assert sorted(states) == ["connected", "gone"]


def test_a_server_that_is_killed_leaves_its_history(quick_scene: Scene) -> None:
    scene = quick_scene
    server, client = scene.server(), scene.client()
    scene.wait_in_file('"name":"nas"')
    server.kill()
    client.kill()
    server = scene.server()
    (gone,) = scene.wait_proxies(("nas", "gone", "the server crashed or was killed"))
    client = scene.client("camera")
    scene.wait_in_file('"name":"camera"')
    server.kill()
    client.kill()
    server = scene.server()
    reason = "the server crashed or was killed"
    first, _ = scene.wait_proxies(("nas", "gone", reason), ("camera", "gone", reason))
    assert first == gone
    assert "history" not in server.log


def test_a_full_disk_is_one_line_and_nobody_is_held_up(quick_scene: Scene) -> None:
    scene = quick_scene
    server, client = scene.server(), scene.client()
    scene.wait_in_file('"name":"nas"')
    no_limit = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    size = (scene.folder / f"{FILE}-wal").stat().st_size
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, no_limit[1]))
    answers = [ask(scene.port, b"hello")]
    server.wait_log("history not written: ")
    answers.append(ask(scene.port, b"hello"))
    assert answers == [b"hello"] * 2
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, no_limit)
    server.wait_log("history works again")
    assert len(re.findall(" history (not written|works again)", server.log)) == 2, server.log
    server.kill()
    client.kill()
    server = scene.server()
    (gone,) = scene.wait_proxies(("nas", "gone", "the server crashed or was killed"))
    assert gone["bytes_up"] == 10


def test_a_second_server_with_the_same_folder_says_so_and_has_the_file_after_the_first(
    quick_scene: Scene,
) -> None:
    scene = quick_scene
    first = scene.server()
    scene.client()
    scene.wait_in_file('"name":"nas"')
    scene.admin_port = free_port()
    second = scene.server(server_port=free_port())
    second.wait_log("history no history: .*(another server has it open|locked)")
    assert scene.get("proxies") == {"proxies": []}
    first.kill()
    second.wait_log("history works again")
    scene.wait_proxies(("nas", "gone", "the server crashed or was killed"))
    assert second.log.count("history no history") == 1


def test_a_damaged_file_does_not_keep_a_server_from_starting(quick_scene: Scene) -> None:
    scene = quick_scene
    scene.folder.mkdir()
    (scene.folder / FILE).write_bytes(b"damaged" * 1000)
    server = scene.server()
    server.wait_log(f"history the file was damaged, and is now .*{FILE}.damaged; a new one is begun")
    scene.client()
    scene.wait_in_file('"name":"nas"')


@pytest.mark.parametrize("quick_scene", [HANG], indirect=True)
def test_a_disk_that_hangs_holds_up_neither_users_nor_the_end(quick_scene: Scene) -> None:
    scene = quick_scene
    server = scene.server()
    scene.client()
    assert [ask(scene.port, b"hello") for _ in range(20)] == [b"hello"] * 20
    scene.wait_proxies(("nas", "open", ""))
    server.signal(signal.SIGTERM)
    assert server.wait_exit(SOON_S) == 0
    assert "history the last seconds are lost: the disk does not answer" in server.log
