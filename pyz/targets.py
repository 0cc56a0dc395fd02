"""Which hosts gnar.pyz is made for: the platforms, the Pythons, and the name of each pair."""

from __future__ import annotations

from dataclasses import dataclass

PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
GLIBC = (2, 28)  # the oldest that the wheels for manylinux_2_28 run with
MUSL = (1, 2, 4)  # the first that loads the libstdc++ of greenlet's wheels; older ones crash (DT_RELR)


@dataclass(frozen=True, slots=True)
class Platform:
    """A system, a processor and a C library that compiled packages exist for.

    `abi` is what CPython there marks its compiled modules with, on macOS with the processor behind it.
    Requirements differ by `sys_platform` and `platform_machine`, which are `system` and `machine` there.
    """

    name: str
    uv: str  # what `uv --python-platform` calls it
    abi: str
    system: str
    machine: str


PLATFORMS = (
    Platform("linux-x86_64", "x86_64-manylinux_2_28", "x86_64-linux-gnu", "linux", "x86_64"),
    Platform("linux-aarch64", "aarch64-manylinux_2_28", "aarch64-linux-gnu", "linux", "aarch64"),
    Platform("linux-x86_64-musl", "x86_64-unknown-linux-musl", "x86_64-linux-musl", "linux", "x86_64"),
    Platform("linux-aarch64-musl", "aarch64-unknown-linux-musl", "aarch64-linux-musl", "linux", "aarch64"),
    Platform("macos-x86_64", "x86_64-apple-darwin", "darwin-x86_64", "darwin", "x86_64"),
    Platform("macos-arm64", "aarch64-apple-darwin", "darwin-arm64", "darwin", "arm64"),
    Platform("windows-x86_64", "x86_64-pc-windows-msvc", "win_amd64", "win32", "AMD64"),
)
NAMES = {platform.abi: platform.name for platform in PLATFORMS}


@dataclass(frozen=True, slots=True)
class Target:
    """One Python on one platform."""

    platform: Platform
    python: tuple[int, int]

    @property
    def version(self) -> str:
        """Its Python's version, such as `3.12`."""
        return "{}.{}".format(*self.python)

    def __str__(self) -> str:
        """Return its name, which is also what the start-up of gnar.pyz finds out of its host."""
        return f"{self.platform.name}/{self.version}"


def targets(names: list[str] | None = None) -> list[Target]:
    """Return the targets of some platforms, or of all.

    Raises ValueError, in words for a person, for a name that is none of a platform.
    """
    known = {platform.name: platform for platform in PLATFORMS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown platform {name!r}; known are {', '.join(known)}")
    return [Target(known[name], python) for name in names or known for python in PYTHONS]
