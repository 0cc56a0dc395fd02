"""Where a running server and the process that is to replace it find each other; knows neither of them."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

from gnar_lib.config import ServerConfig
from gnar_lib.errors import ListenError


def folders() -> list[str]:
    """Return the folders in which a server of this user may offer its sockets, the preferred one first.

    There are none on Windows, which passes no sockets between processes.
    """
    found: list[str] = []
    if sys.platform != "win32":
        if base := os.environ.get("XDG_RUNTIME_DIR"):
            found.append(os.path.join(base, "gnar"))
        if os.geteuid() == 0:
            found.append("/run/gnar")
        found.append(f"/tmp/gnar-{os.geteuid()}")  # noqa: S108  (`is_private` checks the folder)
    return found


def file_name(config: ServerConfig) -> str:
    """Return the name of the socket of a server with these settings."""
    return f"server-{config.bind or 'all'}-{config.port}.sock"


def make(folder: str) -> None:
    """Make a folder that only this user may enter; raises `ListenError` if there is another kind of it."""
    try:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    except OSError as exc:
        raise ListenError(f"cannot make {folder}: {exc.strerror}") from exc
    if not is_private(folder):
        raise ListenError(f"{folder} is no folder that only this user may enter")


def is_private(folder: str) -> bool:
    """Tell whether a folder is there that is this user's, and that nobody else may enter."""
    if sys.platform != "win32":
        with suppress(OSError):
            found = os.lstat(folder)
            return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return False
