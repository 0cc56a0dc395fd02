"""The layout: which room may import which (docs/internals.md), and how long a module may be."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "gnar_lib").rglob("*.py"))

MAX_MODULE_LINES = 450  # lines
MAX_ENTRY_LINES = 19

# Rank by rank, and within a rank row by row; a room imports only from what stands before it.
RANKS = (
    ("errors", "writer", "logger", "events", "patch"),
    ("memory", "private", "config", "net", "eventlog", "eventdata", "notify", "lifecycle"),
    ("proto", "pio", "yamux", "http"),
    ("auth", "transport", "proxy", "inspect", "metrics", "terminal", "hooks", "admin", "visit", "checklist"),
    ("health", "relay", "client", "server", "top", "discover"),
    ("demo", "about", "usage", "synopsis", "completion", "manpage", "cmd"),
    ("gnar",),
)
ROOMS = [room for rank in RANKS for room in rank]
APART = {("server", "client"), ("client", "server")}
ONLY = {"yamux": {"errors", "net"}}  # yamux knows nothing of gnar


def room_of(path: Path) -> str:
    """Return the room that a file stands in; the package's own __init__.py is in none."""
    parts = path.with_suffix("").parts
    if parts[0] == "gnar_lib":
        parts = parts[1:]
    return "" if parts == ("__init__",) else parts[0]


def imported_rooms(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the room of every import from gnar_lib in a file, at whatever depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "gnar":
                yield node.lineno, "gnar"
            elif parts[0] == "gnar_lib" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


def imported_modules(source: str, path: Path) -> set[str]:
    """Return the modules of gnar_lib that a file imports, in functions and for type checkers as well.

    A name that is imported from a package counts as the package, unless the name is one of its modules.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else base for name in names}
    return {name for name in found if name.partition(".")[0] == "gnar_lib"}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, in order; an empty list if there is no circle."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports.get(name, ())):
            if found := search(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(imports) if (found := search(name, []))), [])


def violations(source: str, path: Path) -> list[str]:
    """Return what a file at this path (relative to the project) imports against the rules."""
    room = room_of(path)
    if room and room not in ROOMS:
        return [f"{path}: the room {room!r} has no rank in DESIGN.md"]
    allowed = set(ROOMS[: ROOMS.index(room)]) if room else set()
    allowed = {other for other in allowed if (room, other) not in APART} & ONLY.get(room, allowed)
    return [
        f"{path}:{line}: {room or 'gnar_lib'} must not import {other}"
        for line, other in imported_rooms(source, path)
        if other != room and other not in allowed
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_stands_before_it(path: Path) -> None:
    assert violations(path.read_text(), path.relative_to(ROOT)) == []


def test_entry_point_is_short_and_imports_only_what_stands_before_it() -> None:
    source = (ROOT / "gnar.py").read_text()
    assert len(source.splitlines()) <= MAX_ENTRY_LINES
    assert violations(source, Path("gnar.py")) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_opens_with_its_job_and_fits_in_ones_head(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), f"{path} does not say what its job is"
    assert len(source.splitlines()) <= MAX_MODULE_LINES


def passed_on(source: str) -> set[str]:
    """Return the names that a module offers as its own, and imports from gnar_lib."""
    offered: set[str] = set()
    imported: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gnar_lib"):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            offered = set(ast.literal_eval(node.value))
    return offered & imported


def test_a_name_is_imported_from_where_it_is_defined_or_from_its_package() -> None:
    found = {str(path): passed_on(path.read_text()) for path in MODULES if path.name != "__init__.py"}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = {}
    for path in MODULES:
        relative = path.relative_to(ROOT)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        imports[name] = imported_modules(path.read_text(), relative)
    assert circle(imports) == []


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_a_circle_is_found(imports: dict[str, set[str]], found: list[str]) -> None:
    assert circle(imports) == found


def test_imports_for_type_checkers_and_in_functions_count() -> None:
    source = """
from typing import TYPE_CHECKING
from gnar_lib import logger
from gnar_lib.net import Conn
if TYPE_CHECKING:
    from gnar_lib.yamux.session import Session
def later():
    from .stream import Stream
    import gevent
"""
    assert imported_modules(source, Path("gnar_lib/yamux/sender.py")) == {
        "gnar_lib.logger",
        "gnar_lib.net",
        "gnar_lib.yamux.session",
        "gnar_lib.yamux.stream",
    }


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("errors.py", "from gnar_lib import net"),
        ("errors.py", "import gnar_lib.logger"),
        ("config.py", "def load():\n    from gnar_lib.net import dial"),
        ("net.py", "from .cmd import main"),
        ("proto/msg.py", "from ..yamux import session"),
        ("proto/__init__.py", "from ..auth import login"),
        ("yamux/session.py", "from gnar_lib.proto import msg"),
        ("yamux/frame.py", "from gnar_lib import logger"),
        ("client/serve.py", "from ..server import serve"),
        ("server/serve.py", "from gnar_lib.client.connect import Control"),
        ("server/admin/page.py", "from ...client import control"),
        ("relay.py", "import gnar_lib.client.serve"),
        ("demo.py", "from . import cmd"),
        ("cmd.py", "import gnar"),
        ("__init__.py", "from gnar_lib.errors import GnarError"),
        ("surprise.py", ""),
        (
            "proto/msg.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gnar_lib.auth import Login",
        ),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(violations(source, Path("gnar_lib", path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "proto/msg.py",
            "from . import packet\nfrom .packet import Frame\nfrom ..errors import ProtocolError",
        ),
        ("net.py", "from gnar_lib import config, errors\nimport socket"),
        ("yamux/session.py", "from gnar_lib.errors import MuxError\nfrom gnar_lib import net"),
        ("server/admin/page.py", "from ..resources import Ports\nfrom ...relay import relay"),
        ("cmd.py", "from gnar_lib import __version__, demo"),
    ],
)
def test_an_import_from_below_is_allowed(path: str, source: str) -> None:
    assert violations(source, Path("gnar_lib", path)) == []
