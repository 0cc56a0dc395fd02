"""Which ports this user listens on: from this machine's own /proc, and from what other systems' tools say."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gnar_lib.discover import proc, tools
from gnar_lib.discover.find import find
from gnar_lib.discover.known import service_of, why_hidden
from gnar_lib.discover.listening import Listening, Process, name_of, one_for_each_port
from gnar_lib.errors import DiscoveryError
from tests.helpers.harness import LOOPBACK, WAIT_S

TIMEOUT_S = 20.0

LISTEN = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
time.sleep(60)
"""


@contextmanager
def program(folder: Path, *words: str) -> Iterator[int]:
    """Run a program that listens in a folder; yield its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, LOOPBACK, *words], stdout=subprocess.PIPE, text=True, cwd=folder
    )
    try:
        assert process.stdout
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def found_at(port: int, found: list[Listening]) -> Listening:
    return next(each for each in found if each.port == port)


def test_ports_of_this_user_are_found_with_program_and_folder(tmp_path: Path) -> None:
    with program(tmp_path, "here") as port:
        listening = found_at(port, find())
    assert listening.host == ""
    assert listening.process.program.startswith("python")
    assert listening.process.words[-2:] == (LOOPBACK, "here")
    assert listening.process.folder == str(tmp_path.resolve())


def test_ports_are_found_by_lsof_as_by_proc(tmp_path: Path) -> None:
    assert shutil.which("lsof")
    with program(tmp_path, "here") as port:
        by_lsof = found_at(port, tools.find_by_lsof(os.getuid(), TIMEOUT_S)).process
        by_proc = found_at(port, proc.find(os.getuid(), TIMEOUT_S)).process
    assert (by_lsof.program, by_lsof.folder) == (by_proc.program, by_proc.folder)
    assert by_lsof.words[-2:] == by_proc.words[-2:]


def test_ports_of_other_users_are_not_found(tmp_path: Path) -> None:
    with program(tmp_path) as port:
        assert port not in [each.port for each in proc.find(os.getuid() + 1, TIMEOUT_S)]


@pytest.mark.parametrize(
    ("family", "address", "host"),
    [
        (socket.AF_INET, "127.0.0.1", ""),
        (socket.AF_INET, "0.0.0.0", ""),
        (socket.AF_INET, "127.0.0.9", "127.0.0.9"),
        (socket.AF_INET6, "::1", ""),
        (socket.AF_INET6, "::", ""),
        (socket.AF_INET6, "::ffff:127.0.0.9", "127.0.0.9"),
    ],
)
def test_a_port_is_dialled_where_its_program_listens(
    family: socket.AddressFamily, address: str, host: str
) -> None:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        listening = found_at(listener.getsockname()[1], find())
    assert listening.host == host
    assert listening.process.program


def test_process_that_is_not_found_in_time_is_unknown() -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        listening = found_at(listener.getsockname()[1], proc.find(os.getuid(), timeout_s=-1))
    assert listening.process == Process()


def test_system_without_proc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError, match="nobody can tell which ports are open"):
        proc.find(os.getuid(), TIMEOUT_S, tmp_path)


def test_program_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DiscoveryError, match=r"^lsof, which tells what ports are open, cannot be run: No such"
    ):
        tools.find_by_lsof(os.getuid(), TIMEOUT_S)
    with pytest.raises(DiscoveryError, match=r"^netstat"):
        tools.find_by_netstat(TIMEOUT_S)


def test_program_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lsof").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "lsof").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DiscoveryError, match="does not answer"):
        tools.find_by_lsof(os.getuid(), 0.2)


# ---- what tools say ----------------------------------------------------------------------------------------

OF_LSOF = """\
p501
cControlCe
f9
n*:7000
f10
n*:7000
p812
cnode
f23
n127.0.0.1:5173
f24
n[::1]:5173
n[fe80::1]:5174
"""

OF_NETSTAT = """\

Aktive Verbindungen

  Proto  Lokale Adresse         Remoteadresse          Status           PID
  TCP    0.0.0.0:135            0.0.0.0:0              ABH\u00d6REN         1040
  TCP    127.0.0.1:3000         0.0.0.0:0              ABH\u00d6REN         7120
  TCP    127.0.0.1:3000         127.0.0.1:50112        HERGESTELLT     7120
  TCP    [::]:8080              [::]:0                 ABH\u00d6REN         7121
  TCP    [fe80::1%4]:8081       [::]:0                 ABH\u00d6REN         7121
"""

OF_TASKLIST = """\
"node.exe","7120","Console","1","45,120 K"
"my, own.exe","7121","Console","1","9,120 K"
INFO: nothing
"""


def test_sockets_of_lsof() -> None:
    sockets, programs = tools.lsof_sockets(OF_LSOF)
    assert programs == {501: "ControlCe", 812: "node"}
    assert [(each.port, each.host) for each in one_for_each_port(sockets, {})] == [(5173, ""), (7000, "")]


def test_folders_of_lsof_and_lines_of_ps() -> None:
    assert tools.lsof_folders("p812\nfcwd\nn/Users/mary/my site\n") == {812: "/Users/mary/my site"}
    assert tools.ps_lines("  812 node server.js --port 1\n 9\nx y\n") == {
        812: ("node", "server.js", "--port", "1")
    }


def test_sockets_of_netstat_in_any_language_are_those_of_own_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"netstat": OF_NETSTAT, "tasklist": OF_TASKLIST}
    monkeypatch.setattr(tools, "_output", lambda command, *_, **__: said[command[0]])
    found = tools.find_by_netstat(TIMEOUT_S)
    assert [(each.port, each.process.program) for each in found] == [
        (3000, "node.exe"),
        (8080, "my, own.exe"),
    ]


@pytest.mark.parametrize("output", ["", "p\ncx\nn*:1\n", "px\nn:\n\n", "  TCP x\n", '"a"\n\n"b","c"\n'])
def test_output_that_is_not_understood_tells_nothing(output: str) -> None:
    for read in (tools.lsof_folders, tools.ps_lines, tools.tasklist_processes):
        assert read(output) == {}
    assert tools.netstat_sockets(output) == []
    assert tools.lsof_sockets(output) == ([], {})


# ---- what a port is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "host"),
    [
        ([("192.0.2.1", 80, 1), ("127.0.0.1", 80, 2)], ""),
        ([("127.0.0.1", 80, 2), ("192.0.2.1", 80, 1)], ""),
        ([("192.0.2.1", 80, 1)], "192.0.2.1"),
    ],
)
def test_of_several_programs_at_a_port_the_one_on_loopback_counts(
    found: list[tuple[str, int, int]], host: str
) -> None:
    processes = {1: Process("outside"), 2: Process("inside")}
    (listening,) = one_for_each_port(found, processes)
    assert listening == Listening(80, host, Process("outside" if host else "inside"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("/usr/bin/node", "x.js"), "node"),
        (("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",), "sshd"),
        (("nginx: master process nginx",), "nginx"),
        ((), "otherwise"),
        (("",), "otherwise"),
    ],
)
def test_name_of_a_program(words: tuple[str, ...], name: str) -> None:
    assert name_of(words, "otherwise") == name


@pytest.mark.parametrize(
    ("line", "is_gnar"),
    [
        ("/usr/bin/gnar server", True),
        ("python3 /opt/gnar.pyz client 3000", True),
        ("python3 -X dev gnar.py demo", True),
        ("C:\\tools\\gnar.exe server", True),
        ("python3 gnar-0.9.0.pyz server", True),
        ("node gnar-page.js", False),
        ("python3 -m http.server 8000 gnar", False),
        ("", False),
    ],
)
def test_gnar_is_known_by_its_command_line(line: str, is_gnar: bool) -> None:
    assert Process(words=tuple(line.split())).is_gnar is is_gnar


@pytest.mark.parametrize(
    ("port", "program", "name", "hidden"),
    [
        (22, "", "SSH", ""),
        (2222, "sshd", "SSH", ""),
        (5432, "", "PostgreSQL", ""),
        (5432, "python3", "", ""),  # something else at a well-known port
        (7001, "redis-server", "Redis", ""),
        (3000, "node", "", ""),
        (631, "", "", "printing"),
        (9229, "node", "", "a debugger of Node.js"),
        (7000, "ControlCenter", "", "AirPlay"),
        (40000, "chrome", "", "a browser"),
        (40000, "Google Chrome Helper", "", "a browser"),
        (40000, "code", "", "an editor"),
        (40000, "codegate", "", ""),
        (49664, "lsass.exe", "", "Windows"),
    ],
)
def test_well_known_services_have_names_and_some_are_left_out(
    port: int, program: str, name: str, hidden: str
) -> None:
    listening = Listening(port, process=Process(program))
    assert (service_of(listening), why_hidden(listening)) == (name, hidden)
