"""gnar.pyz runs only from folders into which nobody else can have put code."""

from __future__ import annotations

import importlib.util
import marshal
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pyz.inside.folders import (
    COMPILED_HERE,
    END,
    LIST,
    DamagedError,
    Folder,
    digest,
    find_danger,
    hold_if_usable,
    listing,
)
from pyz.inside.modules import SITE, Finder
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
@pytest.mark.parametrize("planted", ["the folder", pytest.param("a link to it", marks=pytest.mark.slow)])
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


@pytest.mark.slow
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


def test_empty_variable_is_as_if_unset_and_switches_no_check_off(moved: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / ".cache" / "gnar"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    (tmp_path / "next").mkdir()
    done = start(moved, "--version", SHIV_ROOT="", HOME=tmp_path, TMPDIR=tmp_path / "next")
    assert (done.stdout, done.stderr) == (VERSION_LINE, "")
    assert files_below(open_to_all) == set()
    assert len(unpacked(tmp_path / "next" / f"gnar-{os.geteuid()}")) == 1


# ---- what is in the folder ---------------------------------------------------------------------------------

PLANTED = "raise SystemExit('planted')"


def plant_bytecode(home: Path) -> None:
    (cached,) = home.glob("site-packages/gnar_lib/__pycache__/cmd.*.pyc")
    before = cached.read_bytes()
    cached.write_bytes((before[:16] + marshal.dumps(compile(PLANTED, "x", "exec"))).ljust(len(before), b"\0"))


def plant_in_a_compiled_module(home: Path) -> None:
    (compiled,) = home.glob("site-packages/gevent/libev/corecext.*.so")
    before = compiled.read_bytes()
    compiled.write_bytes(before[:-1000] + bytes(1000))


@pytest.mark.slow
def test_file_of_another_content_is_not_run_though_its_size_is_right(moved: Path, tmp_path: Path) -> None:
    start(moved, "--version", SHIV_ROOT=tmp_path)
    (home,) = unpacked(tmp_path)
    for plant in (plant_bytecode, plant_in_a_compiled_module):
        plant(home)
        done = start(moved, "relay", "nonsense", "x", SHIV_ROOT=tmp_path)
        assert done.returncode == 2
        assert "planted" not in done.stderr
        assert done.stderr.startswith(f"gnar.pyz: {home}/site-packages/")
        assert " is damaged: everything is unpacked anew\n" in done.stderr


@pytest.mark.parametrize("at", ["socket.py", "gevent/ares.py", "gnar_lib/about/__init__.py", "zope/more.py"])
def test_file_that_was_put_beside_the_others_is_not_run(tmp_path: Path, at: str) -> None:
    folder = hold(
        tmp_path, {"gevent/__init__.py": "", "zope/__init__.py": "", "gnar_lib/about.py": "real = 1"}
    )
    planted = tmp_path / SITE / at
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(PLANTED)
    found = Finder(folder).find_spec(at.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert found is None or found.origin == str(tmp_path / SITE / "gnar_lib" / "about.py")
    package = Finder(folder).find_spec("gevent")
    assert package is not None
    assert package.submodule_search_locations == []  # where Python would look for what gnar.pyz does not have


def hold(home: Path, sources: dict[str, str]) -> Folder:
    """Write an unpacked folder with some modules and return it, held open."""
    packed = [(f"{SITE}/{path}", text.encode()) for path, text in sources.items()]
    for path, data in packed:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(data)
    (home / LIST).write_text(f"{listing(packed)}{COMPILED_HERE}\n{END}")
    folder = hold_if_usable(str(home), digest(listing(packed).encode()))
    assert folder is not None
    return folder


def test_folder_that_takes_the_name_of_the_one_in_use_gives_no_module(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = hold(home, {"gnar_lib/__init__.py": "", "gnar_lib/late.py": "found = 'real'", "late.so": "code"})
    home.rename(tmp_path / "moved")
    hold(home, {"gnar_lib/__init__.py": "", "gnar_lib/late.py": "found = 'fake'", "late.so": "evil"})
    spec = Finder(folder).find_spec("gnar_lib.late")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    assert module.found == "real"
    assert Path(folder.held_path_of(f"{SITE}/late.so")).read_text() == "code"
    (tmp_path / "moved" / SITE / "late.so").unlink()
    with pytest.raises(DamagedError, match=r"late\.so: No such file"):
        folder.read(f"{SITE}/late.so")


@pytest.mark.parametrize("mode", [0o666, 0o664])
@pytest.mark.parametrize("at", [f"{SITE}/gnar_lib/about.py", f"{SITE}/gnar_lib", SITE, LIST])
def test_folder_of_which_others_can_change_a_part_is_not_used(tmp_path: Path, at: str, mode: int) -> None:
    folder = hold(tmp_path, {"gnar_lib/about.py": "real = 1"})
    packed = digest((tmp_path / LIST).read_bytes().partition(COMPILED_HERE.encode())[0])
    (tmp_path / at).chmod(mode | 0o111)
    assert hold_if_usable(folder.home, packed) is None
    (tmp_path / at).chmod(0o755)
    assert hold_if_usable(folder.home, packed) is not None
    if os.geteuid() == 0:
        os.chown(tmp_path / at, NOBODY, NOBODY)
        assert hold_if_usable(folder.home, packed) is None


# ---- images ------------------------------------------------------------------------------------------------

# Mounts a folder read-only, for the command alone, which runs as another user.
SEALED = (
    'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec setpriv --clear-groups "$@"'
)
STRANGER = NOBODY + 1


@needs_root
@pytest.mark.slow
def test_image_that_one_user_has_unpacked_starts_for_another_on_a_read_only_system(
    moved: Path, open_folder: Path, python_for_all: Path
) -> None:
    pyz, root = Path(shutil.copy(moved, open_folder)), open_folder / "root"
    root.mkdir()
    os.chown(root, NOBODY, NOBODY)
    start(pyz, "--version", python=python_for_all, user=NOBODY, SHIV_ROOT=root)
    root.chmod(0o755)
    (home,) = unpacked(root)
    plant_bytecode(home)
    command = [str(python_for_all), str(pyz), "relay", "nonsense", "x"]

    def run(user: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", SEALED, "sh", str(root), f"--reuid={user}", *command],
            env={"PATH": os.environ["PATH"], "SHIV_ROOT": str(root)},
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT_S,
        )

    done = run(STRANGER)
    assert (done.returncode, "nonsense" in done.stderr, "planted" in done.stderr) == (2, True, False), done
    assert_one_line(run(0), f"belongs to user {NOBODY}")
    assert_one_line(start(pyz, python=python_for_all, user=STRANGER, SHIV_ROOT=root), f"to user {NOBODY}")
    source = home / "site-packages" / "gnar.py"
    source.write_text(PLANTED.ljust(source.stat().st_size))
    done = run(STRANGER)
    assert done.returncode == 1
    assert "planted" not in done.stderr
    assert done.stderr.endswith(f"gnar.py is damaged: remove {home} and start again\n")


IN_USER_NAMESPACE = ["unshare", "--user", "--map-current-user"]  # there root has no number of its own


@pytest.mark.slow
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
