"""Where gnar.pyz cannot run, it says so in one line: what it found, what it needs, and what to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

from pyz.inside import host, unpack
from pyz.targets import GLIBC, NAMES
from tests.helpers import places
from tests.helpers.onefile import assert_one_line, files_below, start


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9"])
def test_python_that_is_too_old_is_told_so(gnar_pyz: Path, version: str) -> None:
    old = [path for path in places.pyenv_versions() if path.name.startswith(f"{version}.")]
    if not old:
        pytest.skip(f"pyenv has no Python {version}")
    done = start(gnar_pyz, "--version", python=old[0] / "bin" / "python")
    assert_one_line(
        done, f"this is Python {version}, and gnar needs CPython 3.10 to 3.14", "python3.14 gnar.pyz"
    )


HOLDS = types.SimpleNamespace(
    TARGETS={f"{platform}/3.{minor}": [] for platform in NAMES.values() for minor in range(10, 15)},
    PLATFORMS=NAMES,
    GLIBC=GLIBC,
)


def mark(monkeypatch: pytest.MonkeyPatch, suffix: str, version: tuple[int, int] = (3, 12)) -> None:
    """Make this Python look like another version, with another suffix for compiled modules."""
    monkeypatch.setattr("_imp.extension_suffixes", lambda: [suffix, ".abi3.so", ".so"] if suffix else [])
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
        ("", "riscv64", "linux-riscv64/3.12"),
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
    monkeypatch.setattr(unpack, "list_folders", lambda: iter(()))
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


def test_too_few_files_are_one_line(gnar_pyz: Path, tmp_path: Path) -> None:
    start(gnar_pyz, "--version", SHIV_ROOT=tmp_path / "root")
    for limit in (4, 5):
        for root in (tmp_path / "root", tmp_path / "fresh"):
            command = ["prlimit", f"--nofile={limit}", sys.executable, "-S", str(gnar_pyz), "relay", "x", "x"]
            done = subprocess.run(
                command, env={"SHIV_ROOT": str(root)}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 1, done
            assert re.fullmatch(
                r"gnar(\.pyz)?: Too many open files: raise the limit of this process \(ulimit -n\)\n",
                done.stderr,
            ), done
