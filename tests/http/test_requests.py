"""What a service takes for a request, whatever the pieces in which it comes, and what it refuses."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from gnar_lib.http import Limits, Service
from tests.helpers.web import Got, Served, echo_routes, responses, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: a\r\n"
END = b"\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
LAST = GET + HOST + b"Connection: close\r\n\r\n"
LIMITS = Limits(head_bytes=600, target_bytes=200, fields=10, body_bytes=100, linger_s=5)

# Requests, each with the statuses of all answers. Behind each one that may be followed comes another, which
# is answered with 200 and ends the connection: so nothing was taken for a part of something else.
TAKEN = {
    "plain": (GET + HOST + END, [200]),
    "an empty line in front": (END + GET + HOST + END, [200]),
    "HEAD": (b"HEAD / HTTP/1.1\r\n" + HOST + END, [200]),
    "spaces around a value": (GET + b"Host:  a \t\r\n" + END, [200]),
    "no space before a value": (GET + b"Host:a\r\n" + END, [200]),
    "an empty value": (GET + HOST + b"X:\r\n" + END, [200]),
    "bytes that are not ASCII": (GET + HOST + b"X: \xff\xfe\r\n" + END, [200]),
    "a Host with a port": (GET + b"Host: [::1]:80\r\n" + END, [200]),
    "an absolute target": (b"GET http://a/?x HTTP/1.1\r\n" + HOST + END, [200]),
    "an absolute target without a path": (b"GET HTTP://A HTTP/1.1\r\n" + HOST + END, [200]),
    "a body": (POST + b"Content-Length: 3\r\n\r\nabc", [200]),
    "a body of nothing": (POST + b"Content-Length: 0\r\n" + END, [200]),
    "a body that looks like a request": (POST + b"Content-Length: %d\r\n\r\n" % len(LAST) + LAST, [200]),
    "a length with zeros": (POST + b"Content-Length: 0003\r\n\r\nabc", [200]),
    "a body of GET": (GET + HOST + b"Content-Length: 3\r\n\r\nabc", [200]),
    "chunks": (CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n", [200]),
    "chunked in capitals": (POST + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", [200]),
    "chunk extensions": (CHUNKED + b'\r\n3;a="b"\r\nabc\r\n00;x\r\n\r\n', [200]),
    "no chunk": (CHUNKED + b"\r\n0\r\n\r\n", [200]),
    "chunks in capitals": (CHUNKED + b"\r\nA\r\n0123456789\r\n0\r\n\r\n", [200]),
    "Expect": (POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", [200]),
    "Upgrade, which is ignored": (GET + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + END, [200]),
    "a path that is not there": (b"GET /none HTTP/1.1\r\n" + HOST + END, [404]),
    "a method that nobody knows": (b"BREW / HTTP/1.1\r\n" + HOST + END, [405]),
    "PUT": (b"PUT / HTTP/1.1\r\n" + HOST + END, [405]),
    "OPTIONS": (b"OPTIONS /echo HTTP/1.1\r\n" + HOST + END, [204]),
    "a path with dots": (b"GET /show/../../../etc/passwd HTTP/1.1\r\n" + HOST + END, [404]),
    "the most fields": (GET + HOST + b"X: y\r\n" * 9 + END, [200]),
    "the longest head": (GET + HOST + b"X: " + b"y" * (600 - 32) + b"\r\n\r\n", [200]),
    "the longest body": (POST + b"Content-Length: 100\r\n\r\n" + b"x" * 100, [200]),
}
# Requests behind which nothing is listened to.
TAKEN_LAST = {
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with Host": b"GET / HTTP/1.0\r\n" + HOST + END,
    "HTTP/1.0 that wants to be kept": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n" + END,
    "HTTP/1.0 with a body": b"POST /echo HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    "Connection": GET + HOST + b"Connection: x, Close\r\n" + END,
    "trailers": CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: a\r\nY: b\r\n\r\n",
    "trailers with a bare line feed": CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: a\nY: b\r\n\r\n",
}

REFUSED = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a word": (b"hello\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "two empty lines in front": (END * 2 + GET + HOST + END, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + END, 505),
    "HTTP/3.0": (b"GET / HTTP/3.0\r\n" + HOST + END, 505),
    "HTTP/01.1": (b"GET / HTTP/01.1\r\n" + HOST + END, 400),
    "http/1.1": (b"GET / http/1.1\r\n" + HOST + END, 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST + END, 400),
    "a tab": (b"GET\t/ HTTP/1.1\r\n" + HOST + END, 400),
    "a space behind": (b"GET / HTTP/1.1 \r\n" + HOST + END, 400),
    "a space within": (b"GET /a b HTTP/1.1\r\n" + HOST + END, 400),
    "a space in front": (b" GET / HTTP/1.1\r\n" + HOST + END, 400),
    "a method of other characters": (b"G(T / HTTP/1.1\r\n" + HOST + END, 400),
    "no target": (b"GET HTTP/1.1\r\n" + HOST + END, 400),
    "a target without a slash": (b"GET a HTTP/1.1\r\n" + HOST + END, 400),
    "a target with a fragment": (b"GET /#a HTTP/1.1\r\n" + HOST + END, 400),
    "a target that is not ASCII": ("GET /é HTTP/1.1\r\n".encode() + HOST + END, 400),
    "half an escape": (b"GET /%4 HTTP/1.1\r\n" + HOST + END, 400),
    "an escape that is none": (b"GET /%GG HTTP/1.1\r\n" + HOST + END, 400),
    "a path that is not UTF-8": (b"GET /%FF HTTP/1.1\r\n" + HOST + END, 400),
    "a path with a line break": (b"GET /show/%0D%0AX HTTP/1.1\r\n" + HOST + END, 400),
    "a path with NUL": (b"GET /show/%00 HTTP/1.1\r\n" + HOST + END, 400),
    "a query that is not UTF-8": (b"GET /?a=%FF HTTP/1.1\r\n" + HOST + END, 400),
    "a parameter twice": (b"GET /?a=1&a=2 HTTP/1.1\r\n" + HOST + END, 400),
    "too many parameters": (b"GET /?" + b"&" * 101 + b" HTTP/1.1\r\n" + HOST + END, 400),
    "a target of another host": (b"GET http://b/ HTTP/1.1\r\n" + HOST + END, 400),
    "a target with a user": (b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n" + END, 400),
    "a target of another scheme": (b"GET file:///etc/passwd HTTP/1.1\r\n" + HOST + END, 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + END, 501),
    "an asterisk": (b"GET * HTTP/1.1\r\n" + HOST + END, 400),
    "OPTIONS of all": (b"OPTIONS * HTTP/1.1\r\n" + HOST + END, 404),
    "no Host": (GET + END, 400),
    "two Hosts": (GET + HOST + HOST + END, 400),
    "two Hosts of HTTP/1.0": (b"GET / HTTP/1.0\r\n" + HOST + HOST + END, 400),
    "an empty Host": (GET + b"Host:\r\n" + END, 400),
    "a Host with a path": (GET + b"Host: a/b\r\n" + END, 400),
    "a Host with a user": (GET + b"Host: a@b\r\n" + END, 400),
    "two hosts in one": (GET + b"Host: a, b\r\n" + END, 400),
    "a bare line feed behind the request": (b"GET / HTTP/1.1\n" + HOST + END, 400),
    "a bare line feed behind a field": (GET + b"Host: a\n" + END, 400),
    "bare line feeds alone": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a line feed in front": (b"\n" + GET + HOST + END, 400),
    "a bare carriage return in a field": (GET + HOST + b"X: a\rY: b\r\n" + END, 400),
    "a bare carriage return in front": (b"\rGET / HTTP/1.1\r\n" + HOST + END, 400),
    "two carriage returns": (GET + HOST + b"X: a\r\r\n" + END, 400),
    "a folded field": (GET + HOST + b"X: a\r\n b\r\n" + END, 400),
    "a folded field with a tab": (GET + HOST + b"X: a\r\n\tb\r\n" + END, 400),
    "a folded Host": (GET + b"Host:\r\n a\r\n" + END, 400),
    "a first field with a space": (GET + b" Host: a\r\n" + END, 400),
    "a space before a colon": (GET + b"Host : a\r\n" + END, 400),
    "no colon": (GET + HOST + b"nonsense\r\n" + END, 400),
    "no name": (GET + HOST + b": a\r\n" + END, 400),
    "a name of other characters": (GET + HOST + b"X(: a\r\n" + END, 400),
    "NUL in a value": (GET + HOST + b"X: a\0b\r\n" + END, 400),
    "a control character in a value": (GET + HOST + b"X: a\x0bb\r\n" + END, 400),
    "DEL in a value": (GET + HOST + b"X: a\x7fb\r\n" + END, 400),
    "too many fields": (GET + HOST + b"X: y\r\n" * 10 + END, 431),
    "a head that is too long": (GET + HOST + b"X: " + b"y" * (601 - 32) + b"\r\n\r\n", 431),
    "a head that never ends": (GET + HOST + b"X: " + b"y" * 5000, 431),
    "many fields that are too long": (GET + HOST + b"X: yyyyyyyyyyyyyyyyyyy\r\n" * 500, 431),
    "a target that is too long": (b"GET /" + b"a" * 250 + b" HTTP/1.1\r\n" + HOST + END, 414),
    "a target that never ends": (b"GET /" + b"a" * 5000, 414),
    "a method that never ends": (b"G" * 5000, 414),
    "a negative length": (POST + b"Content-Length: -1\r\n" + END, 400),
    "a length with a sign": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "a length in words": (POST + b"Content-Length: three\r\n\r\nabc", 400),
    "a length in hexadecimal": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "a length with a fraction": (POST + b"Content-Length: 3.0\r\n\r\nabc", 400),
    "a length with an underline": (POST + b"Content-Length: 1_0\r\n\r\n0123456789", 400),
    "a length of other digits": (POST + b"Content-Length: \xb2\r\n\r\nab", 400),
    "an empty length": (POST + b"Content-Length:\r\n" + END, 400),
    "an endless length": (POST + b"Content-Length: 99999999999999999999\r\n" + END, 400),
    "a length twice": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "a list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "a body that is too long": (POST + b"Content-Length: 101\r\n" + END, 413),
    "a body that is far too long": (POST + b"Content-Length: 999999999999999999\r\n" + END, 413),
    "chunks that are too long": (
        CHUNKED + b"\r\n32\r\n" + b"x" * 50 + b"\r\n33\r\n" + b"x" * 51 + b"\r\n",
        413,
    ),
    "a chunk that is too long": (CHUNKED + b"\r\nfffff\r\n" + b"x" * 101, 413),
    "an unknown coding": (POST + b"Transfer-Encoding: gzip\r\n" + END, 501),
    "a coding before chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n" + END, 501),
    "identity": (POST + b"Transfer-Encoding: identity\r\n" + END, 501),
    "no coding": (POST + b"Transfer-Encoding:\r\n" + END, 501),
    "a chunk size that is none": (CHUNKED + b"\r\nx\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk size with a sign": (CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk size with 0x": (CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
    "an empty chunk size": (CHUNKED + b"\r\n\r\nabc\r\n0\r\n\r\n", 400),
    "an endless chunk size": (CHUNKED + b"\r\n" + b"0" * 21 + b"3\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk that is longer than its size": (CHUNKED + b"\r\n2\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk that is shorter than its size": (CHUNKED + b"\r\n4\r\nabc\r\n0\r\n\r\n", 400),
    "a bare line feed behind a chunk size": (CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n", 400),
    "a bare line feed behind a chunk": (CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n", 400),
    "a bare line feed at the end of chunks": (CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\n", 400),
    "a bare line feed behind a trailer": (CHUNKED + b"\r\n0\r\nX: a\n\r\n", 400),
    "a trailer that is none": (CHUNKED + b"\r\n0\r\nnonsense\r\n\r\n", 400),
    "an unknown Expect": (POST + b"Expect: the worst\r\nContent-Length: 3\r\n\r\nabc", 417),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Return a service with low limits for all tests, each of which uses connections of its own."""
    served = Served(Service(echo_routes(), limits=LIMITS))
    yield served
    served.close()


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, random: Random) -> Iterator[bytes]:
    """Yield the bytes in a few pieces."""
    cuts = sorted(random.choices(range(len(data) + 1), k=random.randint(1, 6)))
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if begin < end:
            yield data[begin:end]


def in_pieces(data: bytes) -> list[list[bytes]]:
    """Return ways to send the same: at once, byte by byte, and cut anywhere."""
    random = Random(len(data))  # noqa: S311  (no secret)
    return [[data], [*bytewise(data[:700]), data[700:]], *([*cut(data, random)] for _ in range(3))]


def final(raw: bytes, request: bytes) -> list[Got]:
    """Return the responses but for those that only say that the peer may go on."""
    method = "HEAD" if request.startswith(b"HEAD") else "GET"
    return [each for each in responses(raw, [method]) if each.status != 100]


@pytest.mark.parametrize("name", TAKEN)
def test_a_request_is_answered_and_so_is_what_follows(name: str, served: Served) -> None:
    data, expected = TAKEN[name]
    for pieces in in_pieces(data + LAST):
        got = final(served.ask(b"", pieces), data)
        assert [each.status for each in got] == [*expected, 200], pieces
        assert got[-1].headers["Connection"] == "close"


@pytest.mark.parametrize("name", TAKEN_LAST)
def test_a_request_is_answered_and_nothing_behind_it(name: str, served: Served) -> None:
    data = TAKEN_LAST[name]
    for pieces in in_pieces(data + LAST):
        got = final(served.ask(b"", pieces), data)
        assert [each.status for each in got] == [200], pieces
        assert got[0].body in {b"home", b"abc"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_and_ends_the_connection(name: str, served: Served) -> None:
    data, expected = REFUSED[name]
    for pieces in in_pieces(data + LAST):
        got = final(served.ask(b"", pieces), data)
        assert [each.status for each in got] == [expected], pieces
        assert got[0].headers["Connection"] == "close"


@pytest.mark.parametrize(
    "data",
    [GET[:5], GET, GET + HOST, POST + b"Content-Length: 3\r\n\r\nab", CHUNKED + b"\r\n3\r\nab"],
    ids=["in the line", "behind the line", "in the head", "in the body", "in a chunk"],
)
def test_a_request_that_ends_too_early_is_refused(data: bytes) -> None:
    with serving() as served:
        raw = served.ask(data, end=True)
    assert [each.status for each in responses(raw)] == [400]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nHost: a\n\n", b"\x16\x03\x01", b"\n", b"G" * 10_000])
def test_what_cannot_become_a_request_is_refused_before_its_end(data: bytes, served: Served) -> None:
    assert responses(served.ask(data))[0].status in {400, 414}  # and not 408


def test_a_peer_that_asks_nothing_gets_nothing() -> None:
    with serving() as served:
        assert served.ask(b"", end=True) == b""
        got = responses(served.ask(GET + HOST + END, end=True))
    assert [each.status for each in got] == [200]
