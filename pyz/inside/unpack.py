"""The first start of gnar.pyz on a host: unpacks what that needs, and removes what older versions left."""

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
from pyz.inside.start import LIST, danger, folders, resolve, use

OTHER_VERSIONS_KEPT = 2  # as many as somebody may use by turns
LOCK_WAIT_S = 60.0  # for another process that unpacks; a healthy one takes less than a second
ELF_HEAD_BYTES = 65_536  # in which a program names its loader
MADE_HERE = re.compile(
    r"gnar-[0-9a-f]{16}-[\w.-]+?-3\.\d+(?P<unfinished>\.\w+\.tmp(\.old)?)?"
)  # nothing else is removed
STALE_S = 3600.0  # age of an unfinished folder whose process has ended, where there are no locks


def unpack(name: str, host: str) -> str:
    """Make the folder of that name in the first place that will do, and return it, in use from now on.

    Ends the process with one line where none will do.
    """
    if "-musl/" in host and () < (musl := _musl_version()) < holds.MUSL:
        found, needed = (".".join(map(str, version)) for version in (musl, holds.MUSL))
        sys.exit(f"gnar.pyz: this host has musl {found}, and gnar needs {needed}: use a newer system")
    before = os.umask(0o022)  # nobody else may write to what is made here
    try:
        return _unpack_somewhere(name, host)
    finally:
        os.umask(before)


def _unpack_somewhere(name: str, host: str) -> str:
    problems = []
    for folder in folders():
        try:
            resolved = resolve(folder)
            problem = danger(resolved, is_there=False) or _make(resolved) or danger(resolved)
            if not problem:
                return _unpack_into(resolved, name, host)
        except OSError as exc:
            problem = f"{folder}: {exc.strerror or exc}"
        except tarfile.CompressionError:
            sys.exit("gnar.pyz: this Python lacks the module lzma: use another, or ./build_zipapp.sh --host")
        except (zlib.error, zipfile.BadZipFile) as exc:
            sys.exit(f"gnar.pyz: the file is damaged, copy it again: {exc}")
        if problem not in problems:
            problems.append(problem)
    sys.exit(
        f"gnar.pyz: there is no place to unpack into ({'; '.join(problems)}): "
        "name a folder in SHIV_ROOT that only you can write to, with 12 MB to spare"
    )


def _musl_version() -> tuple[int, ...]:
    """Ask musl, which is also the program that loads Python, for its version; empty if that is not found."""
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


def _make(folder: str) -> str:
    """Make a folder unless it is there, and say why compiled modules cannot be loaded from it; or nothing."""
    os.makedirs(folder, 0o755 if os.environ.get("SHIV_ROOT") else 0o700, exist_ok=True)
    no_exec = getattr(os, "ST_NOEXEC", 0)
    return f"{folder} is mounted noexec" if no_exec and os.statvfs(folder).f_flag & no_exec else ""


def _unpack_into(folder: str, name: str, host: str) -> str:
    home = os.path.join(folder, name)
    with _lock(folder) as locked:
        if use(home):  # another process was faster
            return home
        fresh = tempfile.mkdtemp(".tmp", name + ".", folder)
        try:
            _write_files(fresh, host)
            if use(home):  # where there are no locks: others may run from the first one's files by now
                shutil.rmtree(fresh, ignore_errors=True)
                return home
            _replace(home, fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        use(home)
        _remove_old(folder, home, locked)
    return home


@contextmanager
def _lock(folder: str) -> Iterator[bool]:
    """Have processes unpack one after the other; yields whether that can be told of the others.

    Without it each makes files of its own, and the first one's are used.
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


def _write_files(home: str, host: str) -> None:
    """Write the packages for a host, the same compiled, and the list of them all."""
    site = os.path.join(home, "site-packages")
    prefix, sys.pycache_prefix = sys.pycache_prefix, None
    try:
        os.chmod(home, 0o755)  # noqa: S103  (a container can be run by any user; what lies there is no secret)
        for path, data in _packed_files(host):
            target = os.path.join(site, *path.split("/"))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(data)
        # Python trusts such files whatever the time of the source says: a copy may not keep it.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(site, quiet=2, invalidation_mode=mode)
        lines = [f"{os.path.getsize(path)} {os.path.relpath(path, home)}\n" for path in _files(site)]
        with open(os.path.join(home, LIST), "w", encoding="utf-8") as file:
            file.write("".join([*lines, "end"]))
    finally:
        sys.pycache_prefix = prefix


def _packed_files(host: str) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file that a host needs."""
    with zipfile.ZipFile(sys.path[0]) as archive:  # which is gnar.pyz itself until it has been unpacked
        for name in archive.namelist():
            top, _, path = name.partition("/")
            if top == "site-packages":
                yield path, archive.read(name)
        for block in holds.TARGETS[host]:
            with tarfile.open(fileobj=io.BytesIO(archive.read(block))) as tar:
                for member in tar:
                    if file := tar.extractfile(member):
                        yield member.name, file.read()


def _files(folder: str) -> Iterator[str]:
    for at, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(at, name)


def _replace(home: str, fresh: str) -> None:
    """Put a new folder in the place of a damaged one, or of none."""
    with suppress(FileNotFoundError):
        os.rename(home, fresh + ".old")
    try:
        os.rename(fresh, home)
    finally:
        shutil.rmtree(fresh + ".old", ignore_errors=True)


def _remove_old(folder: str, home: str, locked: bool) -> None:
    """Remove what crashed starts left, and other versions but for the last used ones and those in use."""
    own_version = os.path.basename(home).split("-")[:2]
    others = []
    for entry in os.scandir(folder):
        made_here = MADE_HERE.fullmatch(entry.name)
        if not made_here or not entry.is_dir(follow_symlinks=False):
            continue
        if made_here["unfinished"]:
            if locked or time.time() - entry.stat().st_mtime > STALE_S:
                shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name.split("-")[:2] != own_version and os.path.exists(os.path.join(entry.path, LIST)):
            others.append((_last_use(entry.path), entry.path))
    for _, path in sorted(others, reverse=True)[OTHER_VERSIONS_KEPT:]:
        _remove_unused(path)


def _last_use(home: str) -> float:
    try:
        return os.stat(os.path.join(home, LIST)).st_mtime
    except OSError:
        return 0.0


def _remove_unused(home: str) -> None:
    """Remove a folder unless a process uses it; one that starts meanwhile sees the lock and unpacks anew."""
    try:
        import fcntl
    except ImportError:  # Windows removes nothing that is in use
        shutil.rmtree(home, ignore_errors=True)
        return
    with suppress(OSError):
        folder = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)
        finally:
            os.close(folder)
