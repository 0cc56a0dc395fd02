"""The folders in which unpacked files may lie: which of them are safe, whole and locked against removal."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

LIST = "files"  # names every other file, with its size and its checksum; the last file to be written
NOTE_USE_EVERY_S = 86_400.0  # the time of LIST is that of the last start, give or take this

_locks: list[int] = []  # the descriptor whose lock keeps others from removing the folder in use


def list_folders() -> Iterator[str]:
    """Yield the folders in which unpacked files may lie, the best first."""
    if os.environ.get("SHIV_ROOT"):
        yield os.path.abspath(os.environ["SHIV_ROOT"])
        return
    variable = os.environ.get
    for cache in (variable("XDG_CACHE_HOME"), variable("LOCALAPPDATA"), os.path.expanduser("~/.cache")):
        if cache and os.path.isabs(cache):
            yield os.path.join(cache, "gnar")
    if not hasattr(os, "geteuid"):  # Windows has a temporary folder for each user, and no other
        yield os.path.join(variable("TEMP", ""), "gnar")
        return
    for temporary in (variable("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"):
        if temporary and os.path.isabs(temporary):
            yield os.path.join(temporary, f"gnar-{os.geteuid()}")


def find(name: str) -> str:
    """Return the path of the first folder of this name that is usable, and lock it; "" if there is none."""
    for folder in list_folders():
        with suppress(OSError):  # then the next folder may do
            resolved = resolve(folder)
            home = os.path.join(resolved, name)
            if os.path.isdir(home) and not find_danger(resolved) and lock_if_usable(home):
                return home
    return ""


def resolve(folder: str) -> str:
    """Return the path of a folder without links, so that a link that is changed later leads nowhere else.

    Raises OSError when the folder itself is a link that belongs neither to this user nor to root.
    """
    if os.path.islink(folder) and hasattr(os, "geteuid") and os.lstat(folder).st_uid not in (os.geteuid(), 0):
        raise PermissionError(errno.EPERM, "it is a link of somebody else")
    return os.path.realpath(folder)


def find_danger(path: str, is_there: bool = True) -> str:
    """Say why somebody else could put code into a folder that code is going to be run from; "" if nobody can.

    The folder has to belong to this user or to root, and nobody else may write to it. The folders above may
    also belong to the owner of `/`: in a user namespace that does not map root, root has the number of an
    unknown user. Others may write to a folder above if only the owner of a file can remove or rename the
    file there, as in /tmp.

    `path` has been resolved: a link in it was put there since. With `is_there=False` these folders need not
    exist yet.
    """
    if not hasattr(os, "geteuid"):
        return ""
    mine = (os.geteuid(), 0)
    owners_above = (*mine, os.lstat("/").st_uid)
    folder, above = path, os.path.dirname(path)
    while True:
        try:
            info = os.lstat(folder)
        except FileNotFoundError:
            if is_there:
                return f"{folder} has gone"
        else:
            if info.st_uid not in (mine if folder == path else owners_above):
                return f"{folder} belongs to user {info.st_uid}"
            if info.st_mode & 0o022 and (folder == path or not info.st_mode & stat.S_ISVTX):
                return f"others can write to {folder}"
        if above == folder:
            return ""
        folder, above = above, os.path.dirname(above)


def is_noexec(folder: str) -> bool:
    """Tell whether compiled modules cannot be loaded from a folder because of how it is mounted."""
    flag = getattr(os, "ST_NOEXEC", 0)
    return bool(flag and os.statvfs(folder).f_flag & flag)


def lock_if_usable(home: str) -> bool:
    """Tell whether gnar can run from a folder: it is safe and whole. If so, keep others from removing it.

    A lock does that until this process ends. Programs that clean temporary folders respect the lock, too.
    """
    return os.path.isdir(home) and not find_danger(home) and not is_noexec(home) and _lock_if_whole(home)


def _lock_if_whole(home: str) -> bool:
    lock = -1
    with suppress(ImportError):  # Windows removes nothing that is in use
        import fcntl

        with suppress(OSError):  # a file system may have no locks
            folder = os.open(home, os.O_RDONLY)
            try:
                # Not one of the first three numbers: those are the standard streams, and may be closed now.
                lock = fcntl.fcntl(folder, fcntl.F_DUPFD_CLOEXEC, 3)
            finally:
                os.close(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is about to remove the folder
                os.close(lock)
                return False
    if not is_whole(home):
        if lock >= 0:
            os.close(lock)
        return False
    if lock >= 0:
        _locks.append(lock)
    with suppress(OSError):
        noted = os.path.join(home, LIST)
        if time.time() - os.stat(noted).st_mtime > NOTE_USE_EVERY_S:
            os.utime(noted)
    return True


def is_whole(home: str) -> bool:
    """Tell whether every file is there and has the size that it had when it was unpacked.

    Some programs clean temporary folders by the age of files, and after a crash a file may be empty.
    """
    with suppress(OSError, ValueError):
        return all(os.stat(path).st_size == size for path, size, _ in read_list(home))
    return False


def read_list(home: str) -> list[tuple[str, int, int]]:
    """Return path, size and checksum (CRC-32) of every unpacked file, as noted when it was unpacked.

    Raises OSError when the list cannot be read, and ValueError when the list is not whole.
    """
    with open(os.path.join(home, LIST), encoding="utf-8") as file:
        *lines, end = file.read().split("\n")
    if end != "end":
        raise ValueError("the list of files was cut")
    fields = [line.split(" ", 2) for line in lines]
    return [(os.path.join(home, path), int(size), int(checksum, 16)) for size, checksum, path in fields]
