"""Fetches the packages that go into gnar.pyz, in the pinned versions, and removes what never runs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyz import elf, pins
from pyz.targets import PLATFORMS, PYTHONS, Target

Say = Callable[[str], None]

# Tests, sources, loops and resolvers that gnar does not use, and what the installer notes for itself.
_NEVER_RUN = (
    "bin", "include", ".lock",
    "**/tests", "**/testing", "zope/event/tests.py", "zope/interface/common",
    "gevent/libuv", "gevent/_ffi", "gevent/libev/*cffi*", "gevent/libev/watcher.py",
    "gevent/*ares.py", "gevent/resolver/*ares*", "gevent/resolver/dnspython.py", "gevent/backdoor.py",
    "gevent/monkey/*_main*.py", "gevent/ssl.py", "gevent/pywsgi.py", "gevent/server.py",
    "gevent/baseserver.py", "gevent/_monitor.py", "gevent/*_tracer*",
    "gevent/contextvars.py", "gevent/_patcher.py", "zope/interface/advice.py", "zope/event/classhandler.py",
    "zope/interface/adapter.py", "zope/interface/registry.py", "zope/interface/verify.py",
    "zope/interface/document.py",
    "prometheus_client/parser.py", "prometheus_client/openmetrics/parser.py",
    "prometheus_client/multiprocess.py", "prometheus_client/bridge",
    "prometheus_client/aiohttp", "prometheus_client/django", "prometheus_client/twisted",
    "**/*.c", "**/*.cpp", "**/*.h", "**/*.hpp", "**/*.asm", "**/*.pyx", "**/*.pxd", "**/*.pyi", "**/py.typed",
    "*.dist-info/RECORD", "*.dist-info/WHEEL", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED",
    "*.dist-info/top_level.txt", "*.dist-info/sboms", "*.dist-info/direct_url.json", "**/__pycache__",
)  # fmt: skip
_COMPILED_MODULES = (".so", ".pyd")
_TEXTS = (".py", ".txt", ".md", ".rst", "METADATA", "LICENSE")


class FetchError(Exception):
    """Packages could not be fetched; the text is for a person."""


def fetch(wanted: Iterable[Target], work: Path, say: Say) -> tuple[Path, dict[str, Path]]:
    """Return a folder of the packages without compiled modules, and by target a folder of the other packages.

    The folders are in `work`. Those of an earlier build with the same pins are not fetched again. Raises
    FetchError.
    """
    pure = [name for name in pins.names() if name not in pins.COMPILED]
    oldest = Target(PLATFORMS[0], PYTHONS[0])  # what the oldest Python can run, all others can
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        common = pool.submit(_fetch_with_uv, work / "every-host", oldest, pure, say)
        others = {
            str(target): pool.submit(_fetch_with_uv, work / str(target), target, pins.COMPILED, say)
            for target in wanted
        }
        return common.result(), {name: folder.result() for name, folder in others.items()}


def fetch_for_this_python(work: Path, is_known: bool, say: Say) -> Path:
    """Return the folder of all packages for the Python that runs this. Raises FetchError.

    pip compiles a package for which there is no wheel. Unless this host `is_known`, as one of PLATFORMS, the
    packages that nobody may have to compile are left out.
    """
    names = [name for name in pins.names() if is_known or name not in pins.ONLY_AS_WHEEL]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--prefer-binary"]
    return _fetch(work / "this-host", command, names, say, "this host")


def _fetch_with_uv(folder: Path, target: Target, names: Iterable[str], say: Say) -> Path:
    platform = ["--python-platform", target.platform.uv, "--python-version", target.version]
    wheels = ["--only-binary", ":all:", "--link-mode", "copy"]
    command = [*pins.UV, "pip", "install", "--quiet", *wheels, *platform]
    return _fetch(folder, command, names, say, folder.relative_to(folder.parent.parent).as_posix())


def _fetch(folder: Path, command: list[str], names: Iterable[str], say: Say, label: str) -> Path:
    """Install packages into a folder, prune them, and return the folder. Raises FetchError.

    A folder that an earlier call has filled alike is returned as it is. `label` is its name for people.
    """
    requirements = folder.with_name(f"{folder.name}.txt")
    stamp = folder.with_name(f"{folder.name}.done")
    text = pins.text(names)
    pruning = Path(__file__).read_text(encoding="utf-8") + Path(elf.__file__).read_text(encoding="utf-8")
    fingerprint = f"{sys.version}\n{text}\n{pruning}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint:
        return folder
    say(f"fetching the packages for {label}")
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    requirements.write_text(text, encoding="utf-8")
    exactly = ["--no-deps", "--require-hashes", "--requirement", str(requirements), "--target", str(folder)]
    done = subprocess.run([*command, *exactly], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FetchError(f"the packages for {label} could not be fetched:\n{done.stderr.strip()}")
    _prune(folder)
    stamp.write_text(fingerprint, encoding="utf-8")
    return folder


def _prune(folder: Path) -> None:
    """Remove what never runs, and what makes two wheels of the same sources differ."""
    for pattern in _NEVER_RUN:
        for path in [*folder.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    _tidy(folder)
    if (table := folder / "hpack" / "huffman_table.py").is_file():
        table.write_text(shortened(table.read_text(encoding="utf-8")), encoding="utf-8")
    if (folder / "zope").is_dir():
        # A real package comes before any other package called zope that a host may have installed.
        (folder / "zope" / "__init__.py").touch()


def _tidy(folder: Path) -> None:
    """Cut off what is never read, and remove compiled modules for which there are sources."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        package = path.relative_to(folder).parts[0]
        if path.suffix in _COMPILED_MODULES and not package.startswith(pins.COMPILED):
            path.unlink()
        elif path.name.endswith(_TEXTS):  # wheels for Windows end lines in another way
            text = path.read_bytes().replace(b"\r\n", b"\n")
            if path.name == "METADATA":  # its fields are read, the description behind them is not
                text = text.partition(b"\n\n")[0] + b"\n"
            path.write_bytes(text)
        elif ".so" in path.name:
            path.write_bytes(elf.without_symbols(path.read_bytes()))


def shortened(source: str) -> str:
    """Return the source of `hpack/huffman_table.py` with its table written as short as can be.

    The table is at the end, and nine tenths of what would be the largest module of all.
    """
    values: dict[str, object] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            exec(compile(ast.Module([node], []), "", "exec"), values)  # noqa: S102  (a package that is pinned)
    head, found, _ = source.partition("\nHUFFMAN_TABLE = [")
    table = str(values["HUFFMAN_TABLE"]).replace(" ", "")
    return f"{head}\nHUFFMAN_TABLE = {table}\n" if found else source
