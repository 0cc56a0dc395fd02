"""gnar as a package: the content of source package and wheel, and the command that pipx, uv and pip install.

The packages are built with the setuptools of the environment of the tests (`--no-isolation`): to install
setuptools for each build would take seconds and the network. The slow tests build isolated, as people do.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from trove_classifiers import classifiers

from gnar_lib import __version__, cmd, completion, manpage
from tests.helpers.harness import LOOPBACK, Tunnel, Tunnels, ask, echo, free_port, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
STEM = f"gnar-{__version__}"
SHARED = {
    "share/man/man1/gnar.1",
    "share/bash-completion/completions/gnar",
    "share/zsh/site-functions/_gnar",
    "share/fish/vendor_completions.d/gnar.fish",
}
LIBRARY = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "gnar_lib").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
BACKEND = ("pyz/__init__.py", "pyz/wheel.py")
NOT_PACKED = (
    "pyz/__main__.py",
    "build/lib/gnar_lib/old.py",
    "gnar_lib/__pycache__/x.pyc",
    "gnar.pyz",
    "share/x",
)


def run(*argv: str | Path, env: dict[str, str] | None = None, folder: Path = ROOT) -> str:
    """Run a command, check that it succeeds, and return what it prints."""
    done = subprocess.run(
        argv, cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{argv}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources, with files that do not belong into a package."""
    copy = tmp_path_factory.mktemp("package") / "tree"
    ignored = shutil.ignore_patterns("build", ".*", "__pycache__", "*.pyz", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name in NOT_PACKED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    return copy


@pytest.fixture(scope="module")
def packages(tree: Path) -> Path:
    """Return a folder with the source package, and with the wheel that is built from the source package."""
    out = tree.parent / "packages"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    return out


def test_wheel_holds_the_program_and_what_the_system_looks_for(packages: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    assert wheel.name == f"{STEM}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{STEM}.dist-info/")}
        assert f"{STEM}.dist-info/licenses/LICENSE" in archive.namelist()
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{STEM}.dist-info/entry_points.txt").decode())
    assert names == {"gnar.py", *LIBRARY, *(f"{STEM}.data/data/{name}" for name in SHARED)}
    assert "gnar_lib/py.typed" in names
    assert {name: dict(scripts[name]) for name in scripts.sections()} == {
        "console_scripts": {"gnar": "gnar:main"}
    }


def test_source_package_holds_what_a_wheel_is_built_from_and_no_more(packages: Path) -> None:
    (source,) = packages.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {member.name.removeprefix(f"{STEM}/") for member in archive if member.isfile()}
    made = {name for name in names if name.startswith("gnar.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    read = {"README.md", "CHANGELOG.md", "LICENSE"}
    assert names - made == {"gnar.py", "pyproject.toml", "MANIFEST.in", *BACKEND, *read, *LIBRARY, *SHARED}


def test_module_that_was_deleted_since_the_last_build_is_not_packed_again(tree: Path, tmp_path: Path) -> None:
    left = tree / "build" / "lib" / "gnar_lib" / "old.py"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.touch()
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, tree)
    run(*command)  # as `pip install .` does, from the sources and not from a source package
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        assert "gnar_lib/old.py" not in archive.namelist()


def test_metadata_is_what_an_index_takes(packages: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *packages.iterdir())
    with zipfile.ZipFile(next(packages.glob("*.whl"))) as archive:
        metadata = message_from_bytes(archive.read(f"{STEM}.dist-info/METADATA"))
    given = metadata.get_all("Classifier") or []
    assert set(given) <= classifiers
    assert len(set(given)) == len(given)
    assert not [name for name in given if name.startswith("License ::")]  # License-Expression has it
    assert metadata["License-Expression"] == "MIT"
    versions = [
        name.rpartition(" ")[2] for name in given if name.startswith("Programming Language :: Python :: 3.")
    ]
    assert versions == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert metadata["Requires-Python"] == f">={versions[0]}"


def test_files_made_from_the_help_are_those_of_today() -> None:
    program = cmd._program()
    made = {
        "share/man/man1/gnar.1": manpage.page(program),
        "share/bash-completion/completions/gnar": completion.script("bash", program),
        "share/zsh/site-functions/_gnar": completion.script("zsh", program),
        "share/fish/vendor_completions.d/gnar.fish": completion.script("fish", program),
    }
    assert {*made} == SHARED
    old = [name for name, text in made.items() if (ROOT / name).read_text() != text]
    assert not old, "run share/renew.sh"


def test_one_command_renews_the_files_made_from_the_help(tree: Path, tmp_path: Path) -> None:
    for name in ("gnar_lib", "share"):
        shutil.copytree(tree / name, tmp_path / name)
    shutil.copy(tree / "gnar.py", tmp_path)
    for name in SHARED:
        (tmp_path / name).write_text("old")
    run(tmp_path / "share" / "renew.sh", env={"PYTHON": sys.executable})
    for name in SHARED:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


# ---- installed ---------------------------------------------------------------------------------------------


def environment(folder: Path, *packages: str | Path) -> Path:
    """Make an environment with packages, and return the folder of its commands."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages)
    return folder / "bin"


def install_by_pip(tree: Path, folder: Path) -> Path:
    """Install with pip into a new environment, and return the folder above bin/ and share/."""
    environment(folder, tree)
    return folder


def install_by_pipx(tree: Path, folder: Path) -> Path:
    """Install with the pipx of the system, and return the folder above bin/ and share/."""
    env = {"HOME": str(folder / "home"), "PIPX_HOME": str(folder), "PIPX_BIN_DIR": str(folder / "bin")}
    run("pipx", "install", "--python", sys.executable, tree, env=env)
    assert (folder / "bin" / "gnar").exists()
    return folder / "venvs" / "gnar"


def install_by_uv(tree: Path, folder: Path) -> Path:
    """Install with uv, and return the folder above bin/ and share/."""
    uv = environment(folder / "uv", "uv") / "uv"
    places = {"UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "UV_CACHE_DIR": "cache"}
    env = {name: str(folder / place) for name, place in places.items()}
    run(uv, "tool", "install", "--no-python-downloads", "--python", sys.executable, tree, env=env)
    assert (folder / "bin" / "gnar").exists()
    return folder / "tools" / "gnar"


@pytest.mark.slow
@pytest.mark.parametrize("install", [install_by_pip, install_by_pipx, install_by_uv])
def test_installed_command_works_as_the_one_file_does(
    tree: Path, tmp_path: Path, install: Callable[[Path, Path], Path]
) -> None:
    place = install(tree, tmp_path / "installed")
    assert {name for name in SHARED if (place / name).is_file()} == SHARED
    gnar = place / "bin" / "gnar"
    assert run(gnar, "--version") == f"gnar {__version__}\n"
    assert run(gnar, "man") == (place / "share/man/man1/gnar.1").read_text()
    with Tunnels(gnar, tmp_path / "run", ()) as tunnels:
        tunnel = Tunnel(tunnels, echo)
        assert ask(tunnel.port, b"through the tunnel") == b"through the tunnel"
        port = free_port()
        relay = tunnels.run("relay", f"tcp:{LOOPBACK}:{port}", f"tcp:{LOOPBACK}:{tunnel.port}")
        relay.wait_log("relay")
        assert ask(port, b"through both") == b"through both"
        demo = tunnels.run("demo")
        wait_until(lambda: "It works." in demo.out, f"the demo works: {demo.log}")
        assert [process.stop() for process in (demo, relay, tunnel.client, tunnel.server)] == [0, 0, 0, 0]
