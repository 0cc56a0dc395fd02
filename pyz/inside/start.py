"""What gnar.pyz does on a host that it is for: finds its unpacked files, or unpacks them, and runs gnar.

Python compiles this file at every start, so only what every start needs stands here; the rest is in `unpack`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from pyz.inside import holds

LIST = "files"  # names every other file and its size; the last one to be written
NOTE_USE_EVERY_S = 86_400.0  # the time of LIST is that of the last use, as exactly as this

_locks: list[int] = []  # the descriptor that keeps others from removing the folder in use


def start(host: str) -> None:
    """Run gnar and end the process with its status; `host` is a name in `holds.TARGETS`."""
    name = f"gnar-{holds.BUILD_ID}-{host.replace('/', '-')}"
    try:
        sys.path[0] = os.path.join(find(name) or _unpack(name, host), "site-packages")
        sys.modules.pop("zope", None)  # a .pth file of another installation may have made one
        import gnar

        status = gnar.main()
    except KeyboardInterrupt:  # before gnar takes signals itself
        status = 0
    except ImportError as exc:
        if not str(exc.path).endswith(".so"):
            raise
        # Most likely the system has no library of C++, which greenlet needs.
        sys.exit(f"gnar.pyz: {exc} (libstdc++ is in Debian's package libstdc++6)")
    sys.exit(status)


def _unpack(name: str, host: str) -> str:
    from pyz.inside.unpack import unpack

    return unpack(name, host)


def folders() -> Iterator[str]:
    """Yield where unpacked files may lie, the best first."""
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
    """Return the folder of that name in which everything lies, in use from now on, or an empty text."""
    for folder in folders():
        with suppress(OSError):  # then the next one may do
            home = os.path.join(resolve(folder), name)
            if os.path.isdir(home) and not danger(home) and use(home):
                return home
    return ""


def resolve(folder: str) -> str:
    """Return where a folder really is, once and for all: a link that is changed later leads nowhere else.

    Raises OSError for a link that is neither this user's nor root's.
    """
    if os.path.islink(folder) and hasattr(os, "geteuid") and os.lstat(folder).st_uid not in (os.geteuid(), 0):
        raise PermissionError(errno.EPERM, "it is a link of somebody else")
    return os.path.realpath(folder)


def danger(path: str, is_there: bool = True) -> str:
    """Say why somebody else could put code into a folder that it is going to be run from; or nothing.

    The folder and all above it have to belong to this user or to root. Others may write to none of them, but
    to those above in which only its owner can remove or rename a file, as in /tmp. `path` is resolved: a link
    in it was put there meanwhile. Unless it `is_there`, what does not exist of it is left out.
    """
    folder, above = path, os.path.dirname(path)
    while hasattr(os, "geteuid"):
        try:
            info = os.lstat(folder)
        except FileNotFoundError:
            if is_there:
                return f"{folder} has gone"
        else:
            if info.st_uid not in (os.geteuid(), 0):
                return f"{folder} belongs to user {info.st_uid}"
            if info.st_mode & 0o022 and (folder == path or not info.st_mode & stat.S_ISVTX):
                return f"others can write to {folder}"
        if above == folder:
            break
        folder, above = above, os.path.dirname(above)
    return ""


def use(home: str) -> bool:
    """Keep others from removing a folder until this process ends, and tell whether everything lies in it.

    The lock is on the folder itself, which programs that clean temporary folders respect as well.
    """
    with suppress(ImportError):  # Windows removes nothing that is in use
        import fcntl

        with suppress(OSError):  # a file system may have no locks
            folder = os.open(home, os.O_RDONLY)
            try:
                # Not one of the first three: those may be closed at the start, and are the standard streams.
                lock = fcntl.fcntl(folder, fcntl.F_DUPFD_CLOEXEC, 3)
            finally:
                os.close(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody is about to remove it
                os.close(lock)
                return False
            _locks.append(lock)
    if not is_whole(home):
        return False
    with suppress(OSError):
        noted = os.path.join(home, LIST)
        if time.time() - os.stat(noted).st_mtime > NOTE_USE_EVERY_S:
            os.utime(noted)
    return True


def is_whole(home: str) -> bool:
    """Tell whether every file is there and as long as it was.

    Some programs clean temporary folders by the age of files, and after a crash a file may be empty.
    """
    try:
        with open(os.path.join(home, LIST), encoding="utf-8") as file:
            *lines, end = file.read().split("\n")
        for line in lines:
            size, _, path = line.partition(" ")
            if os.stat(os.path.join(home, path)).st_size != int(size):
                return False
    except (OSError, ValueError):
        return False
    return end == "end"
