"""The folders in which unpacked files may lie: which are safe and whole, and the one that is in use."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

try:
    from _blake2 import blake2b  # to import hashlib takes longer than to hash all files
except ImportError:
    from hashlib import blake2b

LIST = "files"  # names every other file, with its size and its digest; the last file to be written
COMPILED_HERE = "compiled here:"  # behind this line of the list is the bytecode, which gnar.pyz does not have
END = "end"
DIGEST_BYTES = 16
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)  # errors that no other folder would help against
RENAME_S = 0.05  # in which a process that removes a folder, and has locked it, gives it another name
NOTE_USE_EVERY_S = 86_400.0  # the time of LIST is that of the last start, give or take this

Files = dict[str, tuple[int, str]]  # size and digest of each file, by its path in the folder, with "/"


class DamagedError(ImportError):
    """An unpacked file is missing, or has another content than the list says; `path` is its place."""


class Folder:
    """A folder of unpacked files, held open so that no other folder can take its place, and locked.

    Programs that clean temporary folders respect the lock, and so do other starts of gnar. `held` is the
    descriptor, for the life of this process; -1 on Windows, which removes nothing that is in use.
    """

    def __init__(self, home: str, held: int, files: Files) -> None:
        self.home = home
        self.held = held
        self.files = files

    def read(self, path: str) -> bytes:
        """Return the content of a file by its path in the folder. Raises DamagedError."""
        size, expected = self.files[path]
        try:
            with open(path if self.held >= 0 else self.path_of(path), "rb", opener=self._open) as file:
                data = file.read()
        except OSError as exc:
            raise DamagedError(f"{self.path_of(path)}: {exc.strerror}", path=self.path_of(path)) from exc
        if len(data) != size or digest(data) != expected:
            raise DamagedError(f"{self.path_of(path)} is damaged", path=self.path_of(path))
        return data

    def path_of(self, path: str) -> str:
        """Return the whole path of a file by its path in the folder."""
        return os.path.join(self.home, *path.split("/"))

    def held_path_of(self, path: str) -> str:
        """Return a path that leads into this very folder, whatever `home` is by now, where there is one."""
        here = f"/proc/self/fd/{self.held}/{path}"
        return here if self.held >= 0 and os.path.exists(here) else self.path_of(path)

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, dir_fd=self.held if self.held >= 0 else None)


# ---- where -------------------------------------------------------------------------------------------------


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


def find(name: str, packed: str) -> Folder | None:
    """Return the first folder of this name that can be used, held open; None if there is none.

    `packed` is the digest of the files in gnar.pyz that this host needs.
    """
    for folder in list_folders():
        with suppress(OSError):  # then the next folder may do
            resolved = resolve(folder)
            if not find_danger(resolved) and (found := hold_if_usable(os.path.join(resolved, name), packed)):
                return found
    return None


def resolve(folder: str) -> str:
    """Return the path of a folder without links, so that a link that is changed later leads nowhere else.

    Raises OSError when the folder itself is a link that belongs neither to this user nor to root.
    """
    if os.path.islink(folder) and hasattr(os, "geteuid") and os.lstat(folder).st_uid not in (os.geteuid(), 0):
        raise PermissionError(errno.EPERM, "it is a link of somebody else")
    return os.path.realpath(folder)


# ---- safe --------------------------------------------------------------------------------------------------


def find_danger(path: str, is_there: bool = True) -> str:
    """Say why somebody else could put code into a folder that code is going to be run from; "" if nobody can.

    The folder has to belong to this user or to root, and nobody else may write to it. The folders above may
    also belong to the owner of `/`: in a user namespace that does not map root, root has the number of an
    unknown user. Others may write to a folder above if only the owner of a file can remove or rename the
    file there, as in /tmp. None of that matters for a folder that `is_sealed`.

    `path` has been resolved: a link in it was put there since. With `is_there=False` these folders need not
    exist yet.
    """
    if not hasattr(os, "geteuid"):
        return ""
    owner_of_all = os.lstat("/").st_uid
    folder, above = path, os.path.dirname(path)
    while True:
        try:
            info = os.lstat(folder)
        except FileNotFoundError:
            if is_there:
                return f"{folder} has gone"
        else:
            is_last = folder == path
            if not is_own(info) and (is_last or info.st_uid != owner_of_all) and not is_sealed(folder):
                return f"{folder} belongs to user {info.st_uid}"
            is_open = info.st_mode & 0o022 and (is_last or not info.st_mode & stat.S_ISVTX)
            if is_open and not is_sealed(folder):
                return f"others can write to {folder}"
        if above == folder:
            return ""
        folder, above = above, os.path.dirname(above)


def is_own(info: os.stat_result) -> bool:
    """Tell whether a file or folder belongs to this user or to root; everything does on Windows."""
    return not hasattr(os, "geteuid") or info.st_uid in (os.geteuid(), 0)


def is_sealed(path: str) -> bool:
    """Tell whether nobody can write to a place that the user has named: it is mounted read-only.

    So an image runs under any user, whoever has unpacked gnar there. Root runs nothing of other users.
    """
    if not os.environ.get("SHIV_ROOT") or not hasattr(os, "statvfs") or os.geteuid() == 0:
        return False
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def is_noexec(folder: str) -> bool:
    """Tell whether compiled modules cannot be loaded from a folder because of how it is mounted."""
    flag = getattr(os, "ST_NOEXEC", 0)
    return bool(flag and os.statvfs(folder).f_flag & flag)


# ---- whole -------------------------------------------------------------------------------------------------


def hold_if_usable(home: str, packed: str) -> Folder | None:
    """Return a folder, held open and locked, if gnar can run from it: it is safe and whole; else None.

    `packed` is the digest of the files in gnar.pyz that this host needs. What is packed there has to be
    listed alike. Bytecode is used only if its list belongs to this user or to root.
    """
    if not os.path.isdir(home) or find_danger(home) or is_noexec(home):
        return None
    held = -1
    try:
        held = _lock(home)
        if held >= 0 and not os.path.samestat(os.fstat(held), os.lstat(home)):
            raise FileNotFoundError("it was removed, or another folder has taken its place")
        _note_use(home)
        files, here = read_list(home, packed)
        if is_own(os.lstat(home)):
            files |= here
        if _is_whole(home, files):
            return Folder(home, held, files)
    except (OSError, ValueError):
        pass
    if held >= 0:
        os.close(held)
    return None


def _lock(home: str) -> int:
    """Open and lock a folder, against removal by others; return the descriptor, or -1 on Windows.

    A process that removes the folder has the lock, and by now has renamed the folder. Anybody else who may
    read the folder can take the lock, too: it must not be needed.
    """
    try:
        import fcntl
    except ImportError:
        return -1
    folder = os.open(home, os.O_RDONLY)
    try:
        # Not one of the first three numbers: those are the standard streams, and may be closed now.
        held = fcntl.fcntl(folder, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(folder)
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(RENAME_S)
    except OSError:  # a file system may have no locks
        pass
    return held


def _note_use(home: str) -> None:
    with suppress(OSError):
        noted = os.path.join(home, LIST)
        if time.time() - os.stat(noted).st_mtime > NOTE_USE_EVERY_S:
            os.utime(noted)


def _is_whole(home: str, files: Files) -> bool:
    """Tell whether every file is there, has its size, and can be changed by nobody else. Raises OSError.

    Some programs clean temporary folders by the age of files, and after a crash a file may be empty.
    """
    can_check = hasattr(os, "geteuid") and not is_sealed(home)
    parts = (path.split("/") for path in files)
    above = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names))}
    for path in files.keys() | above | {LIST}:
        info = os.lstat(os.path.join(home, path))
        if path in files and info.st_size != files[path][0]:
            return False
        if can_check and (info.st_mode & 0o022 or not is_own(info)):
            return False
    return True


def read_list(home: str, packed: str) -> tuple[Files, Files]:
    """Return the files of a folder that were in gnar.pyz, and those that were compiled where it was unpacked.

    Raises OSError when the list cannot be read, and ValueError when the list is not whole, or when what it
    says of the files in gnar.pyz is not what gnar.pyz has.
    """
    with open(os.path.join(home, LIST), encoding="utf-8") as file:
        text = file.read()
    first, _, second = text.partition(f"{COMPILED_HERE}\n")
    if digest(first.encode()) != packed or not second.endswith(END):
        raise ValueError("the list of files was cut or changed")
    return _parse(first), _parse(second.removesuffix(END))


def _parse(lines: str) -> Files:
    fields = (line.split(" ", 2) for line in lines.splitlines())
    return {path: (int(size), expected) for size, expected, path in fields}


def listing(files: Iterable[tuple[str, bytes]]) -> str:
    """Return the lines of the list for some files, by path, as in `read_list`."""
    return "".join(f"{len(data)} {digest(data)} {path}\n" for path, data in sorted(files))


def digest(data: bytes) -> str:
    """Return a hash that nobody can find another content for."""
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
