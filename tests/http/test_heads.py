"""What the heads of requests and answers that are passed on mean, and which ones are refused."""

from __future__ import annotations

import time

import pytest

from gnar_lib.http import HTTPError, Limits
from gnar_lib.http.head import check_request
from gnar_lib.http.heads import CHUNKED, UNTIL_CLOSE, RequestToPass, lines_of, read_request, read_response

LIMITS = Limits()
HOST = b"Host: a\r\n"


def request(lines: bytes, first: bytes = b"GET / HTTP/1.1") -> RequestToPass:
    return read_request(first + b"\r\n" + lines + b"\r\n", LIMITS)


TARGETS = {
    b"/": ("a", "/", b"/"),
    b"/a/../b?c=/d": ("a", "/a/../b", b"/a/../b?c=/d"),
    b"/%2e%2e/": ("a", "/%2e%2e/", b"/%2e%2e/"),
    "/\u00e9".encode(): ("a", "/\xc3\xa9", "/\u00e9".encode()),
    b"//b/": ("a", "//b/", b"//b/"),
    b"http://B.example:81/x?y": ("b.example", "/x", b"/x?y"),
    b"HTTPS://b": ("b", "/", b"/"),
    b"http://b?x": ("b", "/", b"/?x"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_says_host_and_path(target: bytes) -> None:
    host, path, passed = TARGETS[target]
    found = request(HOST, b"GET %b HTTP/1.1" % target)
    assert (found.host, found.path, found.target) == (host, path, passed)


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"Blog.Example.COM", "blog.example.com"),
        (b"blog.example.com.", "blog.example.com"),
        (b"blog.example.com:8080", "blog.example.com"),
        (b"blog.example.com.:8080", "blog.example.com"),
        (b"[2001:DB8::1]:80", "[2001:db8::1]"),
        (b"a_b.example.com", "a_b.example.com"),
    ],
)
def test_host_is_known_without_port_and_dot(value: bytes, host: str) -> None:
    found = request(b"Host: " + value + b"\r\n")
    assert (found.host, found.authority) == (host, value)


def test_fields_of_the_connection_are_not_passed_on() -> None:
    found = request(
        HOST
        + b"Connection: close, X-Mine , te\r\nX-Mine: 1\r\nX-Other: 2\r\nKeep-Alive: 5\r\n"
        + b"Proxy-Connection: x\r\nTE: trailers, gzip\r\nUpgrade: websocket\r\n"
        + b"Proxy-Authorization: Basic eA==\r\nProxy: http://192.0.2.1\r\n"
    )
    assert lines_of(found.pairs) == b"X-Other: 2\r\n"
    assert not found.keeps_alive
    assert found.trailers
    assert not found.upgrade  # of which `Connection` says nothing


def test_what_others_say_of_the_user_is_set_apart() -> None:
    found = request(
        HOST + b"X-Forwarded-For: 1\r\nX_FORWARDED_FOR: 2\r\nForwarded: for=3\r\nX-Real-Ip: 4\r\nA: 5\r\n"
        b"X-Forwarded-Prefix: /6\r\nX.Real.IP: 7\r\nX~Forwarded~Port: 8\r\nX-Forwarded+Ssl: 9\r\n"
    )
    assert found.pairs == [(b"A", b" 5")]
    assert found.seen[b"x-forwarded-for"] == [b"1"]
    assert found.seen[b"x-forwarded-prefix"] == [b"/6"]
    assert found.seen.keys() == {
        b"host",
        b"x-forwarded-for",
        b"forwarded",
        b"x-real-ip",
        b"x-forwarded-prefix",
    }


@pytest.mark.parametrize("line", [b"CONNECT / HTTP/1.1", b"CONNECT a:80 HTTP/1.1", b"connect /x HTTP/1.0"])
def test_connect_is_refused_whatever_its_target(line: bytes) -> None:
    with pytest.raises(HTTPError) as raised:
        request(HOST, line)
    assert raised.value.status == 405


@pytest.mark.parametrize("method", [b"head", b"Head", b"hEAD"])
def test_a_method_that_some_take_for_head_is_refused(method: bytes) -> None:
    with pytest.raises(HTTPError) as raised:
        request(HOST, method + b" / HTTP/1.1")
    assert raised.value.status == 501


@pytest.mark.parametrize("name", [b"Content_Length", b"Content.Length", b"Transfer~Encoding"])
def test_odd_spellings_of_what_says_how_to_read_are_refused(name: bytes) -> None:
    with pytest.raises(HTTPError) as raised:
        request(HOST + name + b": 1\r\n")
    assert raised.value.status == 400


@pytest.mark.parametrize("status", [100, 103, 204])
@pytest.mark.parametrize("line", [b"Transfer-Encoding: chunked", b"Content-Length: 5"])
def test_answers_without_a_body_do_not_speak_of_one(status: int, line: bytes) -> None:
    head = b"HTTP/1.1 %d X\r\n%b\r\nA: 1\r\n\r\n" % (status, line)
    found = read_response(head, LIMITS, to_head=False)
    assert (found.length, found.lines) == (0, b"A: 1\r\n")


def test_an_upgrade_is_asked_for_in_two_fields() -> None:
    found = request(HOST + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n")
    assert (found.upgrade, found.keeps_alive) == (b"websocket", True)


BODIES = {
    b"": 0,
    b"Content-Length: 0\r\n": 0,
    b"content-length:\t17 \r\n": 17,
    b"Transfer-Encoding: Chunked\r\n": CHUNKED,
}


@pytest.mark.parametrize("lines", BODIES)
def test_fields_say_how_long_a_body_is(lines: bytes) -> None:
    assert request(HOST + lines).length == BODIES[lines]


REFUSED = {
    "two lengths": (b"Content-Length: 1\r\nContent-Length: 1\r\n", 400),
    "a list of lengths": (b"Content-Length: 1, 1\r\n", 400),
    "a length with a sign": (b"Content-Length: +1\r\n", 400),
    "a length in hexadecimal": (b"Content-Length: 0x1\r\n", 400),
    "an empty length": (b"Content-Length:\r\n", 400),
    "both lengths": (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
    "an underline for a hyphen in a length": (b"Content_Length: 1\r\n", 400),
    "an underline for a hyphen in a coding": (b"Transfer_Encoding: chunked\r\n", 400),
    "a space before a colon": (b"Transfer-Encoding : chunked\r\n", 400),
    "a tab before a colon": (b"Transfer-Encoding\t: chunked\r\n", 400),
    "a vertical tab in a coding": (b"Transfer-Encoding: \x0bchunked\r\n", 400),
    "a coding twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
    "chunked twice": (b"Transfer-Encoding: chunked, chunked\r\n", 501),
    "another coding": (b"Transfer-Encoding: identity\r\n", 501),
    "chunked in quotes": (b'Transfer-Encoding: "chunked"\r\n', 501),
    "a folded field": (b"A: b\r\n c\r\n", 400),
    "a bare line feed": (b"A: b\nB: c\r\n", 400),
    "a bare carriage return": (b"A: b\rB: c\r\n", 400),
    "NUL": (b"A: b\0\r\n", 400),
    "a second Host": (b"Host: b\r\n", 400),
    "the same Host again": (b"Host: a\r\n", 400),
    "no name": (b": b\r\n", 400),
    "too many fields": (b"A: b\r\n" * 100, 431),
    "another Expect": (b"Expect: 200-ok\r\n", 417),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    lines, status = REFUSED[name]
    for order in (HOST + lines, lines + HOST):
        with pytest.raises(HTTPError) as caught:
            request(order)
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"CONNECT a:443 HTTP/1.1", 405),
        (b"GET a HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET ftp://a/ HTTP/1.1", 400),
        (b"GET http://u@a/ HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET /#x HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"PRI * HTTP/2.0", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/11", 400),
        (b"GET /", 400),
    ],
)
def test_a_first_line_that_is_none_is_refused(first: bytes, status: int) -> None:
    with pytest.raises(HTTPError) as caught:
        request(HOST, first)
    assert caught.value.status == status


def test_http_1_0_needs_no_host_and_has_no_chunks() -> None:
    found = request(b"", b"GET / HTTP/1.0")
    assert (found.host, found.keeps_alive, found.is_1_0) == ("", False, True)
    with pytest.raises(HTTPError):
        request(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.0")


ANSWERS = {
    b"200 OK\r\nContent-Length: 5\r\n": (5, b"Content-Length: 5\r\n", True),
    b"200 OK\r\nTransfer-Encoding: chunked\r\n": (CHUNKED, b"Transfer-Encoding: chunked\r\n", True),
    b"200\r\n": (UNTIL_CLOSE, b"", True),
    b"200 OK\r\nConnection: close, a\r\nA: 1\r\nB: 2\r\n": (UNTIL_CLOSE, b"B: 2\r\n", False),
    b"204 No Content\r\nContent-Length: 5\r\n": (0, b"", True),
    b"204 No Content\r\nTransfer-Encoding: chunked\r\n": (0, b"", True),
    b"304 Not Modified\r\nContent-Length: 5\r\n": (0, b"Content-Length: 5\r\n", True),
    b"100 Continue\r\n": (0, b"", True),
}


@pytest.mark.parametrize("lines", ANSWERS)
def test_an_answer_says_where_its_body_ends(lines: bytes) -> None:
    found = read_response(b"HTTP/1.1 " + lines + b"\r\n", LIMITS, to_head=False)
    assert (found.length, found.lines, found.keeps_alive) == ANSWERS[lines]


def test_an_answer_to_head_has_no_body() -> None:
    found = read_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", LIMITS, to_head=True)
    assert (found.length, found.lines) == (0, b"Content-Length: 5\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_refused(answer: bytes) -> None:
    with pytest.raises(HTTPError) as caught:
        read_response(answer, LIMITS, to_head=False)
    assert caught.value.status == 502


def _quickest_s(head: bytes, read: object) -> float:
    def once() -> float:
        began_s = time.perf_counter()
        with pytest.raises(HTTPError):
            read(head, LIMITS)  # type: ignore[operator]
        return time.perf_counter() - began_s

    return min(once() for _ in range(3))


@pytest.mark.parametrize("read", [check_request, read_request])
def test_white_space_takes_no_longer_than_letters(read: object) -> None:
    """Each byte is looked at a few times at most, and not once for each byte before it."""
    begin = b"GET / HTTP/1.1\r\n" + HOST + b"A:"
    letters, spaces = (begin + fill * 15_000 + b"\x01\r\n\r\n" for fill in (b"x", b" "))
    assert _quickest_s(spaces, read) < 50 * _quickest_s(letters, read) + 0.01  # it was 1,000 times as long
