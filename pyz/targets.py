"""The hosts that gnar.pyz is made for: platforms, versions of Python, and the name of each pair of these."""

from __future__ import annotations

from dataclasses import dataclass

PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
GLIBC = (2, 28)  # the oldest version that wheels for manylinux_2_28 run with
MUSL = (1, 2, 4)  # the first that loads the libstdc++ of greenlet's wheels; older versions crash (DT_RELR)


@dataclass(frozen=True, slots=True)
class Platform:
    """A system, a processor and a C library that compiled packages exist for."""

    name: str
    uv: str  # its name for `uv --python-platform`
    abi: str  # the mark in the names of compiled modules; on macOS with the processor behind it
    system: str  # the value of `sys_platform` in markers of requirements
    machine: str  # the value of `platform_machine` there


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
        """The version of Python, such as `3.12`."""
        return "{}.{}".format(*self.python)

    def __str__(self) -> str:
        """Return the name, such as `linux-x86_64/3.12`; `inside.host.name` returns the same there."""
        return f"{self.platform.name}/{self.version}"


def targets(names: list[str] | None = None) -> list[Target]:
    """Return the targets of the platforms with these names, or of all platforms.

    Raises ValueError, with a text for a person, when a name is not that of a platform.
    """
    known = {platform.name: platform for platform in PLATFORMS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown platform {name!r}; known are {', '.join(known)}")
    return [Target(known[name], python) for name in names or known for python in PYTHONS]
