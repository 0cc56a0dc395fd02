"""The command that makes gnar.pyz. `build_zipapp.sh` installs the tools for it, and runs it."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

from pyz import fetch, pack, pins
from pyz.inside import host
from pyz.targets import GLIBC, NAMES, targets

WORK = pins.ROOT / "build" / "pyz"
NO_GLIBC = (0, 0)

_began = time.monotonic()


def main() -> int:
    """Make what the arguments ask for, and return the exit status."""
    usage = "./build_zipapp.sh [--host | --platform NAME ... | --renew-pins] [--output FILE]"
    parser = argparse.ArgumentParser(prog="build_zipapp.sh", usage=usage, allow_abbrev=False)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--host", action="store_true")
    kind.add_argument("--platform", action="append")
    kind.add_argument("--renew-pins", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--started-in", type=Path, default=Path.cwd())
    wanted = parser.parse_args()
    output = wanted.started_in / wanted.output if wanted.output else pins.ROOT / "gnar.pyz"
    try:
        if output.is_dir() or not output.parent.is_dir():
            raise ValueError(f"--output: {output} is a folder, or there is none to put it into")
        if wanted.renew_pins:
            pins.renew(say)
            return 0
        what = _make_for_this_host(output) if wanted.host else _make_for(wanted.platform, output)
    except (fetch.FetchError, pack.PackError, pins.PinError, ValueError, OSError) as exc:
        say(str(exc))
        return 1
    say(f"{output.name} is ready: {output.stat().st_size:,} bytes, for {what}")
    return 0


def say(text: str) -> None:
    """Show a step of the work, with the seconds since it began."""
    sys.stderr.write(f"[{time.monotonic() - _began:3.0f} s] {text}\n")


def _make_for_this_host(output: Path) -> str:
    name = host.name(NAMES)
    work = WORK / name.replace("/", "-")
    is_known = name.split("/")[0] in NAMES.values()
    packages = fetch.fetch_for_this_python(work, is_known, say)
    # Wheels for a known platform run with an old glibc; what pip compiles needs the glibc of this host.
    oldest = GLIBC if is_known else host.glibc() or NO_GLIBC
    pack.pack(None, {name: packages}, oldest, work, output)
    return f"{platform.python_implementation()} {platform.python_version()} ({name})"


def _make_for(names: list[str] | None, output: Path) -> str:
    wanted = targets(names)
    common, others = fetch.fetch(wanted, WORK / "packages", say)
    say("packing")
    pack.pack(common, others, GLIBC, WORK, output)
    platforms = dict.fromkeys(target.platform.name for target in wanted)
    return f"CPython {wanted[0].version} to {wanted[-1].version} on {', '.join(platforms)}"


if __name__ == "__main__":
    sys.exit(main())
