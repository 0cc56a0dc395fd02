"""Files out of a package, from a folder and from a zip archive."""

from __future__ import annotations

import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from gnar_lib.http import Routes, StaticFiles
from tests.helpers.web import responses, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = {
    "a.html": (b"<p>", "text/html; charset=utf-8"),
    "a.css": (b"p {}", "text/css; charset=utf-8"),
    "a.js": (b"1;", "text/javascript; charset=utf-8"),
    "a.svg": (b"<svg/>", "image/svg+xml"),
    "a.unknown": (b"\0", "application/octet-stream"),
    "empty.txt": (b"", None),
    "LICENSE": (b"free", "application/octet-stream"),
}


@pytest.fixture(params=["folder", "zip"])
def package(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a package with files, in a folder or in an archive."""
    name = f"package_in_{request.param}"
    contents = {f"{name}/__init__.py": b"secret = 1"} | {f"{name}/page/{at}": FILES[at][0] for at in FILES}
    contents[f"{name}/page/below/a.txt"] = b"below"
    where = tmp_path / "there"
    if request.param == "zip":
        with zipfile.ZipFile(where, "w") as archive:
            for path, data in contents.items():
                archive.writestr(path, data)
    else:
        for path, data in contents.items():
            (where / path).parent.mkdir(parents=True, exist_ok=True)
            (where / path).write_bytes(data)
    monkeypatch.syspath_prepend(str(where))
    yield name
    for module in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[module]


def ask(target: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET /static/{target} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def routes_of(package: str) -> Routes:
    routes = Routes()
    routes.add("GET", "/static/{name}", StaticFiles(package, folder="page").serve)
    return routes


def test_files_have_their_types_and_are_not_guessed(package: str) -> None:
    with serving(routes_of(package)) as served:
        got = responses(served.ask(b"".join(map(ask, FILES)), end=True))
    for each, (data, content_type) in zip(got, FILES.values(), strict=True):
        assert (each.status, each.body, each.headers["Content-Type"]) == (200, data, content_type)
        assert each.headers["X-Content-Type-Options"] == "nosniff"
        assert each.headers["Cache-Control"] == "no-cache"


def test_a_file_that_the_reader_has_is_not_sent_again(package: str) -> None:
    with serving(routes_of(package)) as served:
        (first,) = responses(served.ask(ask("a.js"), end=True))
        tag = first.headers["ETag"]
        fields = [tag, f"W/{tag}", f'"x", {tag}', "*", '"x"', tag.strip('"')]
        asks = [ask("a.js", f"If-None-Match: {field}") for field in fields]
        got = responses(served.ask(b"".join(asks), end=True))
        (other,) = responses(served.ask(ask("a.css"), end=True))
    assert [each.status for each in got] == [304, 304, 304, 304, 200, 200]
    assert got[0].headers["ETag"] == tag
    assert "Content-Length" not in got[0].headers
    assert other.headers["ETag"] != tag


ELSEWHERE = (
    *(
        "none.txt",
        "",
        "below",
        "below/a.txt",
        "below%2Fa.txt",
        "../__init__.py",
        "..%2F__init__.py",
        ".",
        "..",
    ),
    *("%2e%2e%2f__init__.py", "..%5C__init__.py", "%2Fetc%2Fpasswd", "a.html/", "A.HTML", ".", ".."),
)


def test_nothing_else_is_served(package: str) -> None:
    with serving(routes_of(package)) as served:
        got = responses(served.ask(b"".join(map(ask, ELSEWHERE)), end=True))
    assert [each.status for each in got] == [404] * len(ELSEWHERE)
