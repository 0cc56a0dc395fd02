"""Where a chunked body ends, however its bytes are cut, and which ones are refused."""

from __future__ import annotations

import time

import pytest

from gnar_lib.errors import ProtocolError
from gnar_lib.http.chunks import Chunks

REST = b"GET / HTTP/1.1\r\n"


def taken(body: bytes, size: int) -> int:
    """Return how many bytes belong to the body when they come `size` at a time."""
    chunks, at = Chunks(), 0
    while at < len(body) and not chunks.has_ended:
        at += chunks.feed(body[at : at + size])
    assert chunks.has_ended
    return at


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n00;c\r\n\r\n",
        b"A\r\n\r\n0\r\n\r\nabc\r\n0\r\n\r\n",
        b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
        b"0\r\nX: y\r\nZ:\r\n\r\n",
        b"1\r\n\n\r\n00F;x\r\n0\r\n\r\nghijklmnop\r\n10\r\n0123456789abcdef\r\n2;\r\n\r\n\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_body_ends_where_it_says(body: bytes, size: int) -> None:
    assert taken(body + REST, size) == len(body)


REFUSED = {
    "a size that is none": b"x\r\n",
    "an empty size": b"\r\n",
    "a size with a sign": b"+5\r\n",
    "a size with 0x": b"0x5\r\n",
    "a space in front of a size": b" 5\r\n",
    "a space behind a size": b"5 \r\n",
    "a space in front of an extension": b"5 ;a\r\nhello\r\n",
    "a size with an underline": b"1_0\r\n",
    "a size without an end": b"0" * 20,
    "a bare line feed behind a size": b"5\nhello",
    "two carriage returns": b"5\r\r\nhello",
    "a bare line feed in an extension": b"5;a\nhello",
    "a bare carriage return in an extension": b"5;a\rb\r\nhello",
    "NUL in an extension": b"5;a\0\r\nhello",
    "an extension without an end": b"5;" + b"a" * 2000,
    "a chunk that is longer than its size": b"4\r\nhello\r\n",
    "a bare line feed behind a chunk": b"5\r\nhello\n0",
    "a bare carriage return behind a chunk": b"5\r\nhello\r0",
    "a bare line feed at the end": b"0\r\n\n",
    "a trailer that is none": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a length in a trailer": b"0\r\nContent-Length: 5\r\n\r\n",
    "who the user is, in a trailer": b"0\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
    "who the user is, in a trailer that is spelled oddly": b"0\r\nX.Real_IP: 1.1.1.1\r\n\r\n",
    "a length in a trailer, with an underline": b"0\r\nContent_Length: 5\r\n\r\n",
    "a Host in a trailer": b"0\r\nHost: a\r\n\r\n",
    "too many trailers": b"0\r\n" + b"X: y\r\n" * 40 + b"\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    body = REFUSED[name]
    for size in (1, 2, 3, 5000):
        with pytest.raises(ProtocolError):
            taken(body, size)


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"f\r\n" + b"x" * 15 + b"\r\n", b"01;a=b\r\nx\r\n"])
def test_a_body_in_tiny_chunks_takes_little_time(chunk: bytes) -> None:
    piece = chunk * (60_000 // len(chunk))
    chunks = Chunks()
    began_s = time.thread_time()
    for _ in range(10):
        assert chunks.feed(piece) == len(piece)
    took_s = time.thread_time() - began_s
    assert chunks.count >= 10 * (60_000 // len(chunk))  # so that whoever copies them reads less at once
    assert took_s / chunks.count < 1e-6  # a fifth of that is usual; one by one, each takes more than 2 us
