"""The versions and hashes of what goes into gnar.pyz, and of the tools that make it: reads and renews them.

Renewing (`./build_zipapp.sh --renew-pins`) takes the newest version of every package. Where a project no
longer makes wheels for some target, that target keeps the last version that has one.
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
COMPILED = ("gevent", "greenlet")  # fetched for each target; of the others the half in Python will do
UV = (sys.executable, "-m", "uv")

_TOOLS = ("shiv", "uv")  # in a file each, since a file for this host alone needs no uv
_NOT_USED = ("cffi", "pycparser")  # for gevent's other loop on Windows, which does not go into the file
_HEAD = "# Made by ./build_zipapp.sh --renew-pins\n"
_PIN = re.compile(r"^([\w.-]+)==([\w.]+).*\n(?:[ \t].*\n)*", re.MULTILINE)


class PinError(Exception):
    """No pins could be made; the text is for a person."""


def names() -> list[str]:
    """Return the name of every package that goes into the file."""
    return sorted({pin[1] for pin in _PIN.finditer(PACKAGES.read_text(encoding="utf-8"))})


def text(wanted: Iterable[str]) -> str:
    """Return the pins of some packages, in the format of pip's files of requirements."""
    pins = _PIN.finditer(PACKAGES.read_text(encoding="utf-8"))
    return "".join(pin[0] for pin in pins if pin[1] in wanted)


def renew(say: Callable[[str], None]) -> None:
    """Write all files of pins anew, from the dependencies in pyproject.toml. Raises PinError."""
    say("choosing versions for every target")
    chosen = {target: _versions_for(target) for target in targets()}
    lines = [f"{name}=={version}" for name, version in _common(chosen).items() if name not in COMPILED]
    for name in COMPILED:
        lines += _requirements(name, {target: versions[name] for target, versions in chosen.items()})
    _write(PACKAGES, lines, "--no-deps")
    for tool in _TOOLS:
        _write(PINS / f"{tool}.txt", [tool])
    made = _PIN.finditer(PACKAGES.read_text(encoding="utf-8"))
    say(f"{PINS.relative_to(ROOT)}/ has now {', '.join(f'{pin[1]} {pin[2]}' for pin in made)}")


def _versions_for(target: Target) -> dict[str, str]:
    binary = [option for name in COMPILED for option in ("--only-binary", name)]
    platform = ["--python-platform", target.platform.uv, "--python-version", target.version]
    found = _PIN.finditer(_compile(["pyproject.toml", *platform, *binary]))
    return {pin[1]: pin[2] for pin in found if pin[1] not in _NOT_USED}


def _common(chosen: dict[Target, dict[str, str]]) -> dict[str, str]:
    """Return the versions that the oldest Python takes, which run on all."""
    return next(versions for target, versions in chosen.items() if target.python == PYTHONS[0])


def _requirements(name: str, versions: dict[Target, str]) -> list[str]:
    """Return a line for each version of a package: for most hosts, and for those that need another."""
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
    platform = target.platform
    return (
        ("python_version", target.version),
        ("sys_platform", platform.system),
        ("platform_machine", platform.machine),
    )


def _marker(facts: tuple[tuple[str, str], ...], operator: str, joint: str) -> str:
    return f" {joint} ".join(f'{variable} {operator} "{value}"' for variable, value in facts)


def _write(path: Path, lines: list[str], *options: str) -> None:
    """Write versions and hashes of every file of each, with what they need in turn."""
    oldest = "{}.{}".format(*PYTHONS[0])
    options = ("-", "--universal", "--generate-hashes", "--python-version", oldest, *options)
    path.write_text(_HEAD + _compile(list(options), "\n".join(lines)), encoding="utf-8")


def _compile(options: list[str], given: str = "") -> str:
    command = [*UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options]
    done = subprocess.run(command, input=given, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PinError(f"no versions were found by: {' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout
