"""The text of `--version --verbose`: the system, where gnar is, and the packages and platforms in it."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from gnar_lib import __version__

_SITE = Path(__file__).resolve().parent.parent  # the folder with gnar_lib and, in gnar.pyz, its packages
_HOLDS = Path(__file__).with_name("holds.json")  # platforms in gnar.pyz; written when gnar.pyz is built


def text() -> str:
    """Return gnar's version and a line for each fact."""
    held = json.loads(_HOLDS.read_text(encoding="utf-8")) if _HOLDS.exists() else []
    facts = {"runs on": _host(), **_origin(bool(held)), "made of": ", ".join(_packages(bool(held)))}
    if held:
        facts["holds"] = _pythons_by_platform(held)
    lines = [f"{name:<9} {fact}\n" for name, fact in facts.items() if fact]
    return "".join([f"gnar {__version__}\n", *lines])


def _host() -> str:
    """Return Python, operating system and C library of this process."""
    name, release = platform.libc_ver()
    library = f"{name} {release}" if release else ""  # Python does not recognise musl
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable or 'no path'})"
    return ", ".join(part for part in (python, system, library) if part)


def _origin(is_one_file: bool) -> dict[str, str]:
    """Return where gnar was started and, if it came as one file, where it is unpacked."""
    if not is_one_file:
        return {"is in": str(_SITE)}
    size = sum(path.stat().st_size for path in _SITE.rglob("*") if path.is_file())
    return {"started": str(Path(sys.argv[0]).resolve()), "unpacked": f"{_SITE} ({size / 1e6:.1f} MB)"}


def _packages(is_one_file: bool) -> Iterator[str]:
    """Yield name and version of each package in gnar.pyz, or of each that an installed gnar requires."""
    if is_one_file:
        found = {each.metadata["Name"]: each.version for each in metadata.distributions(path=[str(_SITE)])}
        yield from (f"{name} {found[name]}" for name in sorted(found))
        return
    with suppress(metadata.PackageNotFoundError):  # gnar runs from its sources and is not installed
        for requirement in metadata.requires("gnar") or []:
            if "extra ==" not in requirement:
                name = re.split(r"[^\w.-]", requirement)[0]
                yield f"{name} {metadata.version(name)}"


def _pythons_by_platform(held: list[str]) -> str:
    """Return a text such as `CPython 3.11 3.12 on linux-x86_64` for names such as `linux-x86_64/3.12`."""
    by_platform: dict[str, list[str]] = {}
    for name in held:
        system, _, version = name.partition("/")
        by_platform.setdefault(system, []).append(version)
    by_pythons: dict[str, list[str]] = {}
    for system, versions in by_platform.items():
        by_pythons.setdefault(" ".join(versions), []).append(system)
    return "; ".join(f"CPython {versions} on {', '.join(names)}" for versions, names in by_pythons.items())
