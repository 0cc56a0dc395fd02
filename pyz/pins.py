"""Reads and renews the pins: versions and hashes of what goes into gnar.pyz, and of the tools that make it.

Renewing (`./build_zipapp.sh --renew-pins`) takes the newest version of every package. Where a project no
longer makes wheels for some target, the pin for that target is the last version with a wheel for it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from pyz.targets import PYTHONS, Target, targets

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "pyz" / "pins"
PACKAGES = PINS / "packages.txt"
COMPILED = ("gevent", "greenlet", "bcrypt")  # fetched for each target; others do without compiled modules
ONLY_AS_WHEEL = ("bcrypt",)  # compiling it takes Rust; gnar does without it where there is no wheel
UV = (sys.executable, "-m", "uv")

_TOOLS = ("shiv", "uv")  # each has pins of its own, since a build for this host alone needs no uv
_NOT_USED = ("cffi", "pycparser")  # gevent needs them for libuv on Windows, which is not in the file
_HEAD = "# Made by ./build_zipapp.sh --renew-pins\n"
_PIN = re.compile(r"^([\w.-]+)==([\w.]+).*\n(?:[ \t].*\n)*", re.MULTILINE)


class PinError(Exception):
    """No pins could be made; the text is for a person."""


def names() -> list[str]:
    """Return the name of every package that goes into the file."""
    return sorted({pin[1] for pin in _PIN.finditer(PACKAGES.read_text(encoding="utf-8"))})


def text(wanted: Iterable[str]) -> str:
    """Return the pins of some packages, as the text of a requirements file for pip."""
    pins = _PIN.finditer(PACKAGES.read_text(encoding="utf-8"))
    return "".join(pin[0] for pin in pins if pin[1] in wanted)


def renew(say: Callable[[str], None]) -> None:
    """Write all files of pins anew, from the dependencies in pyproject.toml. Raises PinError."""
    say("choosing versions for every target")
    chosen = {target: _versions_for(target) for target in targets()}
    lines = [f"{name}=={version}" for name, version in _common(chosen).items() if name not in COMPILED]
    for name in COMPILED:
        lines += _lines_by_target(name, {target: versions[name] for target, versions in chosen.items()})
    _write(PACKAGES, lines, "--no-deps")
    for tool in _TOOLS:
        _write(PINS / f"{tool}.txt", [tool])
    made = _PIN.finditer(PACKAGES.read_text(encoding="utf-8"))
    say(f"{PINS.relative_to(ROOT)}/ has now {', '.join(f'{pin[1]} {pin[2]}' for pin in made)}")


def _versions_for(target: Target) -> dict[str, str]:
    """Return the newest version of every package that a target can have. Raises PinError."""
    binary = [option for name in COMPILED for option in ("--only-binary", name)]
    platform = ["--python-platform", target.platform.uv, "--python-version", target.version]
    found = _PIN.finditer(_compile(["pyproject.toml", *platform, *binary]))
    return {pin[1]: pin[2] for pin in found if pin[1] not in _NOT_USED}


def _common(chosen: dict[Target, dict[str, str]]) -> dict[str, str]:
    """Return the versions for the oldest Python, which run under all newer ones."""
    return next(versions for target, versions in chosen.items() if target.python == PYTHONS[0])


def _lines_by_target(name: str, versions: dict[Target, str]) -> list[str]:
    """Return a requirement for each version of a package, with a marker that names its targets.

    The version that most targets have comes first.
    """
    usual = Counter(versions.values()).most_common(1)[0][0]
    lines, elsewhere = [], []
    for other in sorted(set(versions.values()) - {usual}):
        theirs = [_facts(target) for target, version in versions.items() if version == other]
        theirs = [*dict.fromkeys(theirs)]
        there = " or ".join(f"({_marker(each, '==', 'and')})" for each in theirs)
        lines.append(f"{name}=={other} ; {there}")
        elsewhere += [f"({_marker(each, '!=', 'or')})" for each in theirs]
    return [f"{name}=={usual}" + (" ; " + " and ".join(elsewhere) if elsewhere else ""), *lines]


def _facts(target: Target) -> tuple[tuple[str, str], ...]:
    """Return the variables of markers that tell a target from others, with their values there."""
    platform = target.platform
    return (
        ("python_version", target.version),
        ("sys_platform", platform.system),
        ("platform_machine", platform.machine),
    )


def _marker(facts: tuple[tuple[str, str], ...], operator: str, joint: str) -> str:
    return f" {joint} ".join(f'{variable} {operator} "{value}"' for variable, value in facts)


def _write(path: Path, lines: list[str], *options: str) -> None:
    """Write a file of pins for some requirements, and for their own ones unless an option excludes these."""
    oldest = "{}.{}".format(*PYTHONS[0])
    options = ("-", "--universal", "--generate-hashes", "--python-version", oldest, *options)
    path.write_text(_HEAD + _compile(list(options), "\n".join(lines)), encoding="utf-8")


def _compile(options: list[str], given: str = "") -> str:
    """Return what `uv pip compile` prints, with `given` as its standard input. Raises PinError."""
    command = [*UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options]
    done = subprocess.run(command, input=given, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PinError(f"no versions were found by: {' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout
