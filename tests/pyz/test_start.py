"""How gnar.pyz starts: where it unpacks, what it unpacks, and what each start imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyz.targets import NAMES
from tests.helpers.onefile import (
    NOBODY,
    START_LIMIT_S,
    VERSION_LINE,
    assert_one_line,
    files_below,
    needs_root,
    start,
    unpacked,
)

MAX_UNPACKED_BYTES = 16_000_000


def test_copied_file_starts_in_an_empty_environment(moved: Path, tmp_path: Path) -> None:
    for _ in ("unpacks", "is unpacked"):
        done = start(moved, "--version", HOME=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION_LINE, "")
    (home,) = unpacked(tmp_path / ".cache" / "gnar")
    assert sum(path.stat().st_size for path in files_below(home)) <= MAX_UNPACKED_BYTES


@pytest.fixture(scope="session")
def home(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which gnar.pyz has been unpacked; no test changes it."""
    root = tmp_path_factory.mktemp("unpacked")
    start(gnar_pyz, "--version", SHIV_ROOT=root)
    (home,) = unpacked(root)
    return home


def test_only_what_this_host_needs_is_unpacked(home: Path) -> None:
    compiled = {path.name for path in files_below(home) if path.suffix in (".so", ".pyd")}
    suffixes = {name.split(".", 1)[1] for name in compiled} - {"abi3.so"}
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


def test_every_module_that_is_unpacked_can_be_imported(home: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(home / "site-packages")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")


CHECK_A_PASSWORD = """
import sys
sys.path[:] = [sys.argv[1], *(path for path in sys.path if "site-packages" not in path)]
from pyz.inside import holds, host
from pyz.inside.folders import find
from pyz.inside.modules import Finder
name = host.name(holds.PLATFORMS)
folder = find(f"gnar-{holds.BUILD_ID}-{name.replace('/', '-')}", holds.FILES[name])
sys.meta_path.insert(0, Finder(folder))
from gnar_lib.auth import passwords
print(passwords.verify(b"sesame", sys.argv[2]), sys.modules["bcrypt._bcrypt"].__file__)
"""


def test_module_that_any_python_can_load_is_loaded_from_what_was_unpacked(home: Path, gnar_pyz: Path) -> None:
    hashed = "$2y$04$5dSeL6InYVzkh8Lcqn7iJuJHviixOmWPybMRcNdGfSnRkO1zVT/Xa"
    command = [sys.executable, "-I", "-c", CHECK_A_PASSWORD, str(gnar_pyz), hashed]
    env = {"SHIV_ROOT": str(home.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.stderr == ""
    is_right, path = done.stdout.split()
    assert is_right == "True"
    assert os.path.realpath(path).endswith("bcrypt/_bcrypt.abi3.so")


def test_file_starts_with_home_unset(moved: Path, tmp_path: Path) -> None:
    assert start(moved, "--version", XDG_CACHE_HOME=tmp_path).stdout == VERSION_LINE
    assert "HOME" not in start(moved, "--help", XDG_CACHE_HOME=tmp_path).stderr


def test_file_starts_when_home_cannot_be_written_to(moved: Path, tmp_path: Path) -> None:
    assert start(moved, "--version", HOME="/proc", TMPDIR=tmp_path).stdout == VERSION_LINE
    assert len([*tmp_path.glob("gnar-*/gnar-*")]) == 1


def test_nowhere_to_unpack_is_one_line(moved: Path) -> None:
    assert_one_line(start(moved, "--version", SHIV_ROOT="/proc/gnar"), "/proc/gnar", "SHIV_ROOT")


# Starts gnar.pyz, which unpacks into a new mount; makes the mount noexec; starts gnar.pyz again.
NOW_NOEXEC = """
set -e
mount -t tmpfs -o mode=700,size=32m gnar "$1"
"$2" "$3" --version
mount -o remount,noexec "$1"
shift
exec "$@"
"""


@pytest.mark.slow
def test_whole_folder_that_is_now_mounted_noexec_is_passed_over(moved: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "home").mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no namespace can be made here")
    command = [sys.executable, str(moved), "relay", "nonsense", "x"]
    done = subprocess.run(
        [*namespace, "sh", "-c", NOW_NOEXEC, "sh", str(tmp_path / "cache"), *command],
        env={
            "PATH": os.environ["PATH"],
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=START_LIMIT_S,
    )
    assert (done.returncode, done.stdout) == (2, VERSION_LINE), done
    assert "nonsense" in done.stderr
    assert len(unpacked(tmp_path / "home" / ".cache" / "gnar")) == 1


@needs_root
@pytest.mark.slow
def test_unpacked_by_root_it_starts_for_any_user_who_can_write_nowhere(
    moved: Path, open_folder: Path, python_for_all: Path
) -> None:
    pyz = Path(shutil.copy(moved, open_folder))
    root = open_folder / "root"
    before = os.umask(0o077)
    try:
        start(pyz, "--version", python=python_for_all, SHIV_ROOT=root)
    finally:
        os.umask(before)
    root.chmod(0o755)
    files = files_below(root)
    done = start(pyz, "relay", "nonsense", "x", python=python_for_all, user=NOBODY, SHIV_ROOT=root)
    assert done.returncode == 2, done
    assert files_below(root) == files


def test_verbose_version_tells_what_the_file_holds_and_where_it_runs(home: Path, gnar_pyz: Path) -> None:
    shown = start(gnar_pyz, "--version", "--verbose", SHIV_ROOT=home.parent).stdout
    assert shown.startswith(VERSION_LINE)
    for text in (
        f"CPython {sys.version.split()[0]}",
        f"started   {gnar_pyz}\n",
        f"unpacked  {home}/site-packages (",
        "docopt-ng 0",
        "gevent 2",
        "greenlet 3",
        "prometheus_client 0",
        "zope.interface 8",
        f"holds     CPython 3.10 3.11 3.12 3.13 3.14 on {', '.join(NAMES.values())}\n",
    ):
        assert text in shown


def test_version_needs_no_gevent(gnar_pyz: Path) -> None:
    done = start(gnar_pyz, "--version", SHIV_ROOT=os.environ["SHIV_ROOT"], PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout == VERSION_LINE
    assert "gnar_lib" in done.stderr  # so the imports have been listed
    assert "gevent" not in done.stderr


def test_start_of_what_is_unpacked_imports_nothing_that_only_unpacking_needs(gnar_pyz: Path) -> None:
    root = os.environ["SHIV_ROOT"]
    start(gnar_pyz, "--version", SHIV_ROOT=root)
    imported = start(gnar_pyz, "--version", PYTHONPROFILEIMPORTTIME="1", SHIV_ROOT=root).stderr
    assert not re.search(r"\b(zipfile|tarfile|lzma|tempfile|shutil|pyz\.inside\.unpack)\b", imported)


def test_package_of_the_same_name_elsewhere_does_no_harm(home: Path, gnar_pyz: Path, tmp_path: Path) -> None:
    for name in ("zope", "gevent", "docopt", "greenlet", "tomli"):
        (tmp_path / "else" / name).mkdir(parents=True)
        (tmp_path / "else" / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = start(gnar_pyz, "relay", "nonsense", "x", PYTHONPATH=tmp_path / "else", SHIV_ROOT=home.parent)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_plugin_of_gevent_elsewhere_is_not_loaded(home: Path, gnar_pyz: Path, tmp_path: Path) -> None:
    package = tmp_path / "else" / "p.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: p\nVersion: 1\n")
    kinds = ("will_patch_all", "will_patch_module", "did_patch_module", "did_patch_builtins", "did_patch_all")
    entries = "".join(f"[gevent.plugins.monkey.{kind}]\np = the_plugin:run\n" for kind in kinds)
    (package / "entry_points.txt").write_text(entries)
    (tmp_path / "else" / "the_plugin.py").write_text("raise SystemExit('the plugin')")
    done = start(gnar_pyz, "relay", "nonsense", "x", PYTHONPATH=tmp_path / "else", SHIV_ROOT=home.parent)
    assert "the plugin" not in done.stderr
    assert "nonsense" in done.stderr


def test_wrong_command_is_one_line_and_exits_2(gnar_pyz: Path) -> None:
    done = start(gnar_pyz, "frobnicate", SHIV_ROOT=os.environ["SHIV_ROOT"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
