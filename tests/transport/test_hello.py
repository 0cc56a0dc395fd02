"""Which host a ClientHello names, and which first bytes are refused."""

from __future__ import annotations

import time

import pytest

from gnar_lib.errors import ProtocolError
from gnar_lib.transport.hello import MAX_HELLO_BYTES, MAX_RECORDS, server_name
from tests.helpers.hello import cut_into_records, handshake_of, hello_with, real_hello, sized, sni

EXTENSION = b"\x00\x2b" + sized(b"\x02\x03\x04", 2)  # supported_versions
LONG_LABEL = b"a" * 63
LONGEST = b".".join([LONG_LABEL, LONG_LABEL, LONG_LABEL, b"a" * 61])  # 253 bytes


@pytest.mark.parametrize(
    ("hello", "name"),
    [
        (real_hello("blog.example.com"), "blog.example.com"),
        (real_hello(None), ""),
        (hello_with(EXTENSION, sni(b"Blog.Example.COM"), EXTENSION), "blog.example.com"),
        (hello_with(sni(b"example.com.")), "example.com"),
        (hello_with(sni(b"xn--bcher-kva.example")), "xn--bcher-kva.example"),
        (hello_with(sni(b"_dmarc.a-b.c_d")), "_dmarc.a-b.c_d"),
        (hello_with(sni(LONGEST)), LONGEST.decode()),
        (hello_with(EXTENSION), ""),
        (hello_with(), ""),
        (hello_with(sni(b"a")) + b"\x17 whatever follows", "a"),
    ],
)
def test_name_is_found_when_the_last_byte_has_come_and_not_before(hello: bytes, name: str) -> None:
    asked = [server_name(hello[:size]) for size in range(len(hello) + 1)]
    first = next(size for size, found in enumerate(asked) if found is not None)
    assert asked == [None] * first + [name] * (len(hello) + 1 - first)
    assert server_name(hello[:first]) == name


@pytest.mark.parametrize("most", [2, 3, 4, 5, 40, 100])
def test_name_is_found_however_the_message_is_cut_into_records(most: int) -> None:
    message = handshake_of(hello_with(EXTENSION, sni(b"example.com")))
    hello = cut_into_records(message, most)
    assert {server_name(hello[:size]) for size in range(len(hello))} == {None}
    assert server_name(hello) == "example.com"


def test_message_may_have_no_extensions_at_all() -> None:
    fields = b"\x03\x01" + bytes(32) + b"\x00" + sized(b"\x00\x2f", 2) + b"\x01\x00"
    assert server_name(cut_into_records(b"\x01" + sized(fields, 3))) == ""


@pytest.mark.parametrize(
    "hello",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",  # as SSL 2 began
        b"\x17\x03\x03\x00\x05hello",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # a record that is too long
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x26",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x00\x40\x00",  # 16 KiB are to come
        b"\x16\x03\x01\x00\x02\x01\x00\x15\x03\x01\x00\x02\x01\x00",  # an alert between two records
        cut_into_records(b"\x01" + sized(b"\x03\x03 and no more", 3)),
        cut_into_records(b"\x01" + sized(b"", 3)),
        hello_with(rest=b"x"),
        hello_with(b"\x00"),
        hello_with(b"\x00\x00\x00\x09" + bytes(8)),
        hello_with(b"\x00\x00" + sized(b"", 2)),
        hello_with(sni()),
        hello_with(sni(b"a", b"b")),
        hello_with(sni(b"a"), sni(b"a")),
        hello_with(sni(b"a", kind=1)),
    ],
)
def test_what_is_no_client_hello_is_refused(hello: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^(this is no TLS|TLS: .*)$"):
        server_name(hello)


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"",
            b".",
            b"a..b",
            b".a",
            b"-a",
            b"a-",
            b"a b",
            b"a\0b",
            b"a/b",
            b"a:443",
            b"[::1]",
            b"*.a",
            b"a\n",
        ),
        *("bücher.example".encode(), b"\xff", LONG_LABEL + b"a.b", LONGEST + b"a", b"a..", b"a@b"),
    ],
)
def test_what_is_no_host_name_is_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError):
        server_name(hello_with(sni(name)))


def test_message_ends_within_the_bound() -> None:
    padding = MAX_HELLO_BYTES - len(hello_with(sni(b"a"), b"\x00\x15" + sized(b"", 2)))
    longest = hello_with(sni(b"a"), b"\x00\x15" + sized(bytes(padding), 2))
    assert len(longest) == MAX_HELLO_BYTES
    assert server_name(longest) == "a"
    assert server_name(longest[:-1]) is None
    too_long = cut_into_records(handshake_of(longest), 10_000)
    for data in (too_long, too_long[:MAX_HELLO_BYTES], too_long[:MAX_HELLO_BYTES] + bytes(100_000)):
        with pytest.raises(ProtocolError):
            server_name(data)


def test_bytes_that_come_one_by_one_cost_little() -> None:
    """The worst is a message in tiny records, of which each is looked at again whenever a byte comes."""
    hello = cut_into_records(b"\x01" + sized(bytes(10_000), 3), 1)
    began_s = time.thread_time()
    first_refused = MAX_RECORDS * len(cut_into_records(b"x"))
    for size in range(first_refused):
        assert server_name(hello[:size]) is None
    with pytest.raises(ProtocolError, match=f"more than {MAX_RECORDS} records"):
        server_name(hello[:first_refused])
    assert time.thread_time() - began_s < 0.25  # a tenth of that is usual
