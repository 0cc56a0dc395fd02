"""What gnar.pyz does after an import failed: mends damaged files, or says in one line what the host lacks."""

from __future__ import annotations

import os
import sys
import zlib

from pyz.inside.folders import LIST, read_list

COMPILED_MODULES = (".so", ".pyd")


def mend_or_explain(home: str, error: Exception) -> None:
    """Start this process again, or end it with one line, since an import from `home` failed with `error`.

    Returns when the files are as they were unpacked and the host lacks nothing: then `error` is a defect.
    """
    if damaged := find_damage(home):
        _unpack_anew(home, damaged)
    if isinstance(error, ImportError) and str(error.path).endswith(COMPILED_MODULES):
        advice = " (libstdc++ is in Debian's package libstdc++6)" if "libstdc++" in str(error) else ""
        sys.exit(f"gnar.pyz: {error}{advice}")


def find_damage(home: str) -> str:
    """Return the path of a file that is missing or has another content than before; "" if there is none."""
    path = os.path.join(home, LIST)
    try:
        for path, _, checksum in read_list(home):
            with open(path, "rb") as file:
                if zlib.crc32(file.read()) != checksum:
                    return path
    except (OSError, ValueError):
        return path
    return ""


def _unpack_anew(home: str, damaged: str) -> None:
    """Empty the list of files, so that the next start unpacks all anew, and start this process again."""
    try:
        os.truncate(os.path.join(home, LIST), 0)
    except FileNotFoundError:  # the list itself is missing
        pass
    except OSError:
        sys.exit(f"gnar.pyz: {damaged} is damaged: remove {home} and start again")
    if not hasattr(os, "geteuid"):  # Windows cannot replace a process
        sys.exit(f"gnar.pyz: {damaged} is damaged, and the next start unpacks everything anew: start again")
    sys.stderr.write(f"gnar.pyz: {damaged} is damaged: everything is unpacked anew\n")
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  (no shell is needed)
