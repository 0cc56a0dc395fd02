"""What a service answers: methods, paths, errors, and the life of a connection."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from gnar_lib import logger
from gnar_lib.http import HTTPError, Request, Response, Routes
from tests.helpers.web import echo_routes, responses, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger("gnar")
    handlers = root.handlers
    yield
    root.handlers = handlers


def test_a_request_is_answered_with_length_date_and_the_fields_of_the_service() -> None:
    with serving(headers=[("X-Frame-Options", "DENY")]) as served:
        (got,) = responses(served.ask(b"GET / HTTP/1.1\r\n" + CLOSE))
    assert (got.status, got.body) == (200, b"home")
    assert got.headers["Content-Length"] == "4"
    assert got.headers["Date"].endswith(" GMT")
    assert got.headers["X-Frame-Options"] == "DENY"
    assert got.headers["Connection"] == "close"


def test_a_handler_sees_the_request_decoded() -> None:
    target = b"/show/a%2Fb%20%C3%A9?x=1&y=%26+&z="
    with serving() as served:
        (got,) = responses(served.ask(b"GET " + target + b" HTTP/1.1\r\nX-A: 1\r\nx-a: 2\r\n" + CLOSE))
    shown = json.loads(got.body)
    assert shown["name"] == "a/b é"
    assert shown["path"] == "/show/a/b é"
    assert shown["query"] == {"x": "1", "y": "& ", "z": ""}
    assert shown["headers"] == {"x-a": "1, 2", "host": "a", "connection": "close"}


def test_head_is_get_without_the_body() -> None:
    with serving() as served:
        data = served.ask(b"HEAD / HTTP/1.1\r\n" + CLOSE)
    (got,) = responses(data, ["HEAD"])
    assert got.headers["Content-Length"] == "4"
    assert data.endswith(b"\r\n\r\n")


def test_a_pipeline_is_answered_in_order() -> None:
    body = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    chunked = (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"
    )
    missing = b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving() as served:
        got = responses(served.ask(body + chunked + missing + body + b"GET / HTTP/1.1\r\n" + CLOSE))
    assert [each.body for each in got if each.status == 200] == [b"abc", b"def", b"abc", b"home"]
    assert [each.status for each in got] == [200, 200, 404, 200, 200]


def test_errors_are_problems_and_a_wrong_method_is_told_which_are_right() -> None:
    with serving() as served:
        (got,) = responses(served.ask(b"PUT /show/x HTTP/1.1\r\n" + CLOSE))
        (options,) = responses(served.ask(b"OPTIONS /show/x HTTP/1.1\r\n" + CLOSE))
    assert got.status == 405
    assert got.headers["Allow"] == options.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert got.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(got.body)
    assert (problem["title"], problem["status"]) == ("Method Not Allowed", 405)
    assert options.status == 204


def test_a_defect_in_a_handler_is_logged_and_answered() -> None:
    routes, log = echo_routes(), io.StringIO()

    def broken(_request: Request, name: str) -> Response:
        raise ZeroDivisionError(name)

    routes.add("GET", "/broken/{name}", broken)
    logger.setup(log)
    ask = b"GET /broken/%E2%80%AEx HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n" + CLOSE
    with serving(routes) as served:
        got = responses(served.ask(ask))
    assert [each.status for each in got] == [500, 200]
    told = log.getvalue()
    assert "ERROR http a defect in what answers GET /broken/\\u202ex" in told
    assert "ZeroDivisionError: \\u202ex" in told


def test_a_guard_comes_before_everything_else() -> None:
    def guard(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer x":
            raise HTTPError(401, "who are you?", [("WWW-Authenticate", "Bearer")])

    post = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + bytes(60000)
    with serving(Routes(), guard=guard) as served:
        (got,) = responses(served.ask(post))
        (allowed,) = responses(served.ask(b"GET / HTTP/1.1\r\nAuthorization: Bearer x\r\n" + CLOSE))
    assert got.status == 401
    assert got.headers["WWW-Authenticate"] == "Bearer"
    assert got.headers["Connection"] == "close"  # since the body is unread
    assert allowed.status == 404


def test_what_a_guard_finds_out_reaches_the_handler() -> None:
    def guard(request: Request) -> None:
        request.context["who"] = request.headers["x-who"]

    routes = Routes()
    routes.add("POST", "/", lambda request: Response(200, request.context["who"].encode() + request.body))
    with serving(routes, guard=guard) as served:
        ask = b"POST / HTTP/1.1\r\nHost: a\r\nX-Who: %b\r\nContent-Length: 1\r\n\r\n!"
        got = responses(served.ask(ask % b"me" + ask % b"you", end=True))
    assert [each.body for each in got] == [b"me!", b"you!"]


def test_a_defect_in_a_guard_lets_nobody_in() -> None:
    def guard(request: Request) -> None:
        raise KeyError(request.path)

    logger.setup(io.StringIO())
    with serving(guard=guard) as served:
        (got,) = responses(served.ask(b"GET / HTTP/1.1\r\n" + CLOSE))
    assert got.status == 500


@pytest.mark.parametrize(
    "broken",
    [
        Response(200, b"x", headers=[("X", "a\r\nSet-Cookie: forged=1")]),
        Response(200, b"x", headers=[("X", "\u2028")]),
        Response(99, b"x"),
        Response(100, b"x"),
    ],
    ids=["line break", "not Latin", "status", "informational"],
)
def test_an_answer_that_cannot_be_sent_is_a_defect(broken: Response) -> None:
    routes, log = echo_routes(), io.StringIO()
    routes.add("GET", "/broken", lambda _request: broken)
    logger.setup(log)
    with serving(routes) as served:
        data = served.ask(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [got.status for got in responses(data)] == [500]
    assert b"forged" not in data
    assert "a defect in an answer" in log.getvalue()


def test_an_answer_replaces_what_is_always_added() -> None:
    routes = Routes()
    routes.add("GET", "/", lambda _request: Response(200, headers=[("cache-control", "max-age=1")]))
    with serving(routes, headers=[("Cache-Control", "no-store"), ("X-A", "1")]) as served:
        (got,) = responses(served.ask(b"GET / HTTP/1.1\r\n" + CLOSE))
    assert got.headers.get_all("Cache-Control") == ["max-age=1"]
    assert got.headers["X-A"] == "1"
    assert got.headers["Content-Length"] == "0"
    assert "Content-Type" not in got.headers


def test_a_path_without_parameters_goes_first() -> None:
    routes = Routes()
    routes.add("GET", "/{a}/{b}", lambda _request, a, b: Response(200, f"{a} {b}".encode()))
    routes.add("GET", "/x/{b}", lambda _request, b: Response(200, f"x with {b}".encode()))
    routes.add("GET", "/x/y", lambda _request: Response(200, b"x y itself"))
    routes.add("DELETE", "/x/y", lambda _request: Response(204))
    with serving(routes) as served:
        paths = (b"/x/y", b"/x/z", b"/w/y", b"/x/", b"/x", b"//")
        got = responses(
            served.ask(b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % at for at in paths), end=True)
        )
        (deleted,) = responses(served.ask(b"DELETE /x/y HTTP/1.1\r\n" + CLOSE))
    assert [each.body for each in got[:3]] == [b"x y itself", b"x with z", b"w y"]
    assert [each.status for each in got[3:]] == [404, 404, 404]
    assert (deleted.status, deleted.body) == (204, b"")
    assert "Content-Length" not in deleted.headers


JSON = (
    ("application/json", b'{"port": 9000}', 200),
    ("Application/JSON; charset=utf-8", b'{"port": 9000}', 200),
    ("application/json", b'{"port": ', 400),
    ("application/json", b"[" * 60_000, 400),
    ("application/json", b'"\xff"', 400),
    ("application/json", b"", 400),
    ("application/x-www-form-urlencoded", b'{"port": 9000}', 415),
    ("text/plain", b'{"port": 9000}', 415),
    ("", b'{"port": 9000}', 415),
)


def test_json_of_a_request_is_what_is_said_to_be_json() -> None:
    routes = Routes()
    routes.add("POST", "/", lambda request: Response.json(request.json()))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
    asks = [head % (content_type.encode(), len(body), body) for content_type, body, _ in JSON]
    with serving(routes) as served:
        got = responses(served.ask(b"".join(asks), end=True))
    assert [each.status for each in got] == [status for _, _, status in JSON]
    assert got[0].body == got[1].body == b'{"port":9000}'
