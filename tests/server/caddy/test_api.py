"""The admin API as gnar speaks it: what is asked, and what is made of answers that are not Caddy's."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable

import pytest

from gnar_lib.errors import ConfigError
from gnar_lib.server.caddy import api as api_module
from gnar_lib.server.caddy.api import Api, CaddyError, ChangedError, Config, NotTakenError
from gnar_lib.server.caddy.keeper import MAX_TRIES, change
from tests.helpers.harness import LOOPBACK, Service, free_port

ETAG = '"/config/ 0a1b2c3d"'
IN_HEAD = (
    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nEtag: {ETAG}\r\nContent-Length: 5\r\n\r\nnull\n"
)
IN_TRAILER = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTrailer: ETag\r\nTransfer-Encoding: chunked\r\n\r\n"
    f"5\r\nnull\n\r\n0\r\nEtag: {ETAG}\r\n\r\n"
)


class Answers:
    """A service that answers one request after the other with these bytes, and keeps the requests."""

    def __init__(self, *answers: str | bytes) -> None:
        self.requests: list[str] = []
        self._answers = [each.encode() if isinstance(each, str) else each for each in answers]
        self._service = Service(self._serve)
        self.url = f"http://{LOOPBACK}:{self._service.port}"

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()

    def _serve(self, conn: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += conn.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        self.requests.append(f"{head.decode()}\r\n")
        left = int((re.findall(rb"content-length: (\d+)", head, re.IGNORECASE) or [0])[0]) - len(body)
        while left > 0:
            left -= len(conn.recv(left))
        conn.sendall(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])


def sink(conn: socket.socket) -> None:
    """Take everything, and say nothing."""
    while conn.recv(65536):
        pass


def answer(status: int, value: object = None, kind: str = "application/json") -> str:
    body = value if isinstance(value, str) else json.dumps(value)
    return f"HTTP/1.1 {status} so\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def refused(call: Callable[[], object], kind: type[CaddyError] = CaddyError) -> str:
    with pytest.raises(kind) as info:
        call()
    return str(info.value)


@pytest.mark.parametrize("text", [IN_HEAD, IN_TRAILER], ids=["head", "trailer"])
def test_the_etag_is_found_in_head_and_trailer_and_sent_with_what_is_written(text: str) -> None:
    with Answers(text, answer(200)) as caddy:
        api = Api(caddy.url)
        config = api.read()
        assert config == Config(None, ETAG)
        api.write("/config/apps", {"http": {}}, config.etag)
        api.close()
        read, write = caddy.requests
    host = caddy.url.removeprefix("http://")
    assert read.startswith("GET /config/ HTTP/1.1\r\n")
    assert f"\r\nhost: {host}\r\n" in read.lower()
    assert "origin" not in read.lower()
    assert write.startswith("POST /config/apps HTTP/1.1\r\n")
    assert f"\r\nIf-Match: {ETAG}\r\n" in write


def test_a_change_of_somebody_else_and_a_refusal_are_told_apart() -> None:
    error = {"error": "loading config: \x1b[31mno"}
    with Answers(answer(412, error), answer(400, error), answer(500, "so", "text/plain")) as caddy:
        api = Api(caddy.url)
        refused(lambda: api.write("/config/apps", {}, ETAG), ChangedError)
        text = refused(lambda: api.write("/config/apps", {}, ETAG), NotTakenError)
        assert text == r"Caddy does not take the configuration: loading config: \x1b[31mno"
        assert "the answer was 500" in refused(lambda: api.write("/config/apps", {}, ETAG), NotTakenError)


def test_an_api_that_hangs_up_while_it_is_replaced_is_asked_again() -> None:
    def wanted(_: object) -> dict[str, object]:
        return {"http": {}}

    with Answers(b"", IN_HEAD, b"", IN_HEAD, answer(200)) as caddy:
        api = Api(caddy.url)
        assert change(api, wanted)
        api.close()
        asked = [request.split()[0] for request in caddy.requests]
        assert asked == ["GET", "GET", "POST", "GET", "POST"]  # a write that got no answer may have been done
    with Answers(b"") as caddy:
        text = refused(lambda: change(Api(caddy.url), wanted))
        assert text == f"Caddy's admin API at {caddy.url} has closed the connection without an answer"
        assert len(caddy.requests) == MAX_TRIES


def test_an_origin_is_sent_only_where_it_is_wanted() -> None:
    refusal = answer(403, {"error": "required Origin header is missing or invalid"})
    with Answers(refusal, IN_HEAD) as caddy:
        api = Api(caddy.url)
        assert api.read() == Config(None, ETAG)
        api.read()
        api.close()
    host = caddy.url.removeprefix("http://")
    assert [f"\r\nOrigin: http://{host}\r\n" in request for request in caddy.requests] == [False, True, True]
    with Answers(refusal) as caddy:
        text = refused(Api(caddy.url).read)
        assert "refuses gnar (required Origin header is missing or invalid): add 127.0.0.1:" in text
        assert len(caddy.requests) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (answer(200, "<html>", "text/html"), "is not Caddy's admin API (the answer was 200, text/html)"),
        (answer(200, "{}", "text/html"), "is not Caddy's admin API"),
        (answer(200, [1]), "is not Caddy's admin API (the answer was 200, application/json)"),
        (answer(200, "{"), "is not Caddy's admin API"),
        (answer(200, "[" * 100_000), "is not Caddy's admin API"),
        (answer(404, {"error": "x"}), "is not Caddy's admin API (the answer was 404, application/json)"),
        (answer(200, {}), "sends no ETag: gnar needs Caddy 2.5 or a newer one"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP as Caddy does"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "does not speak HTTP as Caddy does"),
        (b"", "has closed the connection without an answer"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "does not speak HTTP as Caddy does"),
    ],
)
def test_what_is_not_caddys_api_is_said(text: str | bytes, said: str) -> None:
    with Answers(text) as caddy:
        assert said in refused(Api(caddy.url).read)


def test_an_answer_is_bounded_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    long = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b" " * (5 << 20)
    with Answers(long) as caddy:
        assert refused(Api(caddy.url).read) == "Caddy's configuration is longer than 4 MiB"
    monkeypatch.setattr(api_module, "READ_S", 0.1)
    with Service(sink) as silent:
        url = f"http://{LOOPBACK}:{silent.port}"
        assert refused(Api(url).read) == f"Caddy's admin API at {url} does not answer in time"


def test_an_api_that_is_not_there_is_said() -> None:
    url = f"http://{LOOPBACK}:{free_port()}"
    assert refused(Api(url).read).startswith(f"Caddy's admin API at {url} cannot be reached: ")
    assert "cannot be reached" in refused(Api("unix//nowhere/at/all.sock").read)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:2019", "https://127.0.0.1:2019", "http://", "http://a:b", "http://a:99999", "http://[::1",
     "http://a/config", "http://me@a", "http://a?b", "unix/run/caddy.sock", "unix/"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^caddy-api: "):
        Api(url)


@pytest.mark.parametrize("url", ["http://localhost", "http://[::1]:2019/", "unix//run/caddy/admin.sock"])
def test_an_address_of_either_form_is_taken(url: str) -> None:
    assert str(Api(url)) == f"Caddy's admin API at {url}"
