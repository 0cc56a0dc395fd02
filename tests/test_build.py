"""What build_zipapp.sh makes: one file that starts anywhere, and says what is wrong where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gnar_lib import __version__

ROOT = Path(__file__).resolve().parent.parent
VERSION_LINE = f"gnar {__version__}\n"
MAX_FILE_BYTES = 6_000_000


@pytest.fixture
def moved(gnar_pyz: Path, tmp_path: Path) -> Path:
    """Return a copy of the built file under another name, in a folder of its own."""
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy(gnar_pyz, tmp_path / "bin" / "tunnel"))


def start(pyz: Path, *args: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the file from / with nothing in its environment but PATH and the given variables."""
    env = {"PATH": os.environ["PATH"]} | {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        [pyz, *args], cwd="/", env=env, capture_output=True, text=True, check=False, timeout=60
    )


def files_below(folder: Path) -> set[Path]:
    """Return every path below a folder."""
    return set(folder.rglob("*"))


def test_copied_file_starts_in_an_empty_environment(moved: Path, tmp_path: Path) -> None:
    for _ in ("unpacks", "is unpacked"):
        done = start(moved, "--version", HOME=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION_LINE, "")
    assert (tmp_path / ".cache" / "gnar").is_dir()


def test_file_starts_with_home_unset(moved: Path, tmp_path: Path) -> None:
    assert start(moved, "--version", XDG_CACHE_HOME=tmp_path).stdout == VERSION_LINE
    assert "HOME" not in start(moved, "--help", XDG_CACHE_HOME=tmp_path).stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_file_starts_when_home_cannot_be_written_to(moved: Path, tmp_path: Path) -> None:
    assert start(moved, "--version", HOME="/proc", TMPDIR=tmp_path).stdout == VERSION_LINE
    (unpacked,) = tmp_path.glob("gnar-*")
    assert unpacked.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_nowhere_to_unpack_is_one_line(moved: Path) -> None:
    done = start(moved, "--version", SHIV_ROOT="/proc/gnar")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "/proc/gnar" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="the owner of a folder means something else there")
def test_folder_that_others_can_write_to_is_not_run_from(moved: Path, tmp_path: Path) -> None:
    shared = tmp_path / f"gnar-{os.geteuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "next").mkdir()
    done = start(moved, "--version", HOME="/proc", TMPDIR=tmp_path, TEMP=tmp_path / "next")
    assert done.stdout == VERSION_LINE
    assert files_below(shared) == set()
    assert files_below(tmp_path / "next") != set()


@pytest.mark.skipif(os.name == "nt", reason="the owner of a folder means something else there")
def test_home_of_somebody_else_is_not_run_from(moved: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 12345, 12345)  # as under sudo, which keeps HOME
    else:
        home.chmod(0o555)
    assert start(moved, "--version", HOME=home, TMPDIR=tmp_path).stdout == VERSION_LINE
    assert files_below(home) == set()


def test_many_first_starts_at_once_all_work(moved: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        starts = [pool.submit(start, moved, "--version", HOME=tmp_path) for _ in range(4)]
    assert {each.result().stdout for each in starts} == {VERSION_LINE}


def test_files_missing_from_the_unpacked_folder_come_back(moved: Path, tmp_path: Path) -> None:
    start(moved, "--version", SHIV_ROOT=tmp_path)
    (lost,) = tmp_path.glob("*/site-packages/gnar_lib/cmd.py")
    lost.unlink()
    assert start(moved, "--version", SHIV_ROOT=tmp_path).stdout == VERSION_LINE
    assert lost.exists()


def test_package_of_the_same_name_elsewhere_does_no_harm(moved: Path, tmp_path: Path) -> None:
    for name in ("zope", "gevent", "docopt"):
        (tmp_path / "else" / name).mkdir(parents=True)
        (tmp_path / "else" / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = start(moved, "relay", "nonsense", "nonsense", PYTHONPATH=tmp_path / "else", HOME=tmp_path)
    assert "the wrong one" not in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_command_is_one_line_and_exits_2(gnar_pyz: Path) -> None:
    done = start(gnar_pyz, "frobnicate", SHIV_ROOT=os.environ["SHIV_ROOT"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_version_needs_no_gevent(gnar_pyz: Path) -> None:
    done = start(gnar_pyz, "--version", SHIV_ROOT=os.environ["SHIV_ROOT"], PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout == VERSION_LINE
    assert "gnar_lib" in done.stderr  # the list of imports is there
    assert "gevent" not in done.stderr


def test_another_python_is_told_which_one_is_needed(gnar_pyz: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(gnar_pyz) as archive:
        start_code = archive.read("__main__.py").decode()
    mine = start_code.split("BUILT_FOR = ", 1)[1].split("\n", 1)[0]
    other = tmp_path / "__main__.py"
    other.write_text(start_code.replace(mine, "{'cpython-39-other': 'CPython 3.9'}", 1))
    done = subprocess.run([sys.executable, other], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs CPython 3.9" in done.stderr


def test_file_is_small_and_holds_no_tests_or_sources_of_packages(gnar_pyz: Path) -> None:
    assert gnar_pyz.stat().st_size < MAX_FILE_BYTES
    assert gnar_pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(gnar_pyz) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx", ".pyc")) or "/tests/" in name]
    assert not [name for name in names if name.startswith(("site-packages/pip", "site-packages/setuptools"))]
    assert any("gevent" in name and "licen" in name.lower() for name in names)


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("", 2), ("--frobnicate", 2)])
def test_build_script_names_the_host_option(option: str, status: int) -> None:
    done = subprocess.run(
        [ROOT / "build_zipapp.sh", *option.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert "--host" in done.stdout + done.stderr


@pytest.fixture
def tree(gnar_pyz: Path, tmp_path: Path) -> Path:
    """Return a copy of the sources, with the packages that the real build has fetched already."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("build_zipapp.sh", "pyproject.toml", "gnar.py"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "gnar_lib", copy / "gnar_lib", ignore=shutil.ignore_patterns("__pycache__"))
    with zipfile.ZipFile(gnar_pyz) as archive:
        (tag,) = {
            name for name in os.listdir(ROOT / "build") if f"'{name}'" in archive.read("__main__.py").decode()
        }
    shutil.copytree(ROOT / "build" / tag, copy / "build" / tag, symlinks=True)
    return copy


def build(tree: Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Build in a tree, with some variables changed."""
    env = os.environ | {"PYTHON": sys.executable} | {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        [tree / "build_zipapp.sh", "--host"], env=env, capture_output=True, text=True, check=False
    )


def test_build_leaves_nothing_outside_its_folder_and_picks_up_a_change(tree: Path, tmp_path: Path) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    before = {path for path in files_below(tree) if tree / "build" not in path.parents}
    init = tree / "gnar_lib" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, "9.8.7"))
    done = build(tree, HOME=home, TMPDIR=scratch)
    assert done.returncode == 0, done.stderr
    assert "Fetching" not in done.stderr
    after = {path for path in files_below(tree) if tree / "build" not in path.parents}
    assert after - before == {tree / "gnar.pyz"}
    assert files_below(home) | files_below(scratch) == set()
    assert start(tree / "gnar.pyz", "--version", SHIV_ROOT=tmp_path / "root").stdout == "gnar 9.8.7\n"


def test_missing_venv_names_the_package_to_install(tree: Path, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; *sys.executable*) echo "$0"; exit ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    broken.chmod(0o755)
    done = build(tree, PYTHON=broken)
    assert done.returncode == 1
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr


def test_missing_python_names_the_package_to_install(tree: Path, tmp_path: Path) -> None:
    for tool in ("sh", "dirname", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = build(tree, PYTHON="", PATH=tmp_path)
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr
