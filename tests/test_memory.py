"""How much memory a process may use: what the machine and the control groups around the process allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gnar_lib import memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 4096 * MIB)
    memory.default_limit.cache_clear()
    yield
    memory.default_limit.cache_clear()


def groups(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Have the process be in these control groups, as /proc/self/cgroup tells."""
    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *args: text if str(path) == "/proc/self/cgroup" else read_text(path, *args),
    )


def limit(root: Path, folder: str, name: str, value: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / name).write_text(f"{value}\n")


def test_half_of_the_machine_where_nothing_limits_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups(monkeypatch, "0::/\n")
    limit(tmp_path, "", "memory.max", "max")
    assert memory.default_limit(tmp_path) == 2048 * MIB


@pytest.mark.parametrize(
    ("group", "folder"),
    [("/", ""), ("/a/b", "a/b"), ("/a/b", "a"), ("/a/b", "")],
    ids=["of the container", "of its own", "of the group around it", "of the root"],
)
def test_half_of_the_lowest_limit(
    group: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups(monkeypatch, f"0::{group}\n")
    limit(tmp_path, "a/b", "memory.max", "max")
    limit(tmp_path, folder, "memory.max", str(256 * MIB))
    assert memory.default_limit(tmp_path) == 128 * MIB


def test_first_version_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch, "5:cpu:/x\n4:memory:/docker/1\n")
    limit(tmp_path, "memory", "memory.limit_in_bytes", str(512 * MIB))
    assert memory.default_limit(tmp_path) == 256 * MIB


def test_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch, "")
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 0)
    assert memory.default_limit(tmp_path) == memory.FALLBACK_BYTES // 2


@pytest.mark.parametrize(("whole_mib", "peers_mib"), [(64, 16), (128, 80), (1024, 976)])
def test_what_is_left_for_peers(whole_mib: int, peers_mib: int) -> None:
    assert memory.for_peers(whole_mib * MIB) == peers_mib * MIB
