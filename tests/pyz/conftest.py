"""Fixtures for the tests of gnar.pyz: a copy that is new to this host, and what every user may read."""

from __future__ import annotations

import secrets
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyz.targets import MUSL
from tests.helpers import places
from tests.helpers.onefile import other_version

# Stands in for the module that `pack` writes into gnar.pyz, so that tests can import the start-up.
_HOLDS = types.ModuleType("pyz.inside.holds")
_HOLDS.__dict__.update(MUSL=MUSL, FILES={})
sys.modules["pyz.inside.holds"] = _HOLDS


@pytest.fixture
def moved(gnar_pyz: Path, tmp_path: Path) -> Path:
    """Return a copy under another name with a space in it, as a version that this host has never unpacked."""
    (tmp_path / "my bin").mkdir()
    fresh = other_version(gnar_pyz, tmp_path, secrets.token_hex(8))
    return fresh.rename(tmp_path / "my bin" / "my tunnel")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a new folder that every user may enter; other users may not enter `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        if not places.is_open_to_all(folder):
            pytest.skip(f"{folder} is closed to other users")
        yield folder


@pytest.fixture(scope="session")
def python_for_all() -> Path:
    """Return a Python that every user may start; that of the tests may be in a home closed to others."""
    for python in places.find_pythons().values():
        if places.is_open_to_all(python):
            return python
    pytest.skip("no Python of this machine is open to all users")
