"""A program that everybody has, against the service."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import gevent
import pytest

from gnar_lib.http import EventStream, Send
from tests.helpers.web import curl, echo_routes, serving

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")


def test_requests_share_a_connection() -> None:
    told = ["-w", "%{http_code} %{num_connects}\\n", "-o", os.devnull]
    with serving() as served:
        again = ["--next", "-sS", *told]
        shown = curl(served, *told, "@/", *again, "-I", "@/", *again, "@/none", *again, "@/")
    assert shown.split("\n") == ["200 1", "200 0", "404 0", "200 0", ""]


def test_bodies_are_posted_by_length_in_chunks_and_after_leave(tmp_path: Path) -> None:
    body = tmp_path / "body"
    post = ["-T", str(body), "-X", "POST", "@/echo"]
    with serving() as served:
        body.write_bytes(b"x" * 50_000)
        for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"], ["-0"]):
            assert curl(served, *post, *extra) == "x" * 50_000
        body.write_bytes(b"x" * 500_000)
        assert curl(served, *post, "-o", os.devnull, "-w", "%{http_code}") == "413"


def test_the_target_arrives() -> None:
    with serving() as served:
        shown = json.loads(curl(served, "-G", "--data-urlencode", "q=ä &", "@/show/x%20y"))
    assert (shown["name"], shown["query"]) == ("x y", {"q": "ä &"})


@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_events_arrive_as_they_happen(version: str) -> None:
    def run(send: Send) -> None:
        for number in range(3):
            send("n", str(number))
            gevent.sleep(0.01)

    routes = echo_routes()
    routes.add("GET", "/events", lambda _request: EventStream(run))
    with serving(routes) as served:
        shown = curl(served, "-N", version, "@/events")
    assert shown == "".join(f"event: n\ndata: {number}\n\n" for number in range(3))
