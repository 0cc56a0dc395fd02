"""Starts gnar.pyz in an environment of its own, and looks at what it has unpacked."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from gnar_lib import __version__
from pyz.inside import host
from pyz.targets import NAMES

VERSION_LINE = f"gnar {__version__}\n"
NOBODY = 12345  # a user that no machine has
START_LIMIT_S = 120.0  # a first start takes 0.4 s on a quiet machine
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, or give files away")


def start(
    pyz: Path, *args: str, python: str | Path = "", user: int | None = None, **variables: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run gnar.pyz in / until it ends, with nothing in its environment but PATH and the given variables.

    `python` runs the file, or else the first python3 in PATH does. `user` is the number of another user.
    """
    env = {"PATH": os.environ["PATH"]} | {name: str(value) for name, value in variables.items()}
    command = [*([str(python)] if python else []), str(pyz), *args]
    return subprocess.run(
        command,
        cwd="/",
        env=env,
        user=user,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_LIMIT_S,
    )


def files_below(folder: Path) -> set[Path]:
    """Return all files and folders below a folder."""
    return set(folder.rglob("*"))


def unpacked(root: Path) -> list[Path]:
    """Return the folders that hold unpacked files, the oldest first."""
    return sorted(root.glob("gnar-*"), key=lambda path: path.stat().st_ctime)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check that a start failed with one line, and that the line contains some texts."""
    assert done.returncode == 1, done
    assert done.stderr.startswith("gnar.pyz: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def other_version(pyz: Path, folder: Path, build_id: str) -> Path:
    """Return a copy of gnar.pyz that takes itself for another version, without the blocks of other hosts."""
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
