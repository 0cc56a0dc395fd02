"""How gnar.pyz starts: where it unpacks, how it mends what is spoilt, what it says where it cannot run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import subprocess
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gnar_lib import __version__
from pyz.inside import host
from pyz.targets import GLIBC, MUSL, NAMES
from tests.helpers.harness import WAIT_S, Gnar, free_port, wait_until

VERSION_LINE = f"gnar {__version__}\n"
MAX_UNPACKED_BYTES = 12_000_000
NOBODY = 12345  # a user that no machine has
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, or give files away")
SYSTEM_PYTHON = "/usr/bin/python3"  # which any user may start; that of the tests may be root's own


def start(
    pyz: Path, *args: str, python: str = "", user: int | None = None, **variables: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the file from / with nothing in its environment but PATH and the given variables."""
    env = {"PATH": os.environ["PATH"]} | {name: str(value) for name, value in variables.items()}
    command = [*([python] if python else []), str(pyz), *args]
    return subprocess.run(
        command, cwd="/", env=env, user=user, capture_output=True, text=True, check=False, timeout=60
    )


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def unpacked(root: Path) -> list[Path]:
    """Return the folders that hold unpacked files, the one unpacked first in front."""
    return sorted(root.glob("gnar-*"), key=lambda path: path.stat().st_ctime)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done
    assert done.stderr.startswith("gnar.pyz: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def other_version(pyz: Path, folder: Path, build_id: str) -> Path:
    """Return a copy of the file that takes itself for another version, without what other hosts need."""
    copy = folder / f"{build_id}.pyz"
    with zipfile.ZipFile(pyz) as old, copy.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        holds: dict[str, dict[str, list[str]]] = {}
        exec(old.read("pyz/inside/holds.py"), holds)  # noqa: S102  (ours)
        platform, _, version = host.name(NAMES).partition("/")
        needed = holds["TARGETS"][f"{platform}/{version}"] + holds["TARGETS"][f"{platform}-musl/{version}"]
        with zipfile.ZipFile(file, "w") as new:
            for entry in old.infolist():
                if entry.filename.startswith("blocks/") and entry.filename not in needed:
                    continue
                data = old.read(entry)
                if entry.filename == "pyz/inside/holds.py":
                    data = re.sub(rb"BUILD_ID = '\w+'", f"BUILD_ID = '{build_id}'".encode(), data)
                new.writestr(entry, data)
    copy.chmod(0o755)
    return copy


@pytest.fixture(autouse=True)
def _holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the module that is written when gnar.pyz is packed."""
    holds = types.ModuleType("holds")
    holds.__dict__.update(MUSL=MUSL)
    monkeypatch.setitem(sys.modules, "pyz.inside.holds", holds)


@pytest.fixture
def moved(gnar_pyz: Path, tmp_path: Path) -> Path:
    """Return a copy under another name with a space in it, as a version that this host has never unpacked."""
    (tmp_path / "my bin").mkdir()
    fresh = other_version(gnar_pyz, tmp_path, secrets.token_hex(8))
    return fresh.rename(tmp_path / "my bin" / "my tunnel")


# ---- where it unpacks --------------------------------------------------------------------------------------


def test_copied_file_starts_in_an_empty_environment(moved: Path, tmp_path: Path) -> None:
    for _ in ("unpacks", "is unpacked"):
        done = start(moved, "--version", HOME=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION_LINE, "")
    (home,) = unpacked(tmp_path / ".cache" / "gnar")
    assert sum(path.stat().st_size for path in files_below(home)) <= MAX_UNPACKED_BYTES


def test_only_what_this_host_needs_is_unpacked(moved: Path, tmp_path: Path) -> None:
    start(moved, "--version", SHIV_ROOT=tmp_path / "root")
    (home,) = unpacked(tmp_path / "root")
    compiled = {path.name for path in files_below(home) if path.suffix in (".so", ".pyd")}
    suffixes = {name.split(".", 1)[1] for name in compiled}
    assert len(suffixes) == 1
    assert f"{sys.version_info[0]}{sys.version_info[1]}-" in suffixes.pop()
    modules = {path.stem for path in files_below(home) if path.suffix == ".py"}
    assert {"cmd", "greenlet", "interface"} <= modules
    assert not modules & {"tests", "testing", "_corecffi_build", "ares"}


def test_every_module_is_compiled_once_and_for_all(moved: Path, tmp_path: Path) -> None:
    start(moved, "--version", SHIV_ROOT=tmp_path / "root", PYTHONPYCACHEPREFIX=tmp_path / "elsewhere")
    files = files_below(tmp_path / "root")
    sources = [path for path in files if path.suffix == ".py"]
    assert len(sources) > 100
    assert all([*(path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")] for path in sources)


IMPORT_ALL = """
import importlib, os, pkgutil, sys
sys.path.insert(0, sys.argv[1])
for module in pkgutil.walk_packages([sys.argv[1]]):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except Exception as exc:
            print(module.name, repr(exc))
"""


def test_every_module_that_is_unpacked_can_be_imported(moved: Path, tmp_path: Path) -> None:
    start(moved, "--version", SHIV_ROOT=tmp_path / "root")
    (home,) = unpacked(tmp_path / "root")
    command = [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(home / "site-packages")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")


def test_file_starts_with_home_unset(moved: Path, tmp_path: Path) -> None:
    assert start(moved, "--version", XDG_CACHE_HOME=tmp_path).stdout == VERSION_LINE
    assert "HOME" not in start(moved, "--help", XDG_CACHE_HOME=tmp_path).stderr


def test_file_starts_when_home_cannot_be_written_to(moved: Path, tmp_path: Path) -> None:
    assert start(moved, "--version", HOME="/proc", TMPDIR=tmp_path).stdout == VERSION_LINE
    assert len([*tmp_path.glob("gnar-*/gnar-*")]) == 1


def test_nowhere_to_unpack_is_one_line(moved: Path) -> None:
    assert_one_line(start(moved, "--version", SHIV_ROOT="/proc/gnar"), "/proc/gnar", "SHIV_ROOT")


@needs_root
def test_unpacked_by_root_it_starts_for_any_user_who_can_write_nowhere(moved: Path, tmp_path: Path) -> None:
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_mode & 0o005 != 0o005:  # pytest's folders are private, a container's are not
            folder.chmod(folder.stat().st_mode | 0o005)
    before = os.umask(0o077)
    try:
        start(moved, "--version", python=SYSTEM_PYTHON, SHIV_ROOT=tmp_path / "root")
    finally:
        os.umask(before)
    (tmp_path / "root").chmod(0o755)
    files = files_below(tmp_path / "root")
    root = tmp_path / "root"
    done = start(moved, "relay", "nonsense", "x", python=SYSTEM_PYTHON, user=NOBODY, SHIV_ROOT=root)
    assert done.returncode == 2, done
    assert files_below(tmp_path / "root") == files


def test_verbose_version_tells_what_the_file_holds_and_where_it_runs(moved: Path, tmp_path: Path) -> None:
    shown = start(moved, "--version", "--verbose", SHIV_ROOT=tmp_path / "root").stdout
    (home,) = unpacked(tmp_path / "root")
    assert shown.startswith(VERSION_LINE)
    for text in (
        f"CPython {sys.version.split()[0]}",
        f"started   {moved}\n",
        f"unpacked  {home}/site-packages (",
        "docopt-ng 0",
        "gevent 2",
        "greenlet 3",
        "zope.interface 8",
        f"holds     CPython 3.10 3.11 3.12 3.13 3.14 on {', '.join(NAMES.values())}\n",
    ):
        assert text in shown


def test_version_needs_no_gevent(gnar_pyz: Path) -> None:
    done = start(gnar_pyz, "--version", SHIV_ROOT=os.environ["SHIV_ROOT"], PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout == VERSION_LINE
    assert "gnar_lib" in done.stderr  # the list of imports is there
    assert "gevent" not in done.stderr


def test_start_of_what_is_unpacked_imports_nothing_that_only_unpacking_needs(gnar_pyz: Path) -> None:
    root = os.environ["SHIV_ROOT"]
    start(gnar_pyz, "--version", SHIV_ROOT=root)
    imported = start(gnar_pyz, "--version", PYTHONPROFILEIMPORTTIME="1", SHIV_ROOT=root).stderr
    assert not re.search(r"\b(zipfile|tarfile|lzma|tempfile|shutil|pyz\.inside\.unpack)\b", imported)


def test_package_of_the_same_name_elsewhere_does_no_harm(moved: Path, tmp_path: Path) -> None:
    for name in ("zope", "gevent", "docopt", "greenlet", "tomli"):
        (tmp_path / "else" / name).mkdir(parents=True)
        (tmp_path / "else" / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = start(moved, "relay", "nonsense", "nonsense", PYTHONPATH=tmp_path / "else", HOME=tmp_path)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


# ---- nobody else can plant code ----------------------------------------------------------------------------


def test_folder_that_others_can_write_to_is_not_run_from(moved: Path, tmp_path: Path) -> None:
    shared = tmp_path / f"gnar-{os.geteuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "next").mkdir()
    done = start(moved, "--version", XDG_CACHE_HOME=shared, HOME=tmp_path / "next")
    assert done.stdout == VERSION_LINE
    assert files_below(shared) == set()
    assert files_below(tmp_path / "next") != set()


def test_folder_below_one_that_others_can_rename_it_in_is_not_run_from(moved: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    done = start(moved, "--version", SHIV_ROOT=tmp_path / "open" / "mine")
    assert_one_line(done, f"others can write to {tmp_path / 'open'}")
    (tmp_path / "open").chmod(0o1777)  # as /tmp is: only the owner of a folder can rename it
    assert start(moved, "--version", SHIV_ROOT=tmp_path / "open" / "mine").stdout == VERSION_LINE


@needs_root
@pytest.mark.parametrize("planted", ["the folder", "a link to it"])
def test_what_somebody_else_has_unpacked_is_not_run(moved: Path, tmp_path: Path, planted: str) -> None:
    theirs = tmp_path / "theirs"
    start(moved, "--version", SHIV_ROOT=theirs)
    (home,) = unpacked(theirs)
    evil = home / "site-packages" / "gnar.py"
    evil.write_text("raise SystemExit('planted')".ljust(evil.stat().st_size))
    for path in [theirs, *files_below(theirs)]:
        os.chown(path, NOBODY, NOBODY)
    place = theirs
    if planted == "a link to it":
        place = tmp_path / "link"
        place.symlink_to(theirs)
    done = start(moved, "--version", SHIV_ROOT=place)
    assert_one_line(done, f"{theirs} belongs to user {NOBODY}")
    assert "planted" not in done.stderr


def test_folder_that_somebody_swaps_between_the_looks_is_not_trusted(tmp_path: Path) -> None:
    from pyz.inside import start

    (tmp_path / "good").mkdir()
    (tmp_path / "swapped").symlink_to(tmp_path / "good")  # it was a folder when the path was resolved
    assert start.danger(str(tmp_path / "good")) == ""
    assert start.danger(str(tmp_path / "swapped")) == f"others can write to {tmp_path / 'swapped'}"
    assert start.danger(str(tmp_path / "swapped" / "later"), is_there=False) != ""
    assert start.danger(str(tmp_path / "good" / "gone")) == f"{tmp_path / 'good' / 'gone'} has gone"
    assert start.danger(str(tmp_path / "good" / "to come"), is_there=False) == ""


@needs_root
def test_home_of_somebody_else_is_not_run_from(moved: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)  # as under sudo, which keeps HOME
    assert start(moved, "--version", HOME=home, TMPDIR=tmp_path).stdout == VERSION_LINE
    assert files_below(home) == set()


# ---- spoilt, at once, old ----------------------------------------------------------------------------------


def test_ten_first_starts_at_once_all_work_and_leave_one_folder(moved: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as pool:
        starts = [pool.submit(start, moved, "--version", SHIV_ROOT=tmp_path / "root") for _ in range(10)]
    assert {(each.result().stdout, each.result().stderr) for each in starts} == {(VERSION_LINE, "")}
    assert len(unpacked(tmp_path / "root")) == 1


def spoil_by_removing(home: Path) -> None:
    (home / "site-packages" / "gnar_lib" / "cmd.py").unlink()


def spoil_by_emptying(home: Path) -> None:
    """Leave a file as a crash does when the disk had its name already, and not yet its content."""
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


def test_what_a_killed_start_left_is_removed(moved: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = subprocess.Popen([sys.executable, moved, "--version"], env={"SHIV_ROOT": str(root)})
    while not [*root.glob("gnar-*.tmp/site-packages/*")]:
        assert first.poll() is None, "it was over before it could be killed"
    first.kill()
    first.wait(WAIT_S)
    assert len([*root.glob("*.tmp")]) == 1
    assert start(moved, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
    assert [path.name for path in files_below(root) if ".tmp" in path.name] == []


def test_versions_side_by_side_work_and_old_ones_do_not_pile_up(gnar_pyz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    versions = [other_version(gnar_pyz, tmp_path, f"{number:016d}") for number in range(5)]
    for pyz in versions:
        assert start(pyz, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
    assert [path.name.split("-")[1] for path in unpacked(root)] == [f"{number:016d}" for number in (2, 3, 4)]
    files = files_below(root)
    for pyz in versions[2:] * 2:
        assert start(pyz, "--version", SHIV_ROOT=root).stdout == VERSION_LINE
    assert files_below(root) == files  # three versions by turns unpack nothing anew


def test_only_what_gnar_has_unpacked_is_removed(gnar_pyz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    mine = [
        root / name for name in ("gnar-site", "gnar-docs", "gnar-data.tmp", "gnar-" + "0" * 16 + "-x-3.12")
    ]
    for folder in mine:
        folder.mkdir(parents=True)
    for number in range(5):
        start(other_version(gnar_pyz, tmp_path, f"{number:016d}"), "--version", SHIV_ROOT=root)
    assert all(folder.is_dir() for folder in mine)
    assert len(unpacked(root)) == len(mine) + 3


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o277])
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


def test_process_that_was_stopped_while_unpacking_does_not_hold_up_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyz.inside import unpack

    monkeypatch.setattr(unpack, "LOCK_WAIT_S", 0.1)
    with (tmp_path / ".lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with unpack._lock(str(tmp_path)) as locked:
            assert not locked
    with unpack._lock(str(tmp_path)) as locked:
        assert locked


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams_get_no_number_of_ours(gnar_pyz: Path, closed: int) -> None:
    shell = f'exec "$0" server {free_port()} {closed}>&-'
    process = subprocess.Popen(["sh", "-c", shell, gnar_pyz], stderr=subprocess.DEVNULL)
    numbers: list[int] = []

    def locked() -> bool:
        assert process.poll() is None
        links: dict[int, str] = {}
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
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


# What Windows lacks of what the start-up uses, taken away.
AS_ON_WINDOWS = """
import os, runpy, sys
sys.modules["fcntl"] = None
for name in ("geteuid", "getuid", "statvfs", "ST_NOEXEC", "confstr", "fork"):
    delattr(os, name)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_without_what_windows_lacks_it_unpacks_starts_and_removes_old_versions(
    gnar_pyz: Path, tmp_path: Path
) -> None:
    local = tmp_path / "AppData" / "Local"
    local.mkdir(parents=True)
    with zipfile.ZipFile(
        gnar_pyz
    ) as archive:  # a host without confstr has no glibc, so it seems to have musl
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


# ---- where it cannot run -----------------------------------------------------------------------------------


def pythons(*versions: str) -> list[str]:
    """Return the Pythons of these versions that pyenv has."""
    root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
    found = [[*Path(root, "versions").glob(f"{version}.*/bin/python")] for version in versions]
    return [str(paths[0]) for paths in found if paths]


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9"])
def test_python_that_is_too_old_is_told_so(gnar_pyz: Path, version: str) -> None:
    old = pythons(version)
    if not old:
        pytest.skip(f"pyenv has no Python {version}")
    done = start(gnar_pyz, "--version", python=old[0])
    assert_one_line(
        done, f"this is Python {version}, and gnar needs CPython 3.10 to 3.14", "python3.14 gnar.pyz"
    )


HOLDS = types.SimpleNamespace(
    TARGETS={f"{platform}/3.{minor}": [] for platform in NAMES.values() for minor in range(10, 15)},
    PLATFORMS=NAMES,
    GLIBC=GLIBC,
)


def mark(monkeypatch: pytest.MonkeyPatch, suffix: str, version: tuple[int, int] = (3, 12)) -> None:
    """Make this Python look like one of a version, with a suffix for compiled modules."""
    monkeypatch.setattr("_imp.extension_suffixes", lambda: [suffix, ".abi3.so", ".so"])
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))


@pytest.mark.parametrize(
    ("suffix", "machine", "expected"),
    [
        (".cpython-312-x86_64-linux-gnu.so", "x86_64", "linux-x86_64/3.12"),
        (".cpython-312-aarch64-linux-gnu.so", "aarch64", "linux-aarch64/3.12"),
        (".cpython-312-x86_64-linux-musl.so", "x86_64", "linux-x86_64-musl/3.12"),
        (".cpython-312-darwin.so", "arm64", "macos-arm64/3.12"),
        (".cpython-312-darwin.so", "x86_64", "macos-x86_64/3.12"),
        (".cp312-win_amd64.pyd", "AMD64", "windows-x86_64/3.12"),
        (".cpython-312t-x86_64-linux-gnu.so", "x86_64", "linux-x86_64/3.12 (cp312t)"),
        (".cpython-312-i386-linux-gnu.so", "x86_64", "i386-linux-gnu/3.12"),
        (".cp312-win_arm64.pyd", "ARM64", "win_arm64/3.12"),
        (".so", "riscv64", "linux-riscv64/3.12"),
    ],
)
def test_host_is_named_after_what_python_marks_modules_with(
    monkeypatch: pytest.MonkeyPatch, suffix: str, machine: str, expected: str
) -> None:
    mark(monkeypatch, suffix)
    monkeypatch.setattr(os, "uname", lambda: ("", "", "", "", machine))
    assert host.name(NAMES) == expected
    obstacle = host.find_obstacle(HOLDS)
    assert bool(obstacle) == (expected not in HOLDS.TARGETS)
    if obstacle:
        assert f"on {expected.partition('/')[0]}, and the file is for CPython 3.10 to 3.14 on" in obstacle
        assert "./build_zipapp.sh --host" in obstacle


def no_glibc(_: str) -> str:
    raise ValueError("unrecognized configuration name")


def test_musl_is_told_from_glibc_by_a_python_that_marks_both_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    mark(monkeypatch, ".cpython-310-x86_64-linux-gnu.so", (3, 10))
    monkeypatch.setattr(os, "confstr", no_glibc)
    assert host.name(NAMES) == "linux-x86_64-musl/3.10"
    assert host.find_obstacle(HOLDS) == ""


@pytest.mark.parametrize(("version", "is_refused"), [("1.2.3", True), ("1.2.4", False), ("1.2.5", False)])
def test_old_musl_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, is_refused: bool
) -> None:
    loader, python = tmp_path / "ld-musl-x86_64.so.1", tmp_path / "python3"
    loader.write_text(f"#!/bin/sh\nprintf 'musl libc (x86_64)\\nVersion {version}\\n' >&2; exit 1\n")
    loader.chmod(0o755)
    python.write_bytes(b"\x7fELF..." + os.fsencode(loader) + b"\0...")
    from pyz.inside import unpack

    monkeypatch.setattr(unpack, "folders", lambda: iter(()))
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SystemExit) as end:
        unpack.unpack("name", "linux-x86_64-musl/3.12")
    told = f"this host has musl {version}, and gnar needs 1.2.4" in str(end.value)
    assert told is is_refused


def test_old_glibc_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    mark(monkeypatch, ".cpython-312-x86_64-linux-gnu.so")
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.17")
    assert "this host has glibc 2.17, and gnar needs 2.28" in host.find_obstacle(HOLDS)
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.28")
    assert host.find_obstacle(HOLDS) == ""


def test_newer_python_and_another_implementation_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    mark(monkeypatch, ".cpython-315-x86_64-linux-gnu.so", (3, 15))
    assert host.find_obstacle(HOLDS).startswith("this is CPython 3.15 on linux-x86_64, and the file is for")
    monkeypatch.setattr(sys, "implementation", types.SimpleNamespace(name="pypy"))
    assert host.find_obstacle(HOLDS).startswith("this is PyPy 3.15, and gnar needs CPython 3.10 to 3.14")


def test_file_for_one_python_tells_another_what_it_is_for(gnar_pyz: Path, tmp_path: Path) -> None:
    copy = tmp_path / "for-another.pyz"
    with zipfile.ZipFile(gnar_pyz) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if name.startswith(("__main__", "pyz/")):
                data = old.read(name)
                if name == "pyz/inside/holds.py":
                    data = re.sub(rb"TARGETS = \{.*\}", b"TARGETS = {'linux-x86_64/3.99': []}", data)
                new.writestr(name, data)
    assert_one_line(
        start(copy, python=sys.executable), "the file is for CPython 3.99 on linux-x86_64: make one"
    )


def test_damaged_file_is_one_line(moved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(moved) as archive:
        at = max(entry.header_offset for entry in archive.infolist() if "site-packages/g" in entry.filename)
    with moved.open("r+b") as file:
        file.seek(at + 200)
        file.write(b"\0" * 100)
    assert_one_line(start(moved, "--version", SHIV_ROOT=tmp_path / "root"), "damaged, copy it again")
    assert [path.name for path in files_below(tmp_path / "root")] == [".lock"]


def test_wrong_command_is_one_line_and_exits_2(gnar_pyz: Path) -> None:
    done = start(gnar_pyz, "frobnicate", SHIV_ROOT=os.environ["SHIV_ROOT"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
