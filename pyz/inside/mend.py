"""What gnar.pyz does after an import failed: mends damaged files, or says in one line what the host lacks."""

from __future__ import annotations

import os
import sys

from pyz.inside.folders import LIST, DamagedError, Folder

COMPILED_MODULES = (".so", ".pyd")


def mend_or_explain(folder: Folder, error: Exception) -> None:
    """Start this process again, or end it with one line, since an import from `folder` failed with `error`.

    Returns when the files are as they were unpacked and the host lacks nothing: then `error` is a defect.
    """
    if problem := find_damage(folder):
        _unpack_anew(folder.home, problem)
    if isinstance(error, ImportError) and str(error.path).endswith(COMPILED_MODULES):
        advice = " (libstdc++ is in Debian's package libstdc++6)" if "libstdc++" in str(error) else ""
        sys.exit(f"gnar.pyz: {error}{advice}")


def find_damage(folder: Folder) -> str:
    """Say which file is missing or has another content than was unpacked; "" if there is none."""
    try:
        for path in folder.files:
            folder.read(path)
    except DamagedError as exc:
        return str(exc)
    return ""


def _unpack_anew(home: str, problem: str) -> None:
    """Empty the list of files, so that the next start unpacks all anew, and start this process again."""
    try:
        os.truncate(os.path.join(home, LIST), 0)
    except FileNotFoundError:  # the list itself is missing
        pass
    except OSError:
        sys.exit(f"gnar.pyz: {problem}: remove {home} and start again")
    if not hasattr(os, "geteuid"):  # Windows cannot replace a process
        sys.exit(f"gnar.pyz: {problem}, and the next start unpacks everything anew: start again")
    sys.stderr.write(f"gnar.pyz: {problem}: everything is unpacked anew\n")
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  (no shell is needed)
