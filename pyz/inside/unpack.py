"""The first start of gnar.pyz on a host: unpacks the files for that host, and removes older versions."""

from __future__ import annotations

import compileall
import io
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyz.inside import holds
from pyz.inside.folders import (
    COMPILED_HERE,
    END,
    LIST,
    OUT_OF_FILES,
    Folder,
    digest,
    find_danger,
    hold_if_usable,
    is_noexec,
    list_folders,
    listing,
    resolve,
)
from pyz.inside.modules import SITE

OTHER_VERSIONS_KEPT = 2  # as many as somebody may use by turns
LOCK_WAIT_S = 60.0  # for another process that unpacks; a healthy process takes less than a second
ELF_HEAD_BYTES = 65_536  # in which a program names its loader
OLD = ".old"  # ends the name of a folder that has been replaced
# The names of folders that gnar.pyz makes; a folder with another name is never removed.
MADE_HERE = re.compile(r"gnar-[0-9a-f]{16}-[\w.-]+?-3\.\d+(?P<unfinished>\.\w+\.tmp(\.old)?)?")
STALE_S = 3600.0  # the age of an unfinished folder whose process must have ended, where there are no locks


def unpack(name: str, host: str) -> Folder:
    """Unpack the files for a host into a folder of this name, and return it, held open and locked.

    `host` is a name in `holds.TARGETS`. The folder is made in the first place that will do. Ends the process
    with one line when no place will do.
    """
    if "-musl/" in host and () < (musl := _musl_version()) < holds.MUSL:
        found, needed = (".".join(map(str, version)) for version in (musl, holds.MUSL))
        sys.exit(f"gnar.pyz: this host has musl {found}, and gnar needs {needed}: use a newer system")
    before = os.umask(0o022)  # nobody else may write to what is made here
    try:
        return _unpack_somewhere(name, host)
    finally:
        os.umask(before)


def _unpack_somewhere(name: str, host: str) -> Folder:
    problems: list[str] = []
    for folder in list_folders():
        try:
            resolved = resolve(folder)
            problem = find_danger(resolved, is_there=False) or _make_place(resolved) or find_danger(resolved)
            if not problem:
                return _unpack_into(resolved, name, host)
        except OSError as exc:
            if exc.errno in OUT_OF_FILES:
                raise
            problem = f"{folder}: {exc.strerror or exc}"
        except tarfile.CompressionError:
            sys.exit("gnar.pyz: this Python lacks the module lzma: use another, or ./build_zipapp.sh --host")
        except (zlib.error, zipfile.BadZipFile) as exc:
            sys.exit(f"gnar.pyz: the file is damaged, copy it again: {exc}")
        if problem not in problems:
            problems.append(problem)
    sys.exit(
        f"gnar.pyz: there is no place to unpack into ({'; '.join(problems)}): "
        "name a folder in SHIV_ROOT that only you can write to, with 16 MB to spare"
    )


def _musl_version() -> tuple[int, ...]:
    """Return the version that musl itself tells, or an empty tuple when musl is not found.

    musl is also the loader of every program, Python included, and tells its version when it is run alone.
    """
    with suppress(OSError, subprocess.SubprocessError):
        with open(sys.executable, "rb") as file:
            loader = re.search(rb"/[\w./-]*ld-musl-[\w-]+\.so\.1", file.read(ELF_HEAD_BYTES))
        if loader:
            said = subprocess.run(
                [loader[0]], stderr=subprocess.PIPE, check=False, timeout=LOCK_WAIT_S
            ).stderr
            version = re.search(rb"Version (\d+)\.(\d+)\.(\d+)", said)
            return tuple(map(int, version.groups())) if version else ()
    return ()


def _make_place(folder: str) -> str:
    """Make a folder unless it exists. Say why compiled modules cannot be loaded from it; "" if they can."""
    os.makedirs(folder, 0o755 if os.environ.get("SHIV_ROOT") else 0o700, exist_ok=True)
    return f"{folder} is mounted noexec" if is_noexec(folder) else ""


def _unpack_into(folder: str, name: str, host: str) -> Folder:
    """Unpack into the folder `name` in `folder`, and return it, held open and locked. Raises OSError."""
    home, packed = os.path.join(folder, name), holds.FILES[host]
    with _take_turn(folder) as is_alone:
        if found := hold_if_usable(home, packed):  # another process was faster
            return found
        fresh = tempfile.mkdtemp(".tmp", name + ".", folder)
        try:
            _write_files(fresh, home, host)
            # Others do not always wait, and may run from the folder by now.
            if not (found := hold_if_usable(home, packed)):
                _replace(home, fresh)
        except OSError:
            if not (found := hold_if_usable(home, packed)):  # else another process has put it there just now
                raise
        finally:
            for made in (fresh, fresh + OLD):
                shutil.rmtree(made, ignore_errors=True)
        if not (found := found or hold_if_usable(home, packed)):
            raise OSError(f"what was unpacked into {home} has been changed or removed meanwhile")
        _remove_old(folder, home, is_alone)
    return found


@contextmanager
def _take_turn(folder: str) -> Iterator[bool]:
    """Make processes that unpack into a folder take turns, and yield whether the others wait for this one.

    They do not wait where the file system has no locks, or when a process has kept its turn for LOCK_WAIT_S.
    Then each process unpacks into a folder of its own, and all use the folder that is ready first.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open(
        os.path.join(folder, ".lock"), "ab", opener=lambda path, how: os.open(path, how, 0o600)
    ) as file:
        give_up = time.monotonic() + LOCK_WAIT_S
        locked = False
        while not locked and time.monotonic() < give_up:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                time.sleep(0.02)  # the pace of asking
            except OSError:  # a file system without locks
                break
        yield locked


def _write_files(fresh: str, home: str, host: str) -> None:
    """Write the packages for a host, compile their modules to bytecode, and at last write the list.

    The files are written into the folder `fresh`, which is going to be called `home`.
    """
    site = os.path.join(fresh, SITE)
    packed = []
    prefix, sys.pycache_prefix = sys.pycache_prefix, None
    try:
        os.chmod(fresh, 0o755)  # noqa: S103  (any user may run a container; the files are no secret)
        for path, data in _packed_files(host):
            target = os.path.join(site, *path.split("/"))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(data)
                packed.append((f"{SITE}/{path}", data))
                # A compiled module that a crash of the host left half written would crash Python. The wait
                # for the disk takes 5 ms for these 15 files, and would take 85 ms for all 360.
                if path.endswith(".pyd") or ".so" in path:
                    file.flush()
                    os.fsync(file.fileno())
        # Python trusts such bytecode whatever the time of the source is: a copy may not keep the time.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(site, ddir=os.path.join(home, SITE), quiet=2, invalidation_mode=mode)
        lines = listing(packed)
        if digest(lines.encode()) != holds.FILES[host]:
            raise zipfile.BadZipFile("it holds other files than it should")
        with open(os.path.join(fresh, LIST), "w", encoding="utf-8", newline="\n") as file:
            file.write(f"{lines}{COMPILED_HERE}\n{listing(_bytecode(fresh))}{END}")
    finally:
        sys.pycache_prefix = prefix


def _packed_files(host: str) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file that a host needs."""
    with zipfile.ZipFile(sys.path[0]) as archive:  # sys.path[0] is gnar.pyz itself until all is unpacked
        for name in archive.namelist():
            top, _, path = name.partition("/")
            if top == SITE:
                yield path, archive.read(name)
        for block in holds.TARGETS[host]:
            with tarfile.open(fileobj=io.BytesIO(archive.read(block))) as tar:
                for member in tar:
                    if file := tar.extractfile(member):
                        yield member.name, file.read()


def _bytecode(home: str) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file of bytecode."""
    for at, _, names in os.walk(home):
        for name in names:
            if name.endswith(".pyc"):
                with open(os.path.join(at, name), "rb") as file:
                    yield os.path.relpath(file.name, home).replace(os.sep, "/"), file.read()


def _replace(home: str, fresh: str) -> None:
    """Put the files of a new folder into the place of damaged ones, or of none. Raises OSError.

    A damaged folder stays where it is and gets new files: processes that run from it have their locks on it.
    Afterwards `fresh`, or a folder named like `fresh` with OLD behind it, has the files that were damaged.
    """
    if find_danger(home) or not os.path.isdir(home):
        with suppress(FileNotFoundError):
            os.rename(home, fresh + OLD)
        os.rename(fresh, home)
        return
    site, files = os.path.join(home, SITE), os.path.join(home, LIST)
    with open(files, "w", encoding="utf-8"):
        pass  # with an empty list no process takes the folder for whole
    with suppress(FileNotFoundError):
        os.rename(site, os.path.join(fresh, "damaged"))
    os.rename(os.path.join(fresh, SITE), site)
    os.replace(os.path.join(fresh, LIST), files)


def _remove_old(folder: str, home: str, is_alone: bool) -> None:
    """Remove what unfinished starts left in a folder, and other versions than `home`.

    Of the other versions those in use stay, and those that were used last. Unless this process `is_alone` in
    unpacking, the unfinished folder of another process stays until it is old.
    """
    own_version = os.path.basename(home).split("-")[:2]
    others = []
    for entry in os.scandir(folder):
        made_here = MADE_HERE.fullmatch(entry.name)
        if not made_here or not entry.is_dir(follow_symlinks=False):
            continue
        if made_here["unfinished"]:
            if is_alone or time.time() - entry.stat().st_mtime > STALE_S:
                shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name.split("-")[:2] != own_version and os.path.exists(os.path.join(entry.path, LIST)):
            others.append((_last_use(entry.path), entry.path))
    for _, path in sorted(others, reverse=True)[OTHER_VERSIONS_KEPT:]:
        _remove_unused(path)


def _last_use(home: str) -> float:
    """Return when a process last started from a folder, in seconds since 1970, or 0 if that is not known."""
    try:
        return os.stat(os.path.join(home, LIST)).st_mtime
    except OSError:
        return 0.0


def _remove_unused(home: str) -> None:
    """Remove a folder unless a process uses it. One that starts meanwhile unpacks anew.

    The folder is renamed first, since other users of this machine could hold a lock as well.
    """
    try:
        import fcntl
    except ImportError:  # Windows removes nothing that is in use
        shutil.rmtree(home, ignore_errors=True)
        return
    with suppress(OSError):  # among others BlockingIOError: a process uses the folder
        folder = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            above, name = os.path.split(home)
            doomed = tempfile.mkdtemp(".tmp", name + ".", above)
            os.rename(home, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        finally:
            os.close(folder)
