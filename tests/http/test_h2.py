"""The beginning of a connection of HTTP/2: which request it has, what is refused, and in which words."""

from __future__ import annotations

import struct
import time

import hpack
import pytest

from gnar_lib.http.h2 import (
    MAX_BLOCK_BYTES,
    MAX_EARLY_BYTES,
    MAX_FIELDS_BYTES,
    MAX_OPENING_BYTES,
    PREFACE,
    PREFACE_HEAD,
    SETTINGS,
    Code,
    FirstRequest,
    H2Error,
    Opening,
    answer,
    goaway,
    is_settings,
)
from tests.helpers import h2
from tests.helpers.h2 import ACK, CONTINUATION, END_HEADERS, GET, HEADERS, PADDED, block, frame, opening

START = PREFACE + frame(h2.SETTINGS)
POST = [(b":method", b"POST"), *GET[1:]]


def read(data: bytes, size: int = 1 << 20) -> FirstRequest | None:
    """Return the request that comes with `data`, in pieces of so many bytes."""
    parser, request = Opening(), None
    for at in range(0, len(data), size):
        request = parser.feed(data[at : at + size])
        if request is not None:
            break
    return request


def code_of(data: bytes) -> Code:
    """Return the code of the error that `data` is, whole or byte by byte."""
    with pytest.raises(H2Error) as whole:
        read(data)
    with pytest.raises(H2Error) as bytewise:
        read(data, 1)
    assert (whole.value.code, str(whole.value)) == (bytewise.value.code, str(bytewise.value))
    return whole.value.code


def headers(part: bytes, flags: int = END_HEADERS, stream: int = 1) -> bytes:
    return START + frame(HEADERS, part, flags, stream)


WAYS = {
    "as most clients": opening(),
    "with frames before": START
    + frame(h2.WINDOW_UPDATE, b"\0\0\xff\xff")
    + frame(h2.PING, b"12345678")
    + frame(h2.PRIORITY, b"\0\0\0\0\1", stream=3)
    + frame(h2.SETTINGS, struct.pack(">HI", 4, 1000))
    + frame(99, b"unknown", 255, 7)
    + frame(HEADERS, block(), END_HEADERS, 13),
    "padded": headers(b"\x05" + block() + bytes(5), END_HEADERS | PADDED),
    "with a priority": headers(b"\0\0\0\0\x10" + block(), END_HEADERS | h2.WITH_PRIORITY),
    "padded, with a priority": headers(
        b"\x01" + b"\0\0\0\0\x10" + block() + b"\0", END_HEADERS | PADDED | h2.WITH_PRIORITY
    ),
    "continued": headers(block()[:3], 0)
    + frame(CONTINUATION, b"", 0, 1)
    + frame(CONTINUATION, block()[3:], END_HEADERS, 1),
    "with a body behind": opening(POST) + frame(h2.DATA, b"body", h2.END_STREAM, 1),
    "with a table of another size": headers(b"\x20\x3f\xe1\x1f" + block()),
}


@pytest.mark.parametrize("size", [1, 2, 13, 1 << 20])
@pytest.mark.parametrize("way", WAYS)
def test_the_first_request_is_found_however_it_is_cut(way: str, size: int) -> None:
    found = read(WAYS[way], size)
    assert found is not None
    assert (found.host, found.authority, found.path, found.target) == ("a", b"a:81", "/x", b"/x?y")


@pytest.mark.parametrize("way", WAYS)
def test_all_bytes_are_kept_for_whoever_is_to_get_them(way: str) -> None:
    parser = Opening()
    assert parser.feed(WAYS[way]) is not None
    assert parser.take_all() == WAYS[way]


def test_more_is_needed_until_the_head_is_whole() -> None:
    data = opening()
    for end in range(len(data)):
        assert Opening().feed(data[:end]) is None
    assert data.startswith(PREFACE_HEAD)


def test_fields_and_method_are_known() -> None:
    found = read(opening([*POST, (b"te", b"trailers"), (b"x", b"\xff"), (b"x", b"")]))
    assert found is not None
    assert (found.stream, found.method) == (1, b"POST")
    assert found.pairs == [(b"te", b"trailers"), (b"x", b"\xff"), (b"x", b"")]
    assert (found.value(b"x"), found.value(b"y")) == (b"\xff", b"")


def test_a_client_may_wait_for_settings_and_its_answer_is_taken_out() -> None:
    parser, waits = Opening(), []
    ping = frame(h2.PING, b"12345678")
    for part in (START[:-1], START[-1:]):
        assert parser.feed(part) is None
        waits.append(parser.waits_for_settings)
    parser.expect_ack()
    assert [*waits, parser.waits_for_settings] == [False, True, False]
    assert parser.feed(ping + frame(h2.SETTINGS, flags=ACK)) is None
    assert not parser.waits_for_settings
    request = frame(HEADERS, block(), END_HEADERS, 1)
    assert parser.feed(request) is not None
    assert parser.take_all() == START + ping + request


def test_a_request_that_crosses_settings_is_known_once_they_are_answered() -> None:
    parser = Opening()
    assert parser.feed(START) is None
    parser.expect_ack()
    request = frame(HEADERS, block(), END_HEADERS, 1)
    body = b"".join(frame(h2.DATA, bytes(16384), 0, 1) for _ in range(4))
    other = frame(HEADERS, block()[:1], 0, 3) + frame(CONTINUATION, block()[1:], END_HEADERS, 3)
    assert parser.feed(request + body + other) is None
    found = parser.feed(frame(h2.SETTINGS, flags=ACK) + b"more")
    assert found is not None
    assert found.stream == 1
    assert parser.take_all() == START + request + body + other + b"more"


def test_who_is_in_the_middle_of_a_request_does_not_wait_for_settings() -> None:
    parser = Opening()
    parser.feed(headers(block())[:-1])
    assert parser.has_begun
    assert not parser.waits_for_settings
    parser = Opening()
    parser.feed(START + frame(h2.PING, b"12345678")[:5])
    assert not parser.waits_for_settings


def test_how_much_of_a_body_the_user_takes_is_known() -> None:
    parser = Opening()
    assert parser.window_bytes == 65535
    parser.feed(opening(settings=struct.pack(">HIHI", 3, 100, 4, 70)))
    assert parser.window_bytes == 70


PING = frame(h2.PING, b"12345678")
MALFORMED = {
    "another protocol": (b"PRI * HTTP/2.0\r\n\r\nXX", 1),
    "no settings": (PREFACE + frame(HEADERS, block(), END_HEADERS, 1), 1),
    "settings of another length": (PREFACE + frame(h2.SETTINGS, b"12345"), 6),
    "settings of a stream": (PREFACE + frame(h2.SETTINGS, b"", 0, 1), 6),
    "settings are answered": (START + frame(h2.SETTINGS, flags=ACK), 1),
    "a body": (START + frame(h2.DATA, b"x", 0, 1), 1),
    "a reset": (START + frame(h2.RST_STREAM, bytes(4), 0, 1), 1),
    "a push": (START + frame(h2.PUSH_PROMISE, bytes(4), 0, 1), 1),
    "a part of a block": (START + frame(CONTINUATION, block(), END_HEADERS, 1), 1),
    "a goodbye": (START + frame(h2.GOAWAY, bytes(8)), 0),
    "a stream of servers": (headers(block(), stream=2), 1),
    "no stream": (headers(block(), stream=0), 1),
    "more padding than there is": (headers(b"\xff" + block(), END_HEADERS | PADDED), 1),
    "padding of no length": (headers(b"", END_HEADERS | PADDED), 1),
    "half a priority": (headers(b"\0\0", END_HEADERS | h2.WITH_PRIORITY), 1),
    "another frame within a block": (headers(block()[:3], 0) + PING, 1),
    "a block continued for another stream": (
        headers(block()[:3], 0) + frame(CONTINUATION, block()[3:], END_HEADERS, 3),
        1,
    ),
    "a frame too long": (START + frame(h2.PING, bytes(16385)), 6),
    "an index of nothing": (headers(b"\xfe"), 9),
    "an index 0": (headers(b"\x80"), 9),
    "a table too large": (headers(b"\x3f\xe2\x1f" + block()), 9),
    "half a field": (headers(block()[:-1]), 9),
    "an integer without an end": (headers(b"\xff" + b"\x80" * 1000), 9),
    "no Huffman code": (headers(b"\x00\x84\xff\xff\xff\xff\x00"), 9),
    "a table changed behind a field": (headers(block() + b"\x20"), 9),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_with_its_code(name: str) -> None:
    data, code = MALFORMED[name]
    assert code_of(data) == code


@pytest.mark.parametrize(
    "fields",
    [
        [],
        GET[1:],
        GET[:3],
        [*GET, GET[0]],
        [(b"x", b"y"), *GET],
        [*GET, (b":status", b"200")],
        [*GET[:3], (b":path", b"")],
        [(b":method", b"a b"), *GET[1:]],
        [*GET, (b"X", b"y")],
        [*GET, (b"", b"y")],
        [*GET, (b"x y", b"y")],
        [*GET, (b"x", b"a\r\nb")],
        [*GET, (b"x", b"\0")],
        [*GET, (b"host", b"b")],
        [*GET, (b"host", b"a:81"), (b"host", b"b")],
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused(fields: list[h2.Field]) -> None:
    assert code_of(headers(block(fields))) == Code.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"Blog.Example.COM.", "blog.example.com"),
        (b"[2001:DB8::1]:80", "[2001:db8::1]"),
        (b"a b", ""),
        (b"user@a", ""),
        (b"", ""),
    ],
)
def test_a_host_is_known_without_port_and_dot(authority: bytes, host: str) -> None:
    found = read(opening([*GET[:2], (b":authority", authority), GET[3]]))
    assert found is not None
    assert found.host == host
    found = read(opening([*GET[:2], GET[3], (b"host", authority)]))
    assert found is not None
    assert found.host == host


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        (b"GET", b"/a%20b?c#d", b""),
        (b"GET", b"x", b""),
        (b"GET", b"*", b""),
        (b"OPTIONS", b"*", b"*"),
        (b"GET", b"/\xc3\xa9", b"/\xc3\xa9"),
    ],
)
def test_a_target_that_is_none_is_empty(method: bytes, path: bytes, target: bytes) -> None:
    found = read(opening([(b":method", method), *GET[1:3], (b":path", path)]))
    assert found is not None
    assert found.target == target


# ---- limits ------------------------------------------------------------------------------------------------


def test_what_comes_before_a_request_is_bounded() -> None:
    assert code_of(START + PING * (MAX_OPENING_BYTES // len(PING))) == Code.ENHANCE_YOUR_CALM
    assert code_of(START + frame(99) * (MAX_OPENING_BYTES // 9)) == Code.ENHANCE_YOUR_CALM


def test_what_comes_before_settings_are_answered_is_bounded() -> None:
    parser = Opening()
    parser.feed(START)
    parser.expect_ack()
    parser.feed(frame(HEADERS, block(), END_HEADERS, 1))
    body = frame(h2.DATA, bytes(16384), 0, 1)
    with pytest.raises(H2Error, match="too much"):
        parser.feed(body * (MAX_EARLY_BYTES // 16384))


def test_a_header_block_is_bounded_however_many_frames_it_has() -> None:
    part = frame(CONTINUATION, bytes(1000), 0, 1)
    assert code_of(headers(b"", 0) + part * (MAX_BLOCK_BYTES // 1000 + 1)) == Code.ENHANCE_YOUR_CALM
    nothing = frame(CONTINUATION, b"", 0, 1)
    assert code_of(headers(b"", 0) + nothing * (MAX_OPENING_BYTES // 9)) == Code.ENHANCE_YOUR_CALM


def test_header_fields_that_are_small_on_the_wire_alone_are_refused_at_once() -> None:
    coded = hpack.Encoder().encode([(b"a", b"0" * 26000)], huffman=True)
    bombs = {
        "Huffman": coded,
        "indices": block([(b"x", b"y" * 4000)]) + b"\xbe" * 12000,
        "fields": b"\x40\x01a\x00" * 4096,
        "tables": b"\x20" * MAX_BLOCK_BYTES,
    }
    began_s = time.thread_time()
    for name, bomb in bombs.items():
        assert len(bomb) <= MAX_BLOCK_BYTES
        data = headers(bomb[:16384], 0) + frame(CONTINUATION, bomb[16384:], END_HEADERS, 1)
        with pytest.raises(H2Error) as raised:
            read(data)
        expected = Code.ENHANCE_YOUR_CALM if name in ("indices", "fields") else Code.PROTOCOL_ERROR
        assert raised.value.code == expected, name
    assert time.thread_time() - began_s < 1.0
    assert MAX_FIELDS_BYTES == 2 * MAX_BLOCK_BYTES


# ---- what this end says ------------------------------------------------------------------------------------


def test_an_answer_has_its_status_its_body_and_an_end() -> None:
    data = answer(5, [(b":status", b"404"), (b"x", b"y" * 300)], b"body")
    assert [each[:3] for each in h2.frames(data)] == [(HEADERS, END_HEADERS, 5), (h2.DATA, h2.END_STREAM, 5)]
    assert h2.fields_of(data) == {b":status": b"404", b"x": b"y" * 300}
    assert h2.body_of(data) == b"body"
    ((_, flags, _, _),) = h2.frames(answer(1, [(b":status", b"204")]))
    assert flags == END_HEADERS | h2.END_STREAM


def test_an_answer_suits_a_client_that_keeps_no_table() -> None:
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    (head,) = h2.frames(answer(1, [(b":status", b"200"), (b"x", b"y")]))
    assert [*decoder.decode(head[3], raw=True)] == [(b":status", b"200"), (b"x", b"y")]


def test_a_goodbye_has_words() -> None:
    assert h2.goodbye(goaway(Code.ENHANCE_YOUR_CALM, "slowly", 7)) == (7, 11, "slowly")
    assert h2.frames(SETTINGS) == [(h2.SETTINGS, 0, 0, b"")]


def test_a_server_of_http_1_is_told_from_one_of_http_2() -> None:
    assert is_settings(SETTINGS)
    assert is_settings(SETTINGS[:3])
    assert not is_settings(b"HTTP/1.1 400 Bad Request\r\n")
