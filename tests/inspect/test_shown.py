"""What becomes of an exchange: a command of curl, an archive, a line of the log, a body that is read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gnar_lib.errors import StorageError
from gnar_lib.inspect import (
    Body,
    Exchange,
    ExchangeLog,
    Inspector,
    Origin,
    curl_of,
    decoded,
    har_text,
    is_secret,
)
from gnar_lib.inspect import har as har_module
from tests.helpers.exchanges import Said, hear

OK = b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=s3cret; Path=/\r\nContent-Length: 2\r\n\r\nok"
SECRETS = (
    b"Authorization: Bearer s3cret\r\nCookie: a=s3cret; b=s3cret\r\nProxy-Authorization: Basic s3cret\r\n"
    b"X-Api-Key: s3cret\r\nX-Auth-Token: s3cret\r\nX-Vault-Token: s3cret\r\n"
)


def asked(head: bytes, body: bytes = b"", answer: bytes = OK, *, is_forwarded: bool = False) -> Exchange:
    """Return the exchange of a request that is given without its end."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    said: list[Said] = [("user", head + length + b"\r\n" + body), ("service", answer)]
    (found,) = hear(said, tells_users=is_forwarded)
    return found


# ---- curl --------------------------------------------------------------------------------------------------


class Recorder(BaseHTTPRequestHandler):
    """Keeps what it is asked."""

    got: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.got.append((self.command, self.path, dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


for _method in ("GET", "POST", "PUT", "DELETE", "HEAD"):
    setattr(Recorder, f"do_{_method}", Recorder.handle_any)


@pytest.fixture(scope="module")
def recorder() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


NASTY = b"""it's $HOME "quoted" `id` \\ & ; | \n!x \xc3\xa4 @file"""


@pytest.mark.parametrize(
    ("line", "fields", "body"),
    [
        (b"GET /a/../b?x=[1]&y={2}&z='$(id)' HTTP/1.1", b"X-A: it's $HOME `id`\r\nX-Empty:\r\n", b""),
        (b"POST / HTTP/1.1", b"Content-Type: text/plain\r\nUser-Agent: test\r\n", NASTY),
        (b"POST / HTTP/1.1", b"Accept: */*\r\n", b"@/etc/passwd"),
        (b"PUT /`id` HTTP/1.1", b"", bytes(range(256))),
        (b"HEAD / HTTP/1.1", b"", b""),
        (b"DELETE /;id HTTP/1.1", b"", b""),
    ],
)
def test_the_shell_and_curl_send_the_same_request_again(
    recorder: HTTPServer, line: bytes, fields: bytes, body: bytes
) -> None:
    host = b"Host: 127.0.0.1:%d\r\n" % recorder.server_port
    command = curl_of(asked(line + b"\r\n" + host + fields, body))
    Recorder.got.clear()
    subprocess.run(["sh", "-c", command.text], check=True, capture_output=True, timeout=20)
    ((method, target, got, got_body),) = Recorder.got
    assert (f"{method} {target} HTTP/1.1".encode("latin-1"), got_body) == (line, body)
    sent = dict(
        each.split(": ", 1) for each in (host + fields).decode().replace(":\r\n", ": \r\n").splitlines()
    )
    assert {name: value for name, value in got.items() if name != "Content-Length"} == sent
    assert command.notes == ()


def test_credentials_are_in_the_command_only_if_they_are_asked_for() -> None:
    exchange = asked(b"GET / HTTP/1.1\r\nHost: x\r\nX-Plain: plain\r\n" + SECRETS)
    without = curl_of(exchange)
    assert "s3cret" not in without.text
    assert "X-Plain: plain" in without.text
    (note,) = without.notes
    assert "Authorization, Cookie, Proxy-Authorization, X-Api-Key, X-Auth-Token, X-Vault-Token" in note
    assert curl_of(exchange, with_secrets=True).text.count("s3cret") == 7


def test_what_is_missing_from_the_command_is_said() -> None:
    exchange = asked(b"POST / HTTP/1.1\r\nHost: x\r\nX-Bell: a\x07\r\n", bytes(2000))
    assert curl_of(exchange).notes == (
        "left out, since a shell cannot take it: X-Bell",
        "the body has 2000 bytes, of which 1000 were kept",
    )


def test_a_method_is_quoted_for_the_shell() -> None:
    assert "--request '`id`'" in curl_of(asked(b"`id` / HTTP/1.1\r\nHost: x\r\n")).text


def test_the_url_is_that_of_the_user_where_somebody_tells_it() -> None:
    exchange = asked(b"GET /a HTTP/1.1\r\nHost: blog.example.com\r\nX-Forwarded-Proto: https\r\n")
    assert " https://blog.example.com/a " in curl_of(exchange).text


def test_what_the_server_has_put_into_a_request_is_not_sent_to_it_again() -> None:
    told = b"X-Forwarded-Host: blog.example.com\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 192.0.2.1\r\n"
    head = b"GET /a HTTP/1.1\r\nHost: localhost:3000\r\n" + told
    command = curl_of(asked(head, is_forwarded=True)).text
    assert " https://blog.example.com/a " in command
    assert "X-Forwarded" not in command
    command = curl_of(asked(head)).text
    assert " https://localhost:3000/a " in command
    assert "X-Forwarded-For: 192.0.2.1" in command


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[
            (each, True)
            for each in ("Cookie", "SET-COOKIE", "x-api-key", "ApiKey", "X_Auth_Token", "X-Session-Id")
        ],
        *[(each, True) for each in ("Client-Secret", "X-Hub-Signature-256", "Private-Token", "X-Password")],
        *[(each, False) for each in ("Host", "Accept", "ETag", "Sec-WebSocket-Key", "X-Author", "Tokenizer")],
        *[(each, False) for each in ("WWW-Authenticate", "Content-Type", "X-Request-Id")],
    ],
)
def test_names_of_fields_that_hold_secrets(name: str, secret: bool) -> None:
    assert is_secret(name.encode()) is secret


# ---- archives and the log ----------------------------------------------------------------------------------


def har(exchanges: list[Exchange]) -> Any:
    return json.loads(har_text(exchanges))["log"]


def test_an_archive_has_what_others_read_and_no_secret() -> None:
    answer = OK.replace(
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Type: text/html\r\n"
    )
    head = b"POST /a?x=1&y=%20 HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    text = har_text([asked(head + SECRETS, b"p=q+r", answer), asked(b"GET / HTTP/1.1\r\n")])
    assert "s3cret" not in text
    log = json.loads(text)["log"]
    assert (log["version"], log["creator"]["name"], len(log["entries"])) == ("1.2", "gnar", 2)
    entry = log["entries"][0]
    assert entry.keys() >= {"startedDateTime", "time", "request", "response", "cache", "timings"}
    asking, answered = entry["request"], entry["response"]
    assert (asking["method"], asking["url"], asking["httpVersion"]) == (
        "POST",
        "http://x/a?x=1&y=%20",
        "HTTP/1.1",
    )
    assert asking["queryString"] == [{"name": "x", "value": "1"}, {"name": "y", "value": " "}]
    assert asking["postData"]["params"] == [{"name": "p", "value": "q r"}]
    assert asking["cookies"] == [{"name": "a", "value": "***"}, {"name": "b", "value": "***"}]
    assert (answered["status"], answered["redirectURL"]) == (302, "/b")
    assert answered["content"] == {"size": 2, "mimeType": "text/html", "text": "ok"}
    assert sum(entry["timings"].values()) == pytest.approx(entry["time"], abs=0.01)


def test_an_archive_that_becomes_too_long_has_no_further_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(har_module, "MAX_HAR_CHARACTERS", 100)
    first, second = har([asked(b"GET / HTTP/1.1\r\n")] * 2)["entries"]
    assert first["response"]["content"]["text"] == "ok"
    assert "text" not in second["response"]["content"]
    assert second["response"]["content"]["comment"].startswith("left out")


def test_each_exchange_is_a_line_of_the_log_without_secrets(tmp_path: Path) -> None:
    path = tmp_path / "requests.log"
    inspector = Inspector(0, ExchangeLog(str(path)))
    for _ in range(2):
        conversation = inspector.conversation(Origin("web", "192.0.2.1:1"))
        conversation.requested(b"GET /a?b HTTP/1.1\r\n" + SECRETS + b"\r\n")
        conversation.answered(OK)
    inspector.close()
    text = path.read_text()
    assert "s3cret" not in text
    first, second = map(json.loads, text.splitlines())
    assert [first["id"], second["id"]] == [1, 2]
    assert (first["method"], first["target"], first["status"], first["state"]) == ("GET", "/a?b", 200, "done")
    assert ["Authorization", "Bearer ***"] in first["request_headers"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"inspect-log: cannot write to .*: No such file or directory"):
        ExchangeLog(str(tmp_path / "none" / "requests.log"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError):  # nobody reads it
        ExchangeLog(str(tmp_path / "pipe"))


# ---- bodies ------------------------------------------------------------------------------------------------


def body_of(data: bytes, limit: int = 1 << 20) -> Body:
    body = Body(limit)
    body.add(memoryview(data))
    return body


TEXT = "grüße " * 100
_raw = zlib.compressobj(wbits=-15)
CODED = {
    "": TEXT.encode(),
    "gzip": gzip.compress(TEXT.encode()),
    "deflate": zlib.compress(TEXT.encode()),
    "Deflate": _raw.compress(TEXT.encode()) + _raw.flush(),
    "gzip, gzip": gzip.compress(gzip.compress(TEXT.encode())),
}


@pytest.mark.parametrize("coding", CODED)
def test_codings_are_undone(coding: str) -> None:
    fields = [(b"Content-Encoding", coding.encode()), (b"Content-Type", b"Text/Plain; charset=utf-8")]
    found = decoded(body_of(CODED[coding]), fields)
    assert (found.text, found.media_type, found.left, found.is_cut) == (TEXT, "text/plain", "", False)


def test_of_what_is_cut_the_beginning_is_read() -> None:
    fields = [(b"Content-Encoding", b"gzip")]
    packed = gzip.compress(b"".join(b"line %d\n" % number for number in range(10_000)))
    found = decoded(body_of(packed, 5000), fields)
    assert found.is_cut
    assert found.text is not None
    assert found.text.startswith("line 0\nline 1\n")
    assert decoded(body_of("ä".encode() * 10, 5), []).text == "ää"


def test_a_body_that_becomes_huge_is_read_to_a_bound() -> None:
    found = decoded(body_of(gzip.compress(bytes(100 << 20))), [(b"Content-Encoding", b"gzip")])
    assert (len(found.data), found.is_cut) == (256 * 1024, True)


@pytest.mark.parametrize(
    ("data", "fields", "text", "left"),
    [
        (b"\x1b\x2f\x00", [(b"Content-Encoding", b"br")], None, "br"),
        (b"no gzip", [(b"Content-Encoding", b"gzip")], None, "gzip"),
        (b"\xe4", [(b"Content-Type", b"text/html; charset=latin-1")], "ä", ""),
        (b"\xe4", [(b"Content-Type", b"text/html; charset=nonsense")], None, ""),
        (b"\xe4", [(b"Content-Type", b"text/html; charset=base64")], None, ""),
        (b"a\0b", [], None, ""),
        (b"+2AA-", [(b"Content-Type", b"text/html; charset=utf-7")], "+2AA-", ""),
        (b"\\ud800", [(b"Content-Type", b"text/html; charset=unicode_escape")], "\\ud800", ""),
    ],
)
def test_what_is_no_text_is_not_taken_for_one(data: bytes, fields: Any, text: str | None, left: str) -> None:
    found = decoded(body_of(data), fields)
    assert (found.text, found.left, found.data) == (text, left, data)


@pytest.mark.parametrize("charset", [b"idna", b"punycode"])
def test_no_character_set_takes_long(charset: bytes) -> None:
    fields = [(b"Content-Encoding", b"gzip"), (b"Content-Type", b"text/plain; charset=" + charset)]
    body = body_of(gzip.compress(b"xn--a" + b"abcdefgh" * (256 << 7)))
    began_s = time.thread_time()
    assert decoded(body, fields).text is not None
    assert time.thread_time() - began_s < 0.2  # a hundredth of that is usual; as names, more than a second
