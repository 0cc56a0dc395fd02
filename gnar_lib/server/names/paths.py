"""What services make of a path, whose proxy is looked for; knows no names."""

from __future__ import annotations

import re
from urllib.parse import unquote

_ODD = re.compile(r"%|//|/\.|;|\\")
_PARAMETERS = re.compile(r";[^/]*")  # which Java's servers leave out of a path
_SLASHES = re.compile(r"/+")


def is_odd(path: str) -> bool:
    """Tell whether services may take a path for another one."""
    return _ODD.search(path) is not None


def plain_path(path: str) -> str:
    """Return the path for which services take this one: without escapes, repeated slashes and dots.

    Otherwise users could reach `/admin` by the proxy for all other paths, whose service may be the same, and
    which lets everybody in.
    """
    text = unquote(_PARAMETERS.sub("", path), "latin-1").replace("\\", "/")
    found: list[str] = []
    for segment in _SLASHES.sub("/", text).split("/")[1:]:
        if segment == "..":
            del found[-1:]
        elif segment != ".":
            found.append(segment)
    return "/" + "/".join(found)
