"""gnar.pyz unpacks once however many processes start, mends what is damaged, and removes old versions."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyz.inside import holds, unpack
from pyz.inside.folders import COMPILED_HERE, END, LIST, digest, hold_if_usable, listing
from tests.helpers.harness import LOOPBACK, WAIT_S, Gnar, free_port, wait_until
from tests.helpers.onefile import (
    NOBODY,
    START_LIMIT_S,
    VERSION_LINE,
    assert_one_line,
    files_below,
    needs_root,
    other_version,
    start,
    unpacked,
)


def test_ten_first_starts_at_once_all_work_and_leave_one_folder(moved: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as pool:
        starts = [pool.submit(start, moved, "--version", SHIV_ROOT=tmp_path / "root") for _ in range(10)]
    assert {(each.result().stdout, each.result().stderr) for each in starts} == {(VERSION_LINE, "")}
    assert len(unpacked(tmp_path / "root")) == 1


def spoil_by_removing(home: Path) -> None:
    (home / "site-packages" / "gnar_lib" / "cmd.py").unlink()


def spoil_by_emptying(home: Path) -> None:
    """Leave an empty file, as a crash does when the disk has the name of a file and not yet its content."""
    (home / "site-packages" / "gnar_lib" / "cmd.py").write_text("")


def spoil_by_cutting_what_is_compiled(home: Path) -> None:
    (cached,) = (home / "site-packages" / "gnar_lib" / "__pycache__").glob("cmd.*.pyc")
    cached.write_bytes(cached.read_bytes()[:100])


def spoil_by_cutting_the_list(home: Path) -> None:
    files = home / "files"
    files.write_bytes(files.read_bytes()[:-200])


def spoil_by_removing_half(home: Path) -> None:
    shutil.rmtree(home / "site-packages" / "gevent")
    (home / "files").unlink()


@pytest.mark.slow
def test_spoilt_folder_is_mended(moved: Path, tmp_path: Path) -> None:
    start(moved, "--version", SHIV_ROOT=tmp_path / "root")
    (home,) = unpacked(tmp_path / "root")
    whole = {path: path.stat().st_size for path in files_below(home) if path.is_file()}
    for spoil in (
        spoil_by_removing,
        spoil_by_emptying,
        spoil_by_cutting_what_is_compiled,
        spoil_by_cutting_the_list,
        spoil_by_removing_half,
    ):
        spoil(home)
        done = start(moved, "--version", SHIV_ROOT=tmp_path / "root")
        assert (done.stdout, done.stderr) == (VERSION_LINE, ""), spoil
        assert {path: path.stat().st_size for path in files_below(home) if path.is_file()} == whole, spoil
        assert unpacked(tmp_path / "root") == [home]


# Runs gnar.pyz until it has written all files and compiled none, and is killed then.
KILLED_HALF_WAY = """
import compileall, os, runpy, signal, sys
compileall.compile_dir = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_a_killed_start_left_is_removed(moved: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = [sys.executable, "-c", KILLED_HALF_WAY, str(moved), "--version"]
    killed = subprocess.run(command, env={"SHIV_ROOT": str(root)}, check=False, timeout=START_LIMIT_S)
    assert killed.returncode == -signal.SIGKILL
    assert len([*root.glob("*.tmp")]) == 1
    assert start(moved, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
    assert [path.name for path in files_below(root) if ".tmp" in path.name] == []


def spoil_by_zeros(home: Path, *patterns: str) -> None:
    """Leave files with zeros instead of their content, as a crash does on some file systems."""
    for pattern in patterns:
        (path,) = (home / "site-packages").glob(pattern)
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    "patterns",
    [
        pytest.param(("greenlet/_greenlet.*.so",), marks=pytest.mark.slow),
        pytest.param(("gevent/libev/corecext.*.so",), marks=pytest.mark.slow),
        ("gnar_lib/cmd.py", "gnar_lib/__pycache__/cmd.*.pyc"),
    ],
    ids=lambda patterns: patterns[0],
)
def test_file_of_zeros_is_noticed_when_it_is_imported_and_all_is_unpacked_anew(
    moved: Path, tmp_path: Path, patterns: tuple[str, ...]
) -> None:
    root = tmp_path / "root"
    start(moved, "--version", SHIV_ROOT=root)
    (home,) = unpacked(root)
    spoil_by_zeros(home, *patterns)
    mended = start(moved, "relay", "nonsense", "x", SHIV_ROOT=root)
    assert mended.returncode == 2, mended
    assert mended.stderr.startswith(f"gnar.pyz: {home}/site-packages/{patterns[0].partition('*')[0]}")
    assert "is damaged: everything is unpacked anew\n" in mended.stderr
    again = start(moved, "relay", "nonsense", "x", SHIV_ROOT=root)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert mended.stderr.endswith(again.stderr)
    assert unpacked(root) == [home]


@needs_root
@pytest.mark.slow
def test_damage_that_this_user_cannot_mend_is_one_line(
    moved: Path, open_folder: Path, python_for_all: Path
) -> None:
    pyz, root = Path(shutil.copy(moved, open_folder)), open_folder / "root"
    start(pyz, "--version", python=python_for_all, SHIV_ROOT=root)
    root.chmod(0o755)
    (home,) = unpacked(root)
    spoil_by_zeros(home, "greenlet/_greenlet.*.so")
    done = start(pyz, "relay", "nonsense", "x", python=python_for_all, user=NOBODY, SHIV_ROOT=root)
    assert_one_line(done, "_greenlet", f"is damaged: remove {home} and start again")


@pytest.mark.slow
def test_versions_side_by_side_work_and_old_ones_do_not_pile_up(gnar_pyz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    versions = [other_version(gnar_pyz, tmp_path, f"{number:016d}") for number in range(5)]
    for pyz in versions:
        assert start(pyz, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
    assert [path.name.split("-")[1] for path in unpacked(root)] == [f"{number:016d}" for number in (2, 3, 4)]
    files = files_below(root)
    for pyz in versions[2:] * 2:
        assert start(pyz, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
    assert files_below(root) == files  # nothing is unpacked anew when three versions are used by turns


def test_only_what_gnar_has_unpacked_is_removed(moved: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    mine = [
        root / name for name in ("gnar-site", "gnar-docs", "gnar-data.tmp", "gnar-" + "0" * 16 + "-x-3.12")
    ]
    for folder in mine:
        folder.mkdir(parents=True)
    for number in range(4):  # as other versions leave theirs
        (root / f"gnar-{number:016d}-linux-3.12").mkdir()
        (root / f"gnar-{number:016d}-linux-3.12" / LIST).touch()
    start(moved, "--version", SHIV_ROOT=root)
    assert all(folder.is_dir() for folder in mine)
    assert len(unpacked(root)) == len(mine) + 3


@pytest.mark.parametrize(
    "umask", [0o277, *(pytest.param(each, marks=pytest.mark.slow) for each in (0o000, 0o002))]
)
def test_umask_opens_and_closes_nothing(moved: Path, tmp_path: Path, umask: int) -> None:
    root = tmp_path / "a" / "b"
    before = os.umask(umask)
    try:
        done = start(moved, "--version", XDG_CACHE_HOME=root)
    finally:
        os.umask(before)
    assert (done.stdout, done.stderr) == (VERSION_LINE, "")
    for path in [tmp_path / "a", *files_below(tmp_path / "a")]:
        assert path.stat().st_mode & 0o022 == 0, path
    assert (root / "gnar").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_version_that_a_process_uses_is_not_removed(gnar_pyz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    versions = [other_version(gnar_pyz, tmp_path, f"{number:016d}") for number in range(5)]
    with Gnar(
        versions[0], tmp_path / "run", "server", str(free_port()), env={"SHIV_ROOT": str(root)}
    ) as server:
        server.wait_log("listening")
        for pyz in versions[1:]:
            start(pyz, "--version", SHIV_ROOT=root)
        assert len(unpacked(root)) == 4
        assert server.stop() == 0
    start(other_version(gnar_pyz, tmp_path, "9" * 16), "--version", SHIV_ROOT=root)
    assert len(unpacked(root)) == 3


@pytest.mark.slow
@needs_root
def test_lock_that_another_user_holds_stops_neither_start_nor_removal_of_others(
    gnar_pyz: Path, open_folder: Path, python_for_all: Path
) -> None:
    root = open_folder / "root"
    versions = [other_version(gnar_pyz, open_folder, f"{number:016d}") for number in range(5)]
    start(versions[0], "--version", SHIV_ROOT=root)
    root.chmod(0o755)
    (home,) = unpacked(root)
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), 2); print(flush=True); input()"
    with subprocess.Popen(
        [python_for_all, "-c", hold, home], user=NOBODY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            for pyz in versions:
                done = start(pyz, "--version", SHIV_ROOT=root)
                assert (done.stdout, done.stderr) == (VERSION_LINE, "")
            assert len(unpacked(root)) == 4
        finally:
            holder.kill()


def test_folder_that_is_being_removed_is_not_run_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "name"
    home.mkdir()
    (home / LIST).write_text(f"{COMPILED_HERE}\n{END}")
    remover = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(remover, fcntl.LOCK_EX)
        found = hold_if_usable(str(home), digest(b""))
        assert found is not None  # the lock alone, which anybody could hold, says nothing
        os.close(found.held)
        monkeypatch.setattr("pyz.inside.folders.time.sleep", lambda _: home.rename(tmp_path / "name.x.tmp"))
        assert hold_if_usable(str(home), digest(b"")) is None
    finally:
        os.close(remover)


@pytest.mark.slow
def test_folder_that_was_damaged_and_mended_stays_while_a_process_runs_from_it(
    gnar_pyz: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    versions = [other_version(gnar_pyz, tmp_path, f"{number:016d}") for number in range(4)]
    arguments = ("server", str(free_port()), "--bind", LOOPBACK)
    with Gnar(versions[0], tmp_path / "run", *arguments, env={"SHIV_ROOT": str(root)}) as server:
        server.wait_log("listening")
        (home,) = unpacked(root)
        spoil_by_removing(home)
        for pyz in versions:
            assert start(pyz, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
        assert home in unpacked(root)
        assert len(unpacked(root)) == 4
        assert server.stop() == 0


def test_without_locks_the_files_that_are_ready_first_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = 0

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def write_files(fresh: str, _home: str, _host: str) -> None:
        nonlocal writers
        writers += 1
        site = Path(fresh, "site-packages")
        site.mkdir()
        site.chmod(0o755)
        content = f"{writers}".encode()
        (site / "writer").write_bytes(content)
        here = listing([("site-packages/writer", content)])
        Path(fresh, LIST).write_text(f"{COMPILED_HERE}\n{here}{END}")
        if writers == 1:  # now another start begins and ends
            unpack._unpack_into(str(tmp_path), "name", "host")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(unpack, "_write_files", write_files)
    monkeypatch.setitem(holds.FILES, "host", digest(b""))
    folder = unpack._unpack_into(str(tmp_path), "name", "host")
    assert writers == 2
    assert folder.read("site-packages/writer") == b"2"
    assert {path.name for path in tmp_path.iterdir()} == {"name", ".lock"}


def test_process_that_was_stopped_while_unpacking_does_not_hold_up_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "LOCK_WAIT_S", 0.1)
    with (tmp_path / ".lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with unpack._take_turn(str(tmp_path)) as is_alone:
            assert not is_alone
    with unpack._take_turn(str(tmp_path)) as is_alone:
        assert is_alone


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams_get_no_number_of_ours(gnar_pyz: Path, closed: int) -> None:
    shell = f'exec "$0" server {free_port()} {closed}>&-'
    process = subprocess.Popen(["sh", "-c", shell, gnar_pyz], stderr=subprocess.DEVNULL)
    numbers: list[int] = []

    def locked() -> bool:
        assert process.poll() is None
        links: dict[int, str] = {}
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed just now
                links[int(entry.name)] = os.readlink(entry)
        root = os.environ["SHIV_ROOT"]
        numbers[:] = [number for number, path in links.items() if path.startswith(root)]
        return bool(numbers) and len(links) > len(numbers) + 3

    try:
        wait_until(locked, "the server has its lock and its listener")
        assert min(numbers) > 2
    finally:
        process.kill()
        process.wait(WAIT_S)


# Runs gnar.pyz without the names that the start-up uses and Windows lacks.
AS_ON_WINDOWS = """
import os, runpy, sys
sys.modules["fcntl"] = None
for name in ("geteuid", "getuid", "statvfs", "ST_NOEXEC", "confstr", "fork"):
    delattr(os, name)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_without_what_windows_lacks_it_unpacks_starts_and_removes_old_versions(
    gnar_pyz: Path, tmp_path: Path
) -> None:
    local = tmp_path / "AppData" / "Local"
    local.mkdir(parents=True)
    # Without confstr there seems to be no glibc, so this host has the name of one with musl.
    with zipfile.ZipFile(gnar_pyz) as archive:
        assert b"'linux-x86_64-musl/" in archive.read("pyz/inside/holds.py")
    for number in range(5):
        pyz = other_version(gnar_pyz, tmp_path, f"{number:016d}")
        for _ in ("unpacks", "is unpacked"):
            done = subprocess.run(
                [sys.executable, "-c", AS_ON_WINDOWS, pyz, "--version"],
                env={"LOCALAPPDATA": str(local), "HOME": "/proc"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert (done.stdout, done.stderr) == (VERSION_LINE, "")
    assert [path.name.split("-")[1] for path in unpacked(local / "gnar")] == [f"{n:016d}" for n in (2, 3, 4)]


@pytest.mark.slow
def test_without_what_windows_lacks_damage_is_mended_by_the_next_start(moved: Path, tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", AS_ON_WINDOWS, str(moved), *args],
            env={"LOCALAPPDATA": str(tmp_path), "HOME": "/proc"},
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT_S,
        )

    run("--version")
    (home,) = unpacked(tmp_path / "gnar")
    spoil_by_zeros(home, "greenlet/_greenlet.*.so")
    assert_one_line(run("relay", "nonsense", "x"), "_greenlet", "is damaged", "start again")
    run("--version")
    assert any(next(home.glob("site-packages/greenlet/_greenlet.*.so")).read_bytes())
