"""The walls of the house: who may import whom, and how long a module may get. The ranks are DESIGN.md's."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "gnar_lib").rglob("*.py"))

MAX_MODULE_LINES = 450  # what fits in one's head
MAX_ENTRY_LINES = 19

# Rank by rank, and within a rank row by row; a room imports only from what stands before it.
RANKS = (
    ("errors", "logger", "events", "patch"),
    ("config", "net", "eventlog", "notify", "lifecycle"),
    ("proto", "pio", "yamux"),
    ("auth", "proxy"),
    ("health", "relay", "client", "server"),
    ("demo", "about", "usage", "synopsis", "completion", "manpage", "cmd"),
    ("gnar",),
)
ROOMS = [room for rank in RANKS for room in rank]
APART = {("server", "client"), ("client", "server")}
ONLY = {"yamux": {"errors", "net"}}  # it knows nothing of gnar


def room_of(path: Path) -> str:
    """Return the room that a file stands in; the package's own __init__.py is in none."""
    parts = path.with_suffix("").parts
    if parts[0] == "gnar_lib":
        parts = parts[1:]
    return "" if parts == ("__init__",) else parts[0]


def imported_rooms(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and room of every import of our own, however it is spelled and however deep it stands."""
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
