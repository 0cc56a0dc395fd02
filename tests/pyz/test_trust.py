"""gnar.pyz runs only from folders into which nobody else can have put code."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pyz.inside.folders import find_danger
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
    (tmp_path / "open").chmod(0o1777)  # as /tmp is: only its owner can rename a folder there
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
    (tmp_path / "good").mkdir()
    (tmp_path / "swapped").symlink_to(tmp_path / "good")  # it was a folder when the path was resolved
    assert find_danger(str(tmp_path / "good")) == ""
    assert find_danger(str(tmp_path / "swapped")) == f"others can write to {tmp_path / 'swapped'}"
    assert find_danger(str(tmp_path / "swapped" / "later"), is_there=False) != ""
    assert find_danger(str(tmp_path / "good" / "gone")) == f"{tmp_path / 'good' / 'gone'} has gone"
    assert find_danger(str(tmp_path / "good" / "to come"), is_there=False) == ""


@needs_root
def test_home_of_somebody_else_is_not_run_from(moved: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)  # as under sudo, which keeps HOME
    assert start(moved, "--version", HOME=home, TMPDIR=tmp_path).stdout == VERSION_LINE
    assert files_below(home) == set()


def test_unpacked_files_that_others_can_write_to_are_replaced(moved: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    start(moved, "--version", SHIV_ROOT=root)
    (home,) = unpacked(root)
    planted = home / "site-packages" / "gnar.py"
    planted.write_text("raise SystemExit('planted')".ljust(planted.stat().st_size))
    (planted.parent / "__pycache__" / "gnar.cpython-3.pyc").touch()
    home.chmod(0o777)
    done = start(moved, "--version", SHIV_ROOT=root)
    assert (done.stdout, done.stderr) == (VERSION_LINE, "")
    assert home.stat().st_mode & 0o022 == 0
    assert "planted" not in planted.read_text()


IN_USER_NAMESPACE = ["unshare", "--user", "--map-current-user"]  # there root has no number of its own


def test_it_starts_where_root_has_the_number_of_an_unknown_user(
    moved: Path, open_folder: Path, python_for_all: Path
) -> None:
    pyz = Path(shutil.copy(moved, open_folder / "gnar.pyz"))
    home = open_folder / "home"
    home.mkdir()
    user = NOBODY if os.geteuid() == 0 else os.geteuid()  # to root `/` would belong there, too
    os.chown(home, user, -1)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*IN_USER_NAMESPACE, *command],
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            user=user,
            extra_groups=[] if os.geteuid() == 0 else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT_S,
        )

    owner = run("stat", "--format=%u", "/")
    if owner.returncode != 0:
        pytest.skip(f"no user namespace can be made here: {owner.stderr}")
    assert int(owner.stdout) not in (0, user)
    for _ in ("unpacks", "is unpacked"):
        done = run(str(python_for_all), str(pyz), "--version")
        assert (done.stdout, done.stderr) == (VERSION_LINE, "")
    assert len(unpacked(home / ".cache" / "gnar")) == 1


def test_in_a_user_namespace_only_folders_above_may_belong_to_the_owner_of_the_root_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    mine = os.geteuid()
    owners = dict.fromkeys((str(tmp_path), *map(str, tmp_path.parents)), mine + 1)
    real_lstat = os.lstat

    def lstat(path: str) -> os.stat_result:
        fields = [*real_lstat(path)]
        fields[stat.ST_UID] = owners.get(path, fields[stat.ST_UID])
        fields[stat.ST_MODE] = int(fields[stat.ST_MODE]) & ~0o022
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", lstat)
    assert find_danger(str(folder)) == ""
    owners[str(tmp_path)] = mine + 2
    assert find_danger(str(folder)) == f"{tmp_path} belongs to user {mine + 2}"
    owners[str(tmp_path)], owners[str(folder)] = mine + 1, mine + 1
    assert find_danger(str(folder)) == f"{folder} belongs to user {mine + 1}"
