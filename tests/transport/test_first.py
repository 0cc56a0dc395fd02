"""What the first bytes of a connection show, however they are cut."""

from __future__ import annotations

import pytest

from gnar_lib.proto import Login, to_frame
from gnar_lib.transport.first import First, first_of

CASES = [
    (to_frame(Login(token="", timestamp=0)), First.OTHER),
    (b"\x00", First.OTHER),
    (b"\x16\x03\x01\x02\x00\x01", First.TLS),
    (b"GET / HTTP/1.1\r\n", First.HTTP),
    (b"PRI * HTTP/2.0\r\n", First.HTTP),
    (b"POST / HTTP/1.1\r\n", First.HTTP),
    (b"PROPFIND / HTTP/1.1\r\n", First.HTTP),
    (b"PROXY TCP4 192.0.2.1", First.PROXY),
    (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11", First.PROXY),
    (b"\r\n\r\n\x00\r\nQUIS\n", First.OTHER),
    (b"\r\nGET /", First.OTHER),
    (b"SSH-2.0-OpenSSH", First.OTHER),
    (b"PROXYING!", First.OTHER),
    (b"get / HTTP/1.1", First.OTHER),
    (b"A" * 24, First.OTHER),
    (b"\xff\xfe", First.OTHER),
]


@pytest.mark.parametrize(("data", "first"), CASES, ids=lambda value: repr(value)[:20])
def test_first_bytes_show_what_comes_as_soon_as_they_can(data: bytes, first: First) -> None:
    told = [first_of(data[:size]) for size in range(len(data) + 1)]
    at = next(size for size, each in enumerate(told) if each is not None)
    assert at <= 24
    assert set(told) == {None, first}
