"""Requests for a WebSocket and their answers: what begins one, and what is said of everything else."""

from __future__ import annotations

from base64 import b64encode

import pytest

from gnar_lib.errors import DialError, UnreachableError
from gnar_lib.transport.ws_handshake import MAX_HEAD_BYTES, Asking, RefusedError, answer_to
from tests.helpers.websocket import accept_token

HOST, PATH = "gnar.example:8443", "/tunnel"
WHERE = f"wss://{HOST}{PATH}"
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3

REQUEST = {
    b"Host": b"gnar.example",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def head_of(line: bytes, fields: dict[bytes, bytes]) -> bytes:
    return b"\r\n".join([line, *(b"%b: %b" % field for field in fields.items()), b"", b""])


def request(line: bytes = b"GET /gnar HTTP/1.1", **changed: bytes | None) -> bytes:
    """Return a good request with some fields changed, or left out."""
    names = {name.replace(b"-", b"_").lower().decode(): name for name in REQUEST}
    fields = dict(REQUEST)
    for key, value in changed.items():
        name = names.get(key, key.replace("_", "-").encode())
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    return head_of(line, fields)


# ---- the server's end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        request(),
        request(upgrade=b"WebSocket", connection=b"keep-alive, upgrade"),
        request(cookie=b"a=b"),
        request(sec_websocket_extensions=b"permessage-deflate; client_max_window_bits"),
        request(sec_websocket_protocol=b"chat, mqtt"),
        request(host=b"[::1]:8443"),
    ],
    ids=["as usual", "other spelling", "cookie", "extension", "subprotocol", "IPv6"],
)
def test_request_is_answered_without_extensions_and_subprotocols(head: bytes) -> None:
    line, *fields, end, rest = answer_to(head).split(b"\r\n")
    assert line == b"HTTP/1.1 101 Switching Protocols"
    assert (end, rest) == (b"", b"")
    assert {tuple(field.lower().split(b": ")) for field in fields} == {
        (b"upgrade", b"websocket"),
        (b"connection", b"upgrade"),
        (b"sec-websocket-accept", ACCEPT.lower()),
    }
    assert ACCEPT in answer_to(head)


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (request(b"POST /gnar HTTP/1.1"), 405, "the method has to be GET"),
        (request(b"GET /gnar HTTP/1.0"), 505, "HTTP/1.1"),
        (request(upgrade=None), 400, "Upgrade: websocket"),
        (request(upgrade=b"h2c"), 400, "Upgrade: websocket"),
        (request(connection=None), 400, "Connection: Upgrade"),
        (request(connection=b"keep-alive"), 400, "Connection: Upgrade"),
        (request(sec_websocket_version=None), 400, "Sec-WebSocket-Version"),
        (request(sec_websocket_version=b"8"), 426, "13"),
        (request(sec_websocket_key=None), 400, "Sec-WebSocket-Key"),
        (request(sec_websocket_key=b"short"), 400, "16 bytes in base64"),
        (request(sec_websocket_key=b64encode(bytes(17))), 400, "16 bytes in base64"),
        (request(sec_websocket_key=b"!" + KEY[1:]), 400, "16 bytes in base64"),
        (request()[:-2] + b"Sec-WebSocket-Key: " + KEY + b"\r\n\r\n", 400, "16 bytes in base64"),
        (request(origin=b"https://elsewhere.example"), 403, "not for pages in a browser"),
        (request(origin=b"null"), 403, "not for pages in a browser"),
        (request(content_length=b"5"), 400, "a body"),
        (request(transfer_encoding=b"chunked"), 400, "a body"),
        (request(host=None), 400, "Bad HTTP message"),
        (request(host=b"\xff"), 400, "malformed"),
        (request(connection=b"\xff"), 400, "malformed"),
        (request()[:-2], 400, "not whole"),
        (b"GET \x00 HTTP/1.1\r\n\r\n", 400, "Bad HTTP message"),
    ],
)
def test_request_that_begins_no_websocket_is_answered_with_the_reason(
    head: bytes, status: int, reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason) as caught:
        answer_to(head)
    answer, _, body = caught.value.answer.partition(b"\r\n\r\n")
    line, *fields = answer.split(b"\r\n")
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d" % len(body) in fields
    assert b"Connection: close" in fields
    assert body.decode().strip() in str(caught.value)
    assert (b"Sec-WebSocket-Version: 13" in fields) is (status == 426)


# ---- the client's end --------------------------------------------------------------------------------------


def answer_of(asking: Asking, line: bytes = b"HTTP/1.1 101 Switching Protocols", **changed: bytes) -> bytes:
    """Return the good answer to a request, with some fields changed, or left out if they are empty."""
    fields = {
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Accept": accept_token(asking.request),
    }
    fields |= {name.replace("_", "-").encode(): value for name, value in changed.items()}
    return head_of(line, {name: value for name, value in fields.items() if value})


def test_request_says_whom_it_asks_and_nothing_of_extensions() -> None:
    line, *fields = Asking(HOST, PATH, is_tls=True).request.removesuffix(b"\r\n\r\n").split(b"\r\n")
    found = dict(field.split(b": ") for field in fields)
    key = found.pop(b"Sec-WebSocket-Key")
    assert line == b"GET /tunnel HTTP/1.1"
    assert found.pop(b"User-Agent").startswith(b"gnar/")
    assert found == {
        b"Host": HOST.encode(),
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Version": b"13",
    }
    assert Asking(HOST, PATH, is_tls=True).request.find(key) < 0


def test_server_takes_what_a_client_asks_and_the_client_takes_its_answer() -> None:
    asking = Asking("[::1]:80", "/gnar", is_tls=False)
    answer = answer_to(asking.request)
    assert asking.head_size(answer) == len(answer)
    asking.check(answer)


def test_head_of_an_answer_is_cut_where_it_ends() -> None:
    asking = Asking(HOST, PATH, is_tls=True)
    answer = answer_of(asking)
    assert [asking.head_size(answer[:size]) for size in range(len(answer))] == [0] * len(answer)
    assert asking.head_size(answer + b"\x82\x01x\r\n\r\n") == len(answer)
    asking.check(answer)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x0a", b"HTTP/2", b"h"]
)
def test_what_is_no_http_is_refused_at_its_first_bytes(data: bytes) -> None:
    with pytest.raises(DialError, match=f"{WHERE} does not answer in HTTP"):
        Asking(HOST, PATH, is_tls=True).head_size(data)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_head_without_an_end_is_refused(end: bytes) -> None:
    asking = Asking(HOST, PATH, is_tls=True)
    data = b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES + end
    with pytest.raises(DialError, match="header fields"):
        asking.head_size(data)


@pytest.mark.parametrize(
    ("line", "fields", "words"),
    [
        (
            "301 Moved",
            {"Location": b"https://other.example/\x1b"},
            "answers 301 Moved Permanently, and points to",
        ),
        ("302 Found", {}, "answers 302 Found, and begins no WebSocket"),
        ("400 Bad Request", {}, "400 Bad Request: perhaps something in between"),
        ("401 No", {}, "401 Unauthorized: .* wants a login"),
        ("403 Forbidden", {}, "403 Forbidden: .* does not allow"),
        ("404 Not Found", {"Content-Type": b"text/html"}, "404 Not Found: .*--ws-path"),
        ("407 No", {}, "407 Proxy Authentication Required: a proxy"),
        ("426 No", {}, "426 Upgrade Required: .* lets no WebSocket through"),
        ("200 OK", {"Content-Type": b"text/html; charset=utf-8"}, "answers 200 OK, with a page for browsers"),
        ("200 \x1b[31mred", {}, "answers 200 OK, and begins no WebSocket$"),
        ("299 Odd", {}, "answers 299, and begins no WebSocket$"),
        ("100 Continue", {}, "answers 100 Continue, and begins"),
    ],
)
def test_answer_that_begins_no_websocket_is_told_in_one_line(
    line: str, fields: dict[str, bytes], words: str
) -> None:
    asking = Asking(HOST, PATH, is_tls=True)
    head = answer_of(asking, f"HTTP/1.1 {line}".encode(), Upgrade=b"", Connection=b"", **fields)
    with pytest.raises(DialError, match=words) as caught:
        asking.check(head)
    assert not isinstance(caught.value, UnreachableError)
    assert str(caught.value).startswith(f"{WHERE} answers ")
    assert str(caught.value).isprintable()


def test_port_of_tls_that_was_asked_without_is_told_of() -> None:
    asking = Asking(HOST, PATH, is_tls=False)
    with pytest.raises(DialError, match=rf"^ws://{HOST}{PATH} answers 400 Bad Request: .*\(wss://\)"):
        asking.check(answer_of(asking, b"HTTP/1.1 400 Bad Request", Content_Length=b"0"))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 530])
def test_server_that_is_away_may_come_back(status: int) -> None:
    asking = Asking(HOST, PATH, is_tls=True)
    with pytest.raises(UnreachableError, match=f"answers {status}"):
        asking.check(answer_of(asking, b"HTTP/1.1 %d Sorry" % status, Content_Length=b"0"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"Upgrade": b""}, "Upgrade"),
        ({"Upgrade": b"h2c"}, "Upgrade"),
        ({"Connection": b""}, "Connection"),
        ({"Connection": b"close"}, "Connection"),
        ({"Sec_WebSocket_Accept": b""}, "accept"),
        ({"Sec_WebSocket_Accept": ACCEPT}, "accept"),
        ({"Sec_WebSocket_Extensions": b"permessage-deflate"}, "extension permessage-deflate"),
        ({"Sec_WebSocket_Protocol": b"mqtt"}, "subprotocol mqtt"),
        ({"Sec_WebSocket_Protocol": b"\xff"}, "malformed"),
        ({"Connection": b"\xff"}, "malformed"),
        ({"Sec_WebSocket_Protocol": b"x" * 5000}, "subprotocol x+$"),
    ],
)
def test_answer_with_a_wrong_field_is_told_in_one_line(changed: dict[str, bytes], words: str) -> None:
    asking = Asking(HOST, PATH, is_tls=True)
    with pytest.raises(DialError, match=f"{WHERE} answers with no WebSocket: .*{words}") as caught:
        asking.check(answer_of(asking, **changed))
    assert len(str(caught.value)) < 300


def test_answer_that_is_malformed_is_told_in_one_line() -> None:
    with pytest.raises(DialError, match="Bad HTTP message"):
        Asking(HOST, PATH, is_tls=True).check(b"HTTP/1.1 one two\r\n\r\n")


@pytest.mark.parametrize(
    ("host", "path"), [("a" * 70, "/"), ("gnar.example", "/ä"), ("gnar.example", "/a b")]
)
def test_nothing_is_asked_under_a_name_that_nobody_can_have(host: str, path: str) -> None:
    with pytest.raises(DialError, match="no WebSocket can be at"):
        Asking(host, path, is_tls=True)
