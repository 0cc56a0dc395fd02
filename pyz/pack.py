"""Packs gnar and its packages into one file for several hosts, in which nothing is there twice.

The file is a zip archive that Python runs:

    __main__.py, pyz/...    the start-up, which is `inside/`
    pyz/inside/holds.py     the blocks that each host needs
    site-packages/...       what every host needs, packed by shiv
    blocks/....tar.xz       what some hosts need; one archive for all of it compresses best
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyz.inside.folders import digest, listing
from pyz.inside.modules import SITE
from pyz.targets import MUSL, NAMES

INSIDE = Path(__file__).resolve().parent / "inside"
ROOT = INSIDE.parent.parent
SHEBANG = b"#!/usr/bin/env python3\n"
ID_DIGITS = 16
PRESET = 2  # of LZMA; 4 saves 5 %, and 9 saves 8 %: they take twice and four times as long
DICTIONARY_BYTES = 8 << 20  # as much as a block has; a host needs as much memory to unpack it

Files = dict[str, Path]  # the source of each file, by the path that the file gets below site-packages
Block = tuple[str, bytes]  # a compressed archive: its name in the file, and its content


class PackError(Exception):
    """The file could not be packed; the text is one line for a person."""


def pack(
    common: Path | None, others: dict[str, Path], glibc: tuple[int, int], work: Path, output: Path
) -> None:
    """Write a file that has the packages of `common` for every host, and those of `others` for each target.

    `glibc` is the oldest version that the packages run with. `work` keeps blocks for the next build. Raises
    PackError, and OSError where something cannot be written.
    """
    groups = _group(others)
    shared = groups.pop(tuple(others), {})
    site = _lay_out(common, shared, [*others], work / "site")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # compressing lets other threads run
        packed = pool.map(lambda hosts: _make_block(hosts, groups[hosts], work / "blocks"), groups)
        blocks = dict(zip(groups, packed, strict=True))
    needs = {name: sorted(block[0] for hosts, block in blocks.items() if name in hosts) for name in others}
    every_host = _packed_by_shiv(site, work)
    lists = {name: _digest_of_list(every_host, groups, name) for name in others}
    holds: dict[str, object] = {
        "BUILD_ID": hashlib.sha256(repr((needs, lists)).encode()).hexdigest()[:ID_DIGITS],
        "TARGETS": needs,
        "FILES": lists,
        "PLATFORMS": NAMES,
        "GLIBC": glibc,
        "MUSL": MUSL,
    }
    _write(every_host, sorted(blocks.values()), holds, output)


def _group(others: dict[str, Path]) -> dict[tuple[str, ...], Files]:
    """Return for each set of targets the files that these targets need, and no other target does."""
    needed_by: dict[tuple[str, bytes], list[str]] = defaultdict(list)
    sources: dict[tuple[str, bytes], Path] = {}
    for target, folder in others.items():
        for source in (path for path in folder.rglob("*") if path.is_file()):
            key = source.relative_to(folder).as_posix(), hashlib.sha256(source.read_bytes()).digest()
            needed_by[key].append(target)
            sources[key] = source
    groups: dict[tuple[str, ...], Files] = defaultdict(dict)
    for key, hosts in needed_by.items():
        groups[tuple(hosts)][key[0]] = sources[key]
    return groups


def _digest_of_list(common: dict[str, bytes], groups: dict[tuple[str, ...], Files], name: str) -> str:
    """Return the digest of the list of all files of a target, with which the start-up checks that list."""
    files = [
        (f"{SITE}/{path}", source.read_bytes())
        for hosts, group in groups.items()
        if name in hosts
        for path, source in group.items()
    ]
    return digest(listing([*common.items(), *files]).encode())


def _lay_out(common: Path | None, shared: Files, names: list[str], site: Path) -> Path:
    """Make a folder of what every host needs: gnar itself, and the packages that are the same everywhere.

    `names` are those of the targets; gnar shows them in `--version --verbose`.
    """
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    if common is not None:
        shutil.copytree(common, site, dirs_exist_ok=True)
    for path, source in shared.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, site / path)
    shutil.copyfile(ROOT / "gnar.py", site / "gnar.py")
    shutil.copytree(ROOT / "gnar_lib", site / "gnar_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "gnar_lib" / "holds.json").write_text(json.dumps(names), encoding="utf-8")
    for entry in site.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)  # whatever the umask was
    return site


def _make_block(hosts: tuple[str, ...], files: Files, kept_in: Path) -> Block:
    """Return a block of some files, from the folder `kept_in` if the same block was made before."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, source in sorted(files.items()):
            info = tarfile.TarInfo(path)
            info.size = source.stat().st_size
            tar.addfile(info, io.BytesIO(source.read_bytes()))
    filters: list[dict[str, int]] = [
        {"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": DICTIONARY_BYTES}
    ]
    if any("x86_64" in host for host in hosts):
        filters.insert(0, {"id": lzma.FILTER_X86})  # makes equal jumps equal bytes
    digest = hashlib.sha256(repr(filters).encode() + plain.getvalue()).hexdigest()[:ID_DIGITS]
    kept = kept_in / f"{digest}.tar.xz"
    if not kept.is_file():
        kept_in.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(lzma.compress(plain.getvalue(), lzma.FORMAT_XZ, filters=filters))
        fresh.replace(kept)
    return f"blocks/{kept.name}", kept.read_bytes()


def _packed_by_shiv(site: Path, work: Path) -> dict[str, bytes]:
    """Return the files of the archive that shiv makes of a folder, without shiv's own start-up."""
    made = work / "shiv.pyz"
    shiv = [sys.executable, "-W", "ignore", "-m", "shiv", "--reproducible", "--entry-point", "gnar:main"]
    command = [*shiv, "--site-packages", str(site), "--output-file", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        *_, reason = ["it said nothing", *(done.stdout + done.stderr).strip().splitlines()]
        raise PackError(f"shiv failed with status {done.returncode}: {reason}")
    with zipfile.ZipFile(made) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{SITE}/")]
        return {name: archive.read(name) for name in names}


def _write(common: dict[str, bytes], blocks: list[Block], holds: dict[str, object], output: Path) -> None:
    sources = [INSIDE.parent / "__init__.py", *sorted(INSIDE.glob("*.py"))]
    start = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sources}
    start["__main__.py"] = start.pop("pyz/inside/__main__.py")
    start["pyz/inside/holds.py"] = "".join(f"{name} = {value!r}\n" for name, value in holds.items()).encode()
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    with fresh.open("wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in [*start.items(), *common.items()]:
                _add(archive, name, data, zipfile.ZIP_DEFLATED)
            for name, data in blocks:
                _add(archive, name, data, zipfile.ZIP_STORED)
    fresh.chmod(0o755)
    fresh.replace(output)  # in one step, so that whoever starts it meanwhile finds a whole file


def _add(archive: zipfile.ZipFile, name: str, data: bytes, compression: int) -> None:
    info = zipfile.ZipInfo(name)  # with the same time in every build
    info.external_attr = 0o644 << 16
    archive.writestr(info, data, compression)
