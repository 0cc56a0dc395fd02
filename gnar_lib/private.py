"""Makes sure that a folder and the files in it are of this user alone; knows not what they are for.

On Windows, where none of this is known of a file, a folder has to be there, and nothing more.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

from gnar_lib.errors import StorageError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CHOWN = "chown gives it to the user who runs gnar"
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


def make_private_folder(path: str) -> None:
    """Make a folder if there is none.

    Raises `StorageError` for a folder in which another user can put files in the place of ours; `OSError`.
    """
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except FileExistsError:
        raise StorageError(f"{path}: not a folder") from None
    check_private_folder(path)


def check_private_folder(path: str) -> None:
    """Raise `StorageError` for a folder in which another user can put files, or for a file; `OSError`."""
    found = os.stat(path)  # of where a link leads: systemd makes folders that are links
    if not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"{path}: not a folder")
    if sys.platform == "win32":
        return
    if not _is_ours(found):
        raise StorageError(f"{path}: another user owns the folder; {_CHOWN}")
    if found.st_mode & _OTHERS_WRITE:
        raise StorageError(f"{path}: others can write to the folder; chmod go-w makes it yours alone")


def make_private_file(path: str) -> None:
    """Make a file if there is none, and let nobody else read it; raises as `check_private_file` does."""
    check_private_file(path)
    file = os.open(path, _OPEN, 0o600)
    try:
        _check(path, os.fstat(file))
        if sys.platform != "win32":
            os.fchmod(file, 0o600)
    finally:
        os.close(file)


def check_private_file(path: str) -> None:
    """Raise `StorageError` for a link, for a device or the like, or a file of another user; `OSError`."""
    with suppress(FileNotFoundError):
        _check(path, os.lstat(path))


def _check(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"{path}: not a regular file")
    if not _is_ours(found):
        raise StorageError(f"{path}: another user owns the file; {_CHOWN}")


def _is_ours(found: os.stat_result) -> bool:
    """Tell whether this user owns a file or a folder."""
    geteuid = getattr(os, "geteuid", None)  # Windows has none
    return geteuid is None or found.st_uid == geteuid()
