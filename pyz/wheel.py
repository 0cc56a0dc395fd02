"""Builds the package with setuptools, as pip asks for it (PEP 517), from the present sources alone.

setuptools copies the sources into build/lib and packs that folder. A module that was deleted since the last
build is still there, and would be packed again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools import build_meta  # type: ignore[import-untyped]
from setuptools.build_meta import *  # type: ignore[import-untyped]  # noqa: F403  (all hooks but one)


def build_wheel(*args: Any, **kwargs: Any) -> str:
    """Build the wheel; pip calls this in the folder of the sources."""
    shutil.rmtree(Path("build", "lib"), ignore_errors=True)
    return str(build_meta.build_wheel(*args, **kwargs))
