"""How much memory this process may use: half of what the container, or the machine, has."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import suppress
from pathlib import Path

FALLBACK_BYTES = 1 << 30  # where nobody can tell
SHARE = 2  # this process takes one part of so many: the kernel's buffers for its sockets need some, too
BASE_BYTES = 48 << 20  # what a process needs that has no peers

_CGROUPS = Path("/sys/fs/cgroup")


@functools.cache
def default_limit(root: Path = _CGROUPS) -> int:
    """Return how many bytes this process should use at most; `root` is where Linux shows control groups."""
    limits = [limit for limit in (_machine_bytes(), *_cgroup_limits(root)) if limit]
    return min(limits, default=FALLBACK_BYTES) // SHARE


def for_peers(limit_bytes: int) -> int:
    """Return how much of a process's limit what its peers cause may take."""
    return max(limit_bytes - BASE_BYTES, limit_bytes // 4)


def _machine_bytes() -> int:
    """Return the memory of the machine; 0 where nobody can tell."""
    count = 0
    if sys.platform != "win32":
        with suppress(OSError, ValueError):  # a system that lacks the names
            count = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return count


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of this process's control group and of those around it, of both versions."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root / controllers, "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = base / path.lstrip("/")
        # In a container, its own group is mounted at the root.
        for folder in [group, *group.parents] if group.is_relative_to(base) else [base]:
            found.append(_read_limit(folder / name))
            if folder == base:
                break
    return [limit for limit in found if limit]


def _read_limit(file: Path) -> int:
    """Return the number in a file; 0 if there is none, as in `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
