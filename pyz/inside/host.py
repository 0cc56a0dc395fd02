"""Names this host, and says why gnar.pyz cannot run on it. Even Python 2.7 has to be able to run this."""

import os
import sys

TYPE_CHECKING = False  # Python 2.7 has no module typing
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple  # noqa: F401  (used in comments)

OLDEST = (3, 10)


def find_obstacle(holds):
    # type: (Any) -> str
    """Say why gnar cannot run on this host, and what to do; "" if it can. `holds` is the module."""
    versions = sorted(set(target.split("/")[1] for target in holds.TARGETS), key=_by_number)
    pythons = versions[0] if len(versions) == 1 else versions[0] + " to " + versions[-1]
    implementation = getattr(getattr(sys, "implementation", None), "name", "cpython")
    if implementation != "cpython" or sys.version_info < OLDEST:
        found = {"cpython": "Python", "pypy": "PyPy"}.get(implementation, implementation)
        advice = "install it and start it as python%s gnar.pyz" % versions[-1].split(" ")[0]
        return "this is %s %s, and gnar needs CPython %s: %s" % (found, _version(), pythons, advice)
    here = name(holds.PLATFORMS)
    if here not in holds.TARGETS:
        platforms = ", ".join(sorted(set(target.split("/")[0] for target in holds.TARGETS)))
        wanted = "the file is for CPython %s on %s" % (pythons, platforms)
        found = "this is CPython %s on %s" % tuple(reversed(here.split("/")))
        return "%s, and %s: make one for this host by ./build_zipapp.sh --host" % (found, wanted)
    library = glibc()
    if library and library < holds.GLIBC:
        found = "this host has glibc %d.%d, and gnar needs %d.%d" % (library + holds.GLIBC)
        return found + ": use a newer system, or a container with one"
    return ""


def name(platforms):
    # type: (Dict[str, str]) -> str
    """Return the name of this host, such as `linux-x86_64/3.12`; `platforms` is `holds.PLATFORMS`."""
    python, abi = _marks()
    if abi.endswith("-linux-gnu") and glibc() is None:  # CPython 3.10 has this mark with musl as well
        abi = abi[: -len("gnu")] + "musl"
    if abi == "darwin" or not abi:  # the mark lacks the processor, or there is none
        abi = (abi or sys.platform) + "-" + os.uname()[4]
    version = _version()
    if python and python != "cp" + version.replace(".", ""):  # such as cp313t, without the global lock
        version += " (" + python + ")"
    return platforms.get(abi, abi) + "/" + version


def glibc():
    # type: () -> Optional[Tuple[int, int]]
    """Return the version of this host's glibc, or None where the C library is another one."""
    try:
        library, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if library == "glibc" else None
    except (AttributeError, OSError, ValueError):
        return None


def _version():
    # type: () -> str
    return "%d.%d" % tuple(sys.version_info[:2])


def _by_number(version):
    # type: (str) -> List[int]
    return [int(part) for part in version.split(" ")[0].split(".")]


def _marks():
    # type: () -> Tuple[str, str]
    """Return the marks in names of compiled modules, such as `cp312` and `x86_64-linux-gnu`, or two ""."""
    from _imp import extension_suffixes

    # such as .cpython-312-x86_64-linux-gnu.so, .cpython-312-darwin.so, .cp312-win_amd64.pyd, or a bare .so
    suffix = (extension_suffixes() or ["."])[0]  # there is none in a Python that loads no modules
    python, _, abi = suffix.split(".")[1].replace("cpython-", "cp", 1).partition("-")
    return (python, abi) if abi else ("", "")
