"""What build_zipapp.sh makes: that it is complete for every host, the same every time, and small."""

from __future__ import annotations

import collections
import ctypes
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gnar_lib import __version__
from pyz import elf, fetch, pins
from pyz.targets import PLATFORMS, PYTHONS, Target, targets

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_FILE_BYTES = 30_000_000
MAX_UNPACKED_BYTES = 16_000_000
MAX_HOST_FILE_BYTES = 6_000_000
FOR_ANY_PYTHON = ("bcrypt/_bcrypt.abi3.so", "bcrypt/_bcrypt.pyd")  # no name tells the processor, either

# The first bytes of compiled modules. ELF has the number of the processor at offset 18, Mach-O has a list of
# processors, and the format of Windows has at offset 60 the place of a header, with the number 4 bytes later.
ELF, MACH_O_FAT, WINDOWS = b"\x7fELF", b"\xca\xfe\xba\xbe", b"MZ"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
MACH_O_PROCESSORS = {"x86_64": 0x01000007, "arm64": 0x0100000C}
WINDOWS_AMD64 = 0x8664


# ---- what is in the file -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(gnar_pyz: Path) -> dict[str, dict[str, bytes]]:
    """Return by target the files that gnar.pyz unpacks there: the content of each by its path."""
    holds: dict[str, dict[str, list[str]]] = {}
    contents: dict[str, dict[str, bytes]] = {}
    with zipfile.ZipFile(gnar_pyz) as archive:
        exec(archive.read("pyz/inside/holds.py"), holds)  # noqa: S102  (ours)
        for name in archive.namelist():
            if name.startswith("blocks/"):
                with tarfile.open(fileobj=io.BytesIO(archive.read(name))) as tar:
                    contents[name] = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]  # files alone
            elif name.startswith("site-packages/"):
                contents.setdefault("site-packages", {})[name.partition("/")[2]] = archive.read(name)
    return {
        target: collections.ChainMap(*(contents[each] for each in ("site-packages", *blocks)))  # type: ignore[misc]
        for target, blocks in holds["TARGETS"].items()
    }


def compiled(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the compiled modules among some files, by their names without marks and suffix."""
    return {path.split(".")[0]: data for path, data in files.items() if path.endswith((".so", ".pyd"))}


def test_every_target_is_held(held: dict[str, dict[str, bytes]]) -> None:
    assert [*held] == [str(target) for target in targets()]
    assert len(held) == len(PLATFORMS) * len(PYTHONS)


def test_each_target_has_each_compiled_module_for_its_python_and_processor(
    held: dict[str, dict[str, bytes]],
) -> None:
    mine = compiled(held["linux-x86_64/3.12"])
    assert {"greenlet/_greenlet", "gevent/libev/corecext", "bcrypt/_bcrypt"} <= set(mine)
    for target in targets():
        files = held[str(target)]
        modules = compiled(files)
        assert set(modules) == set(mine), target
        mark = f"cp{target.version.replace('.', '')}-" if target.platform.system == "win32" else ""
        mark = mark or f"cpython-{target.version.replace('.', '')}-"
        names = [path for path in files if path.endswith((".so", ".pyd"))]
        assert all(f".{mark}" in name or name in FOR_ANY_PYTHON for name in names), (target, names)
        for name, data in modules.items():
            assert is_for(target, data), (target, name)


def is_for(target: Target, data: bytes) -> bool:
    """Tell whether a compiled module is for the system and the processor of a target."""
    machine = target.platform.machine
    if target.platform.system == "linux":
        return data[:4] == ELF and int.from_bytes(data[18:20], "little") == ELF_MACHINES[machine]
    if target.platform.system == "darwin":
        count = int.from_bytes(data[4:8], "big")
        processors = {int.from_bytes(data[at : at + 4], "big") for at in range(8, 8 + 20 * count, 20)}
        return data[:4] == MACH_O_FAT and MACH_O_PROCESSORS[machine] in processors
    header = int.from_bytes(data[60:64], "little")
    return data[:2] == WINDOWS and int.from_bytes(data[header + 4 : header + 6], "little") == WINDOWS_AMD64


def test_libraries_that_compiled_modules_load_are_there_too(held: dict[str, dict[str, bytes]]) -> None:
    for target, files in held.items():
        bundled = {path.rpartition("/")[2] for path in files if ".libs/" in path}
        for name, data in compiled(files).items():
            wanted = re.findall(rb"lib(?:stdc\+\+|gcc_s)-[0-9a-f]+\.so[.\d]*", data)
            assert {found.decode() for found in wanted} <= bundled, (target, name)


def test_what_each_target_unpacks_is_small_and_holds_nothing_that_never_runs(
    held: dict[str, dict[str, bytes]],
) -> None:
    unwanted = (".c", ".h", ".pyx", ".pyi", ".pyc", ".cpp", "RECORD", "INSTALLER")
    for target, files in held.items():
        sources = sum(len(data) for path, data in files.items() if path.endswith(".py"))
        # The bytecode of a source is at most as long as the source; test_start.py measures both on this host.
        assert sum(map(len, files.values())) + sources <= MAX_UNPACKED_BYTES, target
        needless = [path for path in files if path.endswith(unwanted) or "/tests/" in path or "cffi" in path]
        assert needless == [], target
        assert {"gnar.py", "gnar_lib/cmd.py", "zope/__init__.py", "gevent/hub.py"} <= set(files), target
        assert any("gevent" in path and "licen" in path.lower() for path in files), target
        assert not [path for path, data in files.items() if path.endswith(".py") and b"\r\n" in data], target


def test_file_is_small_and_starts_with_any_python3(gnar_pyz: Path) -> None:
    assert gnar_pyz.stat().st_size <= MAX_FILE_BYTES
    assert gnar_pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(gnar_pyz) as archive:
        assert archive.testzip() is None


def test_symbols_are_cut_off_and_what_is_loaded_stays(tmp_path: Path) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }")
    library = tmp_path / "answer.so"
    subprocess.run(["gcc", "-g", "-shared", "-fPIC", "-o", library, source], check=True)
    whole = library.read_bytes()
    cut = elf.without_symbols(whole)
    assert b".debug_info" in whole
    assert b".debug_info" not in cut
    assert len(cut) < len(whole)
    library.write_bytes(cut)
    assert ctypes.CDLL(str(library)).answer() == 42
    assert elf.without_symbols(cut) == cut
    assert elf.without_symbols(b"MZ another format") == b"MZ another format"


def test_table_that_is_written_short_is_the_same(held: dict[str, dict[str, bytes]]) -> None:
    from hpack import huffman_table

    files = next(iter(held.values()))
    source = files["hpack/huffman_table.py"].decode().replace("from .exceptions", "from hpack.exceptions")
    ours: dict[str, object] = {}
    exec(source, ours)  # noqa: S102  (as it is unpacked)
    assert ours["HUFFMAN_TABLE"] == huffman_table.HUFFMAN_TABLE


# ---- pins --------------------------------------------------------------------------------------------------


def test_every_dependency_is_pinned_with_hashes_and_no_place_to_fetch_it_from() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = re.findall(
        r'^  "([\w-]+)>=', project.split("dependencies = [")[1].split("]")[0], re.MULTILINE
    )
    assert set(dependencies) <= set(pins.names())
    for path in pins.PINS.glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        for entry in re.split(r"\n(?=[\w.-]+==)", text)[1:]:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "==" not in pins.text(["gnar"])


def test_version_without_a_wheel_for_some_target_is_pinned_for_the_others() -> None:
    linux, macos = targets(["linux-x86_64"])[0], targets(["macos-arm64"])[0]
    assert pins._lines_by_target("p", {linux: "2", macos: "2"}) == ["p==2"]
    usual, other = pins._lines_by_target("p", {linux: "2", targets(["linux-x86_64"])[1]: "2", macos: "1"})
    macos_facts = ('python_version {0} "3.10"', 'sys_platform {0} "darwin"', 'platform_machine {0} "arm64"')
    assert usual == f"p==2 ; ({' or '.join(fact.format('!=') for fact in macos_facts)})"
    assert other == f"p==1 ; ({' and '.join(fact.format('==') for fact in macos_facts)})"


@pytest.mark.parametrize(("is_known", "holds_bcrypt"), [(True, True), (False, False)])
def test_a_host_without_wheels_need_not_compile_what_gnar_does_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_known: bool, holds_bcrypt: bool
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(fetch, "_fetch", lambda _folder, _command, names, *_: fetched.extend(names))
    fetch.fetch_for_this_python(tmp_path, is_known, print)
    assert ("bcrypt" in fetched) is holds_bcrypt
    assert {"gevent", "greenlet", "h11"} <= set(fetched)


# ---- the command -------------------------------------------------------------------------------------------


def build(
    *args: str, tree: Path = ROOT, cwd: Path = ROOT, **variables: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the build script of a tree, with other values for some variables."""
    env = os.environ | {"PYTHON": sys.executable} | {name: str(value) for name, value in variables.items()}
    command = [str(tree / "build_zipapp.sh"), *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)


def test_help_names_every_platform() -> None:
    done = build("--help")
    assert done.returncode == 0
    for platform in PLATFORMS:
        assert platform.name in done.stdout


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (("--frobnicate",), 2, "--frobnicate"),
        (("--host", "--platform", "linux-x86_64"), 2, "not allowed with"),
        (("--platform", "amiga"), 1, "unknown platform 'amiga'; known are linux-x86_64, linux-aarch64"),
        (("--platform",), 2, "expected one argument"),
        (("--host", "--output", "/nonexistent/gnar.pyz"), 1, "/nonexistent"),
    ],
)
def test_wrong_call_says_why(gnar_pyz: Path, args: tuple[str, ...], status: int, text: str) -> None:
    before = gnar_pyz.stat().st_mtime_ns
    done = build(*args)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert gnar_pyz.stat().st_mtime_ns == before


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of the sources that the Dockerfile builds from, which are all that a build needs."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        source = ROOT / line.removeprefix("!")
        if line.startswith("!") and source.is_dir():
            shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif line.startswith("!"):
            shutil.copy(source, copy)
    return copy


@pytest.fixture
def tree(gnar_pyz: Path, sources: Path) -> Path:
    """Return a copy of the sources, with what the build of `gnar_pyz` has fetched and packed."""
    assert gnar_pyz.is_file()
    made = ROOT / "build"
    for path in [*made.glob("tools-*"), made / "pyz" / "packages", made / "pyz" / "blocks"]:
        copy = sources / "build" / path.relative_to(made)
        shutil.copytree(path, copy, symlinks=True, copy_function=link_or_copy)
    return sources


def link_or_copy(source: str, copy: str) -> None:
    """Link a file into which no build writes, and copy any other."""
    try:
        if source.endswith((".txt", ".done")):
            shutil.copy2(source, copy)
        else:
            os.link(source, copy)
    except OSError:  # on another file system
        shutil.copy2(source, copy)


def test_two_builds_are_the_same_and_leave_nothing_outside_build(
    gnar_pyz: Path, tree: Path, tmp_path: Path
) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    before = {path for path in tree.rglob("*") if tree / "build" not in path.parents}
    umask = os.umask(0o077)
    try:
        done = build(tree=tree, HOME=home, TMPDIR=scratch, SOURCE_DATE_EPOCH="1700000000")
    finally:
        os.umask(umask)
    assert done.returncode == 0, done.stderr
    assert "fetching" not in done.stderr
    after = {path for path in tree.rglob("*") if tree / "build" not in path.parents}
    assert after - before == {tree / "gnar.pyz"}
    assert [*home.rglob("*"), *scratch.rglob("*")] == []
    assert (tree / "gnar.pyz").read_bytes() == gnar_pyz.read_bytes()


def test_change_of_the_sources_is_picked_up_and_one_platform_is_smaller(tree: Path, tmp_path: Path) -> None:
    init = tree / "gnar_lib" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, "9.8.7"))
    done = build("--platform", "linux-x86_64", "--output", "one.pyz", tree=tree, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on linux-x86_64" in done.stderr
    made = tmp_path / "one.pyz"  # relative to where the command was started
    assert made.stat().st_size < MAX_HOST_FILE_BYTES
    assert run(made, "--version", tmp_path).stdout == "gnar 9.8.7\n"


def run(pyz: Path, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a gnar.pyz with an empty environment; the file unpacks into a folder in `folder`."""
    env = {"SHIV_ROOT": str(folder / "root")}
    words = [sys.executable, str(pyz), *command.split()]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_file_for_this_host_is_small_and_works(tmp_path: Path) -> None:
    done = build("--host", "--output", str(tmp_path / "host.pyz"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "host.pyz").stat().st_size < MAX_HOST_FILE_BYTES
    assert run(tmp_path / "host.pyz", "relay x y", tmp_path).returncode == 2


def test_missing_venv_names_the_package_to_install(sources: Path, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; *sys.executable*) echo "$0"; exit ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    broken.chmod(0o755)
    done = build("--host", tree=sources, PYTHON=broken)
    assert done.returncode == 1
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr


def test_missing_python_names_the_package_to_install(sources: Path, tmp_path: Path) -> None:
    for tool in ("sh", "dirname", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = build("--host", tree=sources, PYTHON="", PATH=tmp_path)
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr


def test_python_may_be_a_path_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "my-python").symlink_to(sys.executable)
    done = build("--platform", "amiga", cwd=tmp_path, PYTHON="./my-python")
    assert (done.returncode, "unknown platform 'amiga'" in done.stderr) == (1, True), done.stderr


def test_shiv_that_fails_is_one_line_and_the_old_file_stays(tree: Path) -> None:
    (tree / "gnar.pyz").write_text("old")
    for shiv in tree.glob("build/tools-*/lib/python*/site-packages/shiv/__main__.py"):  # one for each Python
        shiv.unlink()  # the file may be a link to that of another build
        shiv.write_text("raise ValueError('no space for this')\n")
    done = build(tree=tree)
    assert done.returncode == 1
    assert "] shiv failed with status 1: ValueError: no space for this\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tree / "gnar.pyz").read_text() == "old"


def test_package_that_cannot_be_fetched_is_said_and_the_old_file_stays(tree: Path) -> None:
    (tree / "gnar.pyz").write_text("old")
    packages = tree / "pyz" / "pins" / "packages.txt"
    text = packages.read_text()
    packages.write_text(
        re.sub(r"(docopt-ng==\S+ \\\n)(?:    --hash.*\n)+", r"\1    --hash=sha256:" + "0" * 64 + "\n", text)
    )
    done = build(tree=tree)
    assert done.returncode == 1
    assert "could not be fetched" in done.stderr
    assert "docopt" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tree / "gnar.pyz").read_text() == "old"
