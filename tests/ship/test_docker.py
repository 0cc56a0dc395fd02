"""The Dockerfile, and an image that is built from it: any user, read-only, healthy, stopped in time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gnar_lib import cmd
from gnar_lib.config.model import DEFAULT_GRACE_S
from tests.helpers.harness import LOOPBACK, TOKEN, Service, Tunnels, dial, echo, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER_KILLS_S = 10  # from SIGTERM to SIGKILL, unless a person sets another time
ANY_USER = 12345
HEALTHY_S = 60.0  # the longest time until a server on a busy machine answers


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, without comments."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


LAST_STAGE = instructions()[[word for word, _ in instructions()].index("FROM", 2) :]


def of_last_stage(instruction: str) -> str:
    """Return the arguments of an instruction that is once in the last stage."""
    (found,) = [rest for word, rest in LAST_STAGE if word == instruction]
    return found


def exec_form(text: str) -> list[str]:
    """Return the words of a command in the form that needs no shell; raises ValueError for the other form."""
    words = json.loads(text)
    assert all(isinstance(word, str) for word in words)
    return list(words)


ENTRYPOINT = exec_form(of_last_stage("ENTRYPOINT"))
HEALTH = exec_form(of_last_stage("HEALTHCHECK").partition("CMD ")[2])
ENV = dict(word.split("=", 1) for word in shlex.split(of_last_stage("ENV")))


# ---- what the file says ------------------------------------------------------------------------------------


def test_hadolint_finds_nothing_and_no_rule_is_ignored() -> None:
    done = subprocess.run(
        ["hadolint", "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "hadolint" not in (ROOT / "Dockerfile").read_text()
    assert not [*ROOT.glob(".hadolint.y*ml")]


def test_the_image_needs_no_shell() -> None:
    assert not {"RUN", "CMD", "SHELL"} & {word for word, _ in LAST_STAGE}
    assert ENTRYPOINT == ["gnar.pyz", "server"]


def test_the_user_is_a_number_and_not_root() -> None:
    user, _, group = of_last_stage("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_users_have_less_time_than_docker_gives_the_server() -> None:
    assert 0 < DEFAULT_GRACE_S <= DOCKER_KILLS_S - 2
    assert of_last_stage("STOPSIGNAL") == "SIGTERM"


def test_the_health_check_is_a_command_that_ends_before_docker_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr("gnar_lib.health.check", lambda where, within_s: asked.append((str(where), within_s)))
    assert HEALTH[0] == ENTRYPOINT[0]
    assert cmd.main(HEALTH[1:]) == 0
    ((where, within_s),) = asked
    assert where == f"{LOOPBACK}:{of_last_stage('EXPOSE')}"
    limit = re.search(r"--timeout=(\d+)s", of_last_stage("HEALTHCHECK"))
    assert limit
    assert within_s < int(limit[1])


# ---- a server as the image starts it -----------------------------------------------------------------------


def stranger() -> list[str]:
    """Return the words that run a command as a user who owns nothing; none unless this user is root."""
    if os.geteuid() != 0:
        return []
    reads_all: list[str] = []
    python = Path(shutil.which("python3") or "").resolve()
    if not all(folder.stat().st_mode & 0o001 for folder in python.parents):  # Python is in the home of root
        reads_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={ANY_USER}", f"--regid={ANY_USER}", "--clear-groups", *reads_all]


@pytest.fixture(scope="module")
def prepared(gnar_pyz: Path) -> Iterator[Path]:
    """Return a folder in which the commands of the first stage have run, except for the build."""
    (script,) = [rest for word, rest in instructions() if word == "RUN"]
    with tempfile.TemporaryDirectory() as name:  # other users may not enter tmp_path
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(gnar_pyz, folder)
        paths = {
            "./build_zipapp.sh --host": "true",
            ENV["SHIV_ROOT"]: f"{folder}/unpacked",
            "/etc/": f"{folder}/",
        }
        for path, here in paths.items():
            assert path in script
            script = script.replace(path, here)
        subprocess.run(["sh", "-c", script], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        yield folder


def test_what_is_unpacked_can_be_read_by_everybody_and_written_by_nobody(prepared: Path) -> None:
    assert len([*prepared.rglob("gnar_lib/cmd.py")]) == 1
    for path in [prepared / "gnar.pyz", prepared / "unpacked", *(prepared / "unpacked").rglob("*")]:
        assert path.stat().st_mode & 0o444 == 0o444, path
        assert path.stat().st_mode & 0o222 == 0, path
        assert path.is_file() or path.stat().st_mode & 0o111 == 0o111, path


def test_bytecode_counts_whatever_the_times_of_the_files_became(prepared: Path) -> None:
    files = [*prepared.rglob("gnar_lib/**/__pycache__/*.pyc")]
    assert len(files) == len([*prepared.rglob("gnar_lib/**/*.py")])
    for path in files:
        flags = int.from_bytes(path.read_bytes()[4:8], "little")
        assert flags == 0b01, path  # PEP 552: the hash of the source is there and is not checked


def test_a_server_of_any_user_without_a_home_answers_and_stops_in_time(
    prepared: Path, plain_tunnels: Tunnels, tmp_path: Path
) -> None:
    port = free_port()
    env = {"PATH": os.environ["PATH"], **ENV, "SHIV_ROOT": f"{prepared}/unpacked", "GNAR_TOKEN": TOKEN}
    env.update(GNAR_PORT=str(port), GNAR_BIND=LOOPBACK, GNAR_GRACE="0.5")  # the slow test has the 8 s
    pyz = str(prepared / "gnar.pyz")

    def is_healthy() -> bool:
        return (
            subprocess.run(
                [*stranger(), pyz, *HEALTH[1:]], env=env, capture_output=True, check=False
            ).returncode
            == 0
        )

    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "server.log").open("w+"))
        server = subprocess.Popen([*stranger(), pyz, *ENTRYPOINT[1:]], env=env, cwd="/", stderr=log)
        stack.callback(server.wait)
        stack.callback(server.kill)
        wait_until(is_healthy, "the server is healthy", HEALTHY_S)
        if os.geteuid() == 0:
            assert Path(f"/proc/{server.pid}").stat().st_uid == ANY_USER
        elapsed_s = stop_with_an_idle_user(plain_tunnels, port, server, server.pid)
        assert elapsed_s < DOCKER_KILLS_S
        assert not is_healthy()
        assert "Traceback" not in (tmp_path / "server.log").read_text()


def stop_with_an_idle_user(
    tunnels: Tunnels, control_port: int, server: subprocess.Popen[bytes], pid: int
) -> float:
    """End a server while a user has an idle connection, with status 0, and return the seconds that took."""
    with Service(echo) as service:
        _, port = tunnels.client(control_port, "-l", str(service.port), "-r", "0")
        with dial(port) as user:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            began_s = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            assert server.wait(DOCKER_KILLS_S * 3) == 0
            return time.monotonic() - began_s


# ---- the image, built and run ------------------------------------------------------------------------------

SUITE = "trixie"  # has the same python3 as the base that the Dockerfile names
BUILD_S = 600.0
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
MAX_ADDED_BYTES = 15_000_000  # on top of the base
# Does what docker run --read-only --user 12345:0 --cap-drop ALL --security-opt no-new-privileges does.
IN_CONTAINER = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" &&
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"
"""
AS_ANY_USER = [
    *("setpriv", f"--reuid={ANY_USER}", "--regid=0", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--bounding-set=-all"),
]


class Store:
    """Images and containers of buildah in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *args: str | Path) -> str:
        folders = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        done = subprocess.run(
            ["buildah", "--storage-driver", "vfs", *folders, *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_S,
        )
        assert done.returncode == 0, f"buildah {args[0]}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def base() -> Path:
    """Return an archive of a small Debian with Python, which build/ keeps for the next run."""
    if os.geteuid() != 0:
        pytest.skip("an image is built by root alone")
    archive = ROOT / "build" / "cache" / f"base-{SUITE}.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        new = archive.with_suffix(".new.tar")
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE, new],
            check=True,
            timeout=BUILD_S,
        )
        new.rename(archive)
    return archive


@pytest.fixture(scope="module")
def store(base: Path) -> Iterator[Store]:
    """Return a store with the image `gnar`, built from the Dockerfile."""
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        empty = store.run("from", "scratch")
        store.run("add", "--quiet", empty, base, "/")
        store.run("commit", "--quiet", empty, "gnar-base")
        # pip in the build uses the same index and certificates as pip on this machine
        own = [path for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
        mounts = [word for path in own for word in ("--volume", f"{path}:{path}:ro")]
        how = ["--isolation", "chroot", "--format", "docker", "--build-arg", "BASE=localhost/gnar-base"]
        store.run("bud", *how, *mounts, "--tag", "gnar", ".")
        yield store
        store.run("rm", "--all")


@pytest.fixture
def image_root(store: Store) -> Path:
    """Return the folder with the files of a fresh container."""
    return Path(store.run("mount", store.run("from", "gnar")))


@pytest.mark.slow
def test_the_image_is_its_base_and_gnar(store: Store, base: Path, image_root: Path) -> None:
    with tarfile.open(base) as archive:
        before = {Path("/", member.name).as_posix() for member in archive}
    added = {f"/{path.relative_to(image_root)}" for path in image_root.rglob("*")} - before
    places = ("/opt/gnar", "/usr/local/bin/gnar.pyz", "/usr/share/doc/gnar")
    assert {path for path in added if not path.startswith(places)} == set()
    inside = [image_root / path[1:] for path in added]
    assert sum(path.stat().st_size for path in inside if path.is_file()) < MAX_ADDED_BYTES
    assert "gnar:x:8910:8910:" in (image_root / "etc/passwd").read_text()
    config = json.loads(store.run("inspect", "--type", "image", "gnar"))["Docker"]["config"]
    assert config["User"] == of_last_stage("USER")
    assert config["Entrypoint"] == ENTRYPOINT
    assert config["Healthcheck"]["Test"] == ["CMD", *HEALTH]
    assert set(config["ExposedPorts"]) == {"8910/tcp"}


@pytest.mark.slow
def test_a_read_only_container_of_any_user_is_healthy_and_stops_before_docker_kills(
    image_root: Path, plain_tunnels: Tunnels, tmp_path: Path
) -> None:
    port = free_port()
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **ENV}
    env.update(GNAR_PORT=str(port), GNAR_BIND=LOOPBACK, GNAR_TOKEN=TOKEN)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "server.log").open("w+"))
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", IN_CONTAINER]
        started = [*enter, str(image_root), *AS_ANY_USER, *ENTRYPOINT]
        container = subprocess.Popen(started, env=env, stderr=log)
        stack.callback(container.wait)
        stack.callback(container.kill)
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
        wait_until(lambda: children.read_text() != "", "the container's first process is there")
        pid = int(children.read_text())

        def inside(*command: str) -> subprocess.CompletedProcess[str]:
            exec_in = ["nsenter", f"--target={pid}", "--mount", "--pid", "--root", *AS_ANY_USER, *command]
            return subprocess.run(exec_in, env=env, capture_output=True, text=True, check=False)

        wait_until(lambda: inside(*HEALTH).returncode == 0, "the container is healthy", HEALTHY_S)
        assert inside(*HEALTH).stdout == f"gnar answers at {LOOPBACK}:{port}\n"
        assert "Read-only" in inside("touch", "/file").stderr
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"^Uid:\t{ANY_USER}\t", status, re.MULTILINE)
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
        elapsed_s = stop_with_an_idle_user(plain_tunnels, port, container, pid)
        assert DEFAULT_GRACE_S - 1 < elapsed_s < DOCKER_KILLS_S
        assert "Traceback" not in (tmp_path / "server.log").read_text()
