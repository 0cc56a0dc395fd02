"""Places in which tests use gnar.pyz: every Python of this machine, and the systems that places.sh makes."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gnar_lib import __version__
from pyz.targets import PYTHONS
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Gnar,
    Service,
    Tunnels,
    dial,
    echo,
    free_port,
    read_all,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
MADE = ROOT / "build" / "places"
SCRIPT = Path(__file__).with_name("places.sh")
TOOLS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

TMP, VAR_TMP = "/tmp", "/var/tmp"  # noqa: S108  (of systems that nobody else uses)
STRANGER = 61_234  # a user and a group without a name
HOLDER_WAIT_S = 10.0  # for a process to mount a few folders, or to say why it cannot
PROBE_LIMIT_S = 60.0  # a Python answers in 0.1 s on a quiet machine

# Fails under a Python without lzma: gnar.pyz does not start there, and says so in one line.
PROBE = """
import json, lzma, os, sys, zlib
kind = sys.implementation.name + sys.abiflags
print(json.dumps([kind, sys.version_info[:3], os.path.realpath(sys.executable)]))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A Python somewhere with gnar.pyz beside it.

    `launcher` is a program that starts gnar.pyz there with its own arguments, and with no variables but
    GNAR_TOKEN and those of the place. `sockets` is the path of a folder for gnar there; `sockets_here` is the
    path of the same folder for this process. A start takes at most `patience_s`.
    """

    launcher: Path
    sockets: str
    sockets_here: Path
    patience_s: float = WAIT_S

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run gnar.pyz in this place until it ends."""
        return subprocess.run(
            [self.launcher, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=self.patience_s,
        )


# ---- the Pythons of this machine ---------------------------------------------------------------------------


@functools.cache
def find_pythons() -> dict[str, Path]:
    """Return every CPython of this machine that gnar.pyz is made for, by version and place, oldest first."""
    found = sorted({python for candidate in {*_candidates()} if (python := _probe(candidate))})
    places = [f"{'.'.join(map(str, version))} in {path.parent.parent.name}" for version, path in found]
    return {
        place if places.count(place) == 1 else f"{place} ({path})": path
        for place, (_, path) in zip(places, found, strict=True)
    }


def _probe(candidate: Path) -> tuple[tuple[int, ...], Path] | None:
    """Return version and path of a Python; None if it does not start, or if gnar.pyz is not made for it."""
    command = [str(candidate), "-I", "-c", PROBE]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if probe.returncode != 0:
        return None
    kind, version, executable = json.loads(probe.stdout)
    is_held = kind == "cpython" and tuple(version[:2]) in PYTHONS
    return (tuple(version), Path(executable)) if is_held else None


def _candidates() -> Iterator[Path]:
    """Yield what may be a Python, resolved, so that a Python with several names is found once."""
    names = ["python3", *("python{}.{}".format(*python) for python in PYTHONS)]
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    folders = [Path(folder) for folder in [*path, "/usr/bin"] if Path(folder).name != "shims"]  # of pyenv
    folders += [version / "bin" for version in pyenv_versions()]
    for folder in folders:
        for name in names:
            if os.access(folder / name, os.X_OK):
                yield (folder / name).resolve()


def pyenv_versions() -> list[Path]:
    """Return the folder of each Python that pyenv has installed; none where there is no pyenv."""
    pyenv = shutil.which("pyenv")
    if pyenv is None:
        return []
    command = [pyenv, "root"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_LIMIT_S)
    return sorted(Path(asked.stdout.strip(), "versions").glob("*")) if asked.returncode == 0 else []


def is_open_to_all(path: Path) -> bool:
    """Tell whether every user may read a file, or list and enter a folder, and enter all folders above."""
    may_enter_above = all(folder.stat().st_mode & 0o001 for folder in path.parents)
    return may_enter_above and path.stat().st_mode & 0o005 == 0o005


def on_this_system(python: Path, pyz: Path, folder: Path, *, through: Sequence[str] = ()) -> Place:
    """Return a place with a Python of this system, and with a home of its own in `folder`.

    `through` is a program, with its first arguments, that starts the Python.
    """
    home = folder / "home"
    home.mkdir()
    command = [*through, str(python), str(pyz)]
    return Place(_write_launcher(folder, command, {"HOME": str(home)}), str(home), home)


# ---- systems of their own ----------------------------------------------------------------------------------


def make(*args: str, limit_s: float) -> Path:
    """Make a system with places.sh, unless an earlier test did, and return its folder in build/."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another system")
    folder = MADE / "-".join(args)
    done = subprocess.run(
        ["timeout", f"{limit_s}", SCRIPT, *args, folder],  # timeout also ends what the script has started
        env={**os.environ, "PATH": TOOLS},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"places.sh {' '.join(args)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return folder


def this_debian_architecture() -> str:
    """Return the name that Debian has for the processor of this machine."""
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@contextmanager
def chroot(
    root: Path,
    pyz: Path,
    folder: Path,
    *,
    mounts: Mapping[str, str],
    variables: Mapping[str, str] | None = None,
    patience_s: float = WAIT_S,
) -> Iterator[Place]:
    """Yield a place in another root folder, which cannot be written to, for a user without a name.

    The folder of `pyz` appears there as /app. `mounts` has the options of a tmpfs by its path; gnar can write
    only there. Other processes do not see these mounts, which end with the last process that sees them.
    """
    commands = [
        ["mount", "-o", "bind,ro", str(root), str(root)],
        ["mount", "-o", "bind,ro", str(pyz.parent), f"{root}/app"],
        *(
            ["mount", "-t", "tmpfs", "-o", f"mode=1777,{options}", "gnar", f"{root}{at}"]
            for at, options in mounts.items()
        ),
    ]
    script = [
        *map(shlex.join, commands),
        "echo ready",
        "exec cat",  # cat ends when its standard input does, and keeps the mounts until then
    ]
    with subprocess.Popen(
        [_tool("unshare"), "--mount", "sh", "-ec", "\n".join(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                _, problem = holder.communicate(timeout=HOLDER_WAIT_S)
                pytest.skip(f"nothing can be mounted here: {problem}")
            yield Place(
                _write_launcher(folder, _enter(holder.pid, root, f"/app/{pyz.name}"), variables or {}),
                TMP,
                Path(f"/proc/{holder.pid}/root{root}{TMP}"),
                patience_s,
            )
        finally:
            holder.kill()


def _enter(holder: int, root: Path, pyz: str) -> list[str]:
    user = f"+{STRANGER}:+{STRANGER}"  # with the sign chroot takes a number for a number, not for a name
    emulator = ["/emulator"] if (root / "emulator").exists() else []
    return [
        *(_tool("nsenter"), f"--target={holder}", "--mount"),
        *(_tool("chroot"), f"--userspec={user}", "--groups=", str(root)),
        *(*emulator, "/usr/bin/python", pyz),
    ]


def _write_launcher(folder: Path, command: Sequence[str], variables: Mapping[str, str]) -> Path:
    """Write a script that starts gnar in its own process, so that signals to the script reach gnar."""
    launcher = folder / "start-gnar"
    settings = [f"{name}={value}" for name, value in variables.items()]
    token = '${GNAR_TOKEN+"GNAR_TOKEN=$GNAR_TOKEN"}'
    launcher.write_text(f'#!/bin/sh\nexec env -i {token} {shlex.join([*settings, *command])} "$@"\n')
    launcher.chmod(0o755)
    return launcher


def _tool(name: str) -> str:
    path = shutil.which(name, path=TOOLS)
    if path is None:
        pytest.skip(f"{name} is missing")
    return path


# ---- use ---------------------------------------------------------------------------------------------------


def use(place: Place, folder: Path) -> None:
    """Use gnar in a place as a person would: texts, plain and multiplexed tunnel, UDP, relay, and SIGTERM."""
    assert_texts(place)
    with Tunnels(place.launcher, folder, ()) as tunnels, Service(echo) as service:
        _use_all(place, tunnels, service.port)


def assert_texts(place: Place) -> None:
    """Check the version, the help, and the answer to a wrong option."""
    version = place.run("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"gnar {__version__}\n", "")
    assert "Usage" in place.run("--help").stdout
    wrong = place.run("server", "--no-such-option")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert one_line(wrong.stderr)


def python_of(place: Place) -> str:
    """Return the Python, the processor and the C library of a place, as gnar shows them there."""
    verbose = place.run("--version", "--verbose").stdout
    found = re.search(r"^runs on +(CPython \S+) \(.*\), \S+ \S+ (\w+.*)$", verbose, re.MULTILINE)
    assert found is not None, verbose
    return f"{found[1]} ({found[2]})"


def one_line(text: str) -> bool:
    """Tell whether a text is one line and no traceback, as every message to a person should be."""
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


def _use_all(place: Place, tunnels: Tunnels, service: int) -> None:
    token = {"GNAR_TOKEN": TOKEN}
    server_port, relay_port = free_port(), free_port()
    server = tunnels.run("server", str(server_port), "--bind", LOOPBACK, env=token)
    relays = [
        tunnels.run("relay", f"tcp:{LOOPBACK}:{relay_port}", f"tcp:{LOOPBACK}:{service}"),
        tunnels.run("relay", f"unix:{place.sockets}/x.sock", f"tcp:{LOOPBACK}:{service}"),
    ]
    server.wait_log("listening on", place.patience_s)
    to_server = ("client", "-s", f"{LOOPBACK}:{server_port}", "--local-port")
    with closing(_udp_echo()) as datagrams:
        plain = tunnels.run(*to_server, str(service), env=token)
        multiplexed = tunnels.run(*to_server, str(service), "-m", env=token)
        udp = tunnels.run(*to_server, str(datagrams.getsockname()[1]), "-y", "udp", env=token)
        for client in (plain, multiplexed):
            with dial(_open_at(client, place)) as sock:
                assert_echoes(sock)
        assert_answers(_open_at(udp, place))
    for relay in relays:
        relay.wait_log("relaying", place.patience_s)
    with dial(relay_port) as sock:
        assert_echoes(sock)
    with dial_unix(place.sockets_here / "x.sock") as sock:
        assert_echoes(sock)
    assert_end_on_sigterm(place, plain, multiplexed, udp, *relays, server)


def _open_at(client: Gnar, place: Place) -> int:
    return int(client.wait_log(r"open at \S+:(\d+)", place.patience_s)[1])


def assert_echoes(sock: socket.socket) -> None:
    """Check that a service behind gnar echoes what a connection carries; end both directions."""
    data = bytes(range(256)) * 1024

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert read_all(sock) == data
    sender.join()


def assert_answers(port: int) -> None:
    """Check that a service behind gnar echoes a datagram to a port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_S)
        sock.sendto(b"ping", (LOOPBACK, port))
        assert sock.recv(100) == b"ping"


def assert_end_on_sigterm(place: Place, *processes: Gnar) -> None:
    """End processes by SIGTERM, and check that they exit with status 0."""
    for process in processes:
        process.process.terminate()
    for process in processes:
        assert process.wait_exit(place.patience_s) == 0, process.log


def dial_unix(path: Path) -> socket.socket:
    """Connect to a Unix socket, also by a path too long for the system; the caller closes the socket."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WAIT_S)
        try:
            sock.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError:
            sock.close()
            raise
        return sock
    finally:
        os.close(folder)


def _udp_echo() -> socket.socket:
    """Return a UDP socket on loopback whose datagrams a thread sends back, until the caller closes it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK, 0))

    def serve() -> None:
        while True:
            try:
                data, user = sock.recvfrom(65536)
                sock.sendto(data, user)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return sock
