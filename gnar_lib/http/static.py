"""Serves files out of a package, also one in a zip archive; knows no conn."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePosixPath

from gnar_lib.http.message import HTTPError, Request, Response

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
_ANY_TYPE = "application/octet-stream"


class StaticFiles:
    """The files of one folder of a package, or of the same folder of several, read once.

    Folders in the folder do not count. Of a name that several packages have, the first package's file counts.

    `serve` is a handler for a path with the parameter `name`; a name is looked up and never made a path.
    """

    def __init__(self, *packages: str, folder: str) -> None:
        entries = [each for package in reversed(packages) for each in (files(package) / folder).iterdir()]
        self._files = {each.name: each.read_bytes() for each in entries if each.is_file()}
        self._tags = {
            name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in self._files.items()
        }

    def serve(self, request: Request, name: str) -> Response:
        """Return a file, or 304 if the reader has this version of it. Raises `HTTPError` 404."""
        data = self._files.get(name)
        if data is None:
            raise HTTPError(404, "there is no such file")
        tag = self._tags[name]
        # The reader asks each time whether its version is the present one: after an update nothing is stale.
        headers = [("ETag", tag), ("Cache-Control", "no-cache"), ("X-Content-Type-Options", "nosniff")]
        if _names(request.headers.get("if-none-match", ""), tag):
            return Response(304, headers=headers)
        return Response(200, data, _TYPES.get(PurePosixPath(name).suffix, _ANY_TYPE), headers)


def _names(condition: str, tag: str) -> bool:
    """Tell whether If-None-Match names a tag; weak and strong ones are the same here (RFC 9110, 13.1.2)."""
    named = [each.strip().removeprefix("W/") for each in condition.split(",")]
    return "*" in named or tag in named
