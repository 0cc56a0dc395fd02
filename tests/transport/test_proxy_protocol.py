"""Headers of the PROXY protocol: what each says, which are refused, and what is left of a connection."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.net import Sockaddr, deadline
from gnar_lib.transport.proxy_protocol import (
    AUTHORITY,
    CRC32C,
    MAX_BYTES,
    PROXY_NAME,
    V1,
    V2,
    Header,
    Tlv,
    crc32c,
    encode,
    parse,
    receive,
)
from tests.helpers.conns import tcp_pair

TIMEOUT_S = 10.0
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4_BLOCK = bytes.fromhex("c0000201 c6336407 10e1 01bb")  # 192.0.2.1:4321 to 198.51.100.7:443
V6_BLOCK = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + bytes.fromhex("10e101bb")
USER, SERVER = ("192.0.2.1", 4321), ("198.51.100.7", 443)
USER6, SERVER6 = ("2001:db8::1", 4321), ("2001:db8::2", 443)
NOOP = (0x04, b"\0" * 5)


def binary(version_command: int, family: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a header of version 2, put together by hand."""
    return (
        SIGNATURE
        + struct.pack(">BBH", version_command, family, len(body) if length is None else length)
        + body
    )


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def with_checksum(change: int = 0) -> bytes:
    """Return a header with a checksum between two other facts; it is wrong by `change`."""
    head = binary(0x21, 0x11, V4_BLOCK + tlv(*NOOP) + tlv(CRC32C, bytes(4)) + tlv(0xEE, b"x"))
    at = len(head) - len(tlv(0xEE, b"x")) - 4
    return head[:at] + struct.pack(">I", crc32c(head) ^ change) + head[at + 4 :]


CRC_TLVS = (NOOP, (CRC32C, with_checksum()[-8:-4]), (0xEE, b"x"))
WORST_LINE = b"PROXY UNKNOWN ffff:f...f:ffff " + b"x" * 75 + b"\r\n"  # 107 bytes

HEADERS: list[tuple[bytes, Header]] = [
    (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        Header(("192.168.0.1", 56324), ("192.168.0.11", 443), 47),
    ),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Header(("255.255.255.255", 65535), ("255.255.255.255", 65535), 56),
    ),
    (
        b"PROXY TCP6 2001:DB8::1 2001:db8:0:0:0:0:0:2 0 1\r\n",
        Header(("2001:db8::1", 0), ("2001:db8::2", 1), 49),
    ),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 5 6\r\n", Header(("192.0.2.1", 5), ("::1", 6), 37)),
    (b"PROXY UNKNOWN\r\n", Header(None, None, 15)),
    (b"PROXY UNKNOWN what \n ever\r\n", Header(None, None, 27)),
    (WORST_LINE, Header(None, None, 107)),
    (binary(0x21, 0x11, V4_BLOCK), Header(USER, SERVER, 28)),
    (binary(0x21, 0x12, V4_BLOCK), Header(USER, SERVER, 28, is_datagram=True)),
    (binary(0x21, 0x21, V6_BLOCK), Header(USER6, SERVER6, 52)),
    (binary(0x21, 0x22, V6_BLOCK), Header(USER6, SERVER6, 52, is_datagram=True)),
    (
        binary(0x21, 0x21, b"\0" * 10 + b"\xff\xff\xc0\0\x02\x01" + V6_BLOCK[16:]),
        Header(USER, SERVER6, 52),
    ),
    (binary(0x21, 0x31, b"/a".ljust(216, b"\0")), Header(None, None, 232)),
    (binary(0x21, 0x10, V4_BLOCK), Header(None, None, 28)),
    (binary(0x21, 0x00, tlv(*NOOP)), Header(None, None, 24, (NOOP,))),
    (binary(0x20, 0x00), Header(None, None, 16, is_local=True)),
    (binary(0x20, 0x11, V4_BLOCK + b"whatever"), Header(None, None, 36, is_local=True)),
    (binary(0x20, 0xFF, b"whatever"), Header(None, None, 24, is_local=True)),
    (
        binary(0x21, 0x11, V4_BLOCK + tlv(AUTHORITY, b"a.example") + tlv(0xEA, b"") + tlv(0x20, b"\x01ssl")),
        Header(USER, SERVER, 50, ((AUTHORITY, b"a.example"), (0xEA, b""), (0x20, b"\x01ssl"))),
    ),
    (with_checksum(), Header(USER, SERVER, 47, CRC_TLVS)),
    (
        binary(0x21, 0x11, V4_BLOCK + tlv(0xE1, bytes(MAX_BYTES - 31))),
        Header(USER, SERVER, MAX_BYTES, ((0xE1, bytes(MAX_BYTES - 31)),)),
    ),
]

REFUSED: list[bytes] = [
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"PROXX",
    b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
    b"PROXY TCP4\t192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 123456\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 \xd9\xa1 2\r\n",  # a digit of another script
    b"PROXY TCP4 192.0.02.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 0xc0.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY TCP4 localhost 192.0.2.2 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP6 1::2::3 ::1 1 2\r\n",
    b"PROXY TCP6 12345::1 ::1 1 2\r\n",
    b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n",
    b"PROXY TCP6 [::1] ::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n" + b"x" * 100,
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r" + b"x" * 100,
    WORST_LINE[:-2] + b"x\r\n",
    binary(0x11, 0x11, V4_BLOCK),
    binary(0x31, 0x11, V4_BLOCK),
    binary(0x22, 0x11, V4_BLOCK),
    binary(0x21, 0x41, V4_BLOCK),
    binary(0x21, 0x13, V4_BLOCK),
    binary(0x21, 0x11, V4_BLOCK[:-1]),
    binary(0x21, 0x21, V4_BLOCK),
    binary(0x21, 0x31, bytes(215)),
    binary(0x21, 0x11, V4_BLOCK + b"\x04"),
    binary(0x21, 0x11, V4_BLOCK + b"\x04\x00"),
    binary(0x21, 0x11, V4_BLOCK + b"\x04\x00\x02x"),
    binary(0x21, 0x11, b"", MAX_BYTES - 15),
    with_checksum(1),
    with_checksum(1 << 31),
    binary(0x21, 0x11, V4_BLOCK + tlv(CRC32C, b"\0\0\0")),
    binary(0x21, 0x11, V4_BLOCK + tlv(CRC32C, bytes(4)) * 2),
]


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_header_is_there_when_its_last_byte_has_come_and_not_before(data: bytes, header: Header) -> None:
    assert parse(data) == header
    assert header.size == len(data)
    assert parse(data + b"what follows\r\n") == header
    assert {parse(data[:size]) for size in range(len(data))} == {None}


@pytest.mark.parametrize("data", REFUSED)
def test_what_is_no_header_is_refused_and_no_part_of_it_is_taken(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)
    for size in range(len(data)):
        try:
            assert parse(data[:size]) is None
        except ProtocolError:
            break


def test_wrong_version_or_size_is_refused_before_the_rest_has_come() -> None:
    for start in (binary(0x11, 0x11, b"", 12), binary(0x21, 0x11, b"", MAX_BYTES), b"PROXX", b"\r\n\r\n\x01"):
        with pytest.raises(ProtocolError):
            parse(start)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_checksum_is_that_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


# ---- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "line", "family", "block"),
    [
        (USER, SERVER, b"TCP4 192.0.2.1 198.51.100.7 4321 443", 0x11, V4_BLOCK),
        (USER6, SERVER6, b"TCP6 2001:db8::1 2001:db8::2 4321 443", 0x21, V6_BLOCK),
        # As the kernel names addresses of IPv4 on a socket of IPv6, and a scope.
        (("::ffff:192.0.2.1", 4321, 0, 0), SERVER, b"TCP4 192.0.2.1 198.51.100.7 4321 443", 0x11, V4_BLOCK),
        (
            ("fe80::1%eth0", 1, 0, 2),
            SERVER6,
            b"TCP6 fe80::1 2001:db8::2 1 443",
            0x21,
            IPv6Address("fe80::1").packed + V6_BLOCK[16:32] + b"\0\x01\x01\xbb",
        ),
        # A destination of which nothing is known, or that is of another family.
        (USER, None, b"TCP4 192.0.2.1 0.0.0.0 4321 0", 0x11, V4_BLOCK[:4] + bytes(4) + b"\x10\xe1\0\0"),
        (USER, SERVER6, b"TCP4 192.0.2.1 0.0.0.0 4321 443", 0x11, V4_BLOCK[:4] + bytes(4) + V4_BLOCK[8:]),
        (
            USER6,
            ("a.example", 443),
            b"TCP6 2001:db8::1 :: 4321 443",
            0x21,
            V6_BLOCK[:16] + bytes(16) + V6_BLOCK[32:],
        ),
    ],
)
def test_header_is_written_as_the_specification_wants(
    source: Sockaddr, destination: Sockaddr | None, line: bytes, family: int, block: bytes
) -> None:
    assert encode(V1, source, destination) == b"PROXY " + line + b"\r\n"
    assert encode(V2, source, destination) == binary(0x21, family, block)
    assert encode(V2, source, destination, is_datagram=True) == binary(0x21, family + 1, block)


@pytest.mark.parametrize("source", [None, "/tmp/a.sock", "", ("a.example", 1)])  # noqa: S108  (a text)
def test_header_says_nothing_where_no_address_is_known(source: Sockaddr | None) -> None:
    assert encode(V1, source, SERVER) == b"PROXY UNKNOWN\r\n"
    assert encode(V2, source, SERVER, tlvs=[(PROXY_NAME, b"blog")]) == binary(0x20, 0x00)


def test_facts_that_do_not_fit_are_refused() -> None:
    for size in (MAX_BYTES - 30, 1 << 16):
        with pytest.raises(ProtocolError):
            encode(V2, USER, SERVER, tlvs=[(PROXY_NAME, bytes(size))])


ports = st.integers(0, 65535)
v4 = st.tuples(st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number))), ports)
v6 = st.tuples(
    st.integers(0, 2**128 - 1).map(IPv6Address).filter(lambda ip: ip.ipv4_mapped is None).map(str), ports
)
facts = st.tuples(st.sampled_from([0x01, AUTHORITY, 0x04, 0x20, PROXY_NAME, 0xEF]), st.binary(max_size=80))


@given(
    st.one_of(st.tuples(v4, v4), st.tuples(v6, v6)), st.booleans(), st.lists(facts, max_size=4), st.binary()
)
def test_what_is_written_is_read(
    ends: tuple[tuple[str, int], tuple[str, int]], is_datagram: bool, tlvs: Iterable[Tlv], rest: bytes
) -> None:
    line = encode(V1, *ends)
    assert parse(line + rest) == Header(*ends, len(line))
    data = encode(V2, *ends, is_datagram=is_datagram, tlvs=tlvs)
    assert parse(data + rest) == Header(*ends, len(data), (*tlvs,), is_datagram=is_datagram)


# ---- from a conn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_header_is_taken_off_a_conn_and_what_follows_stays(data: bytes, header: Header) -> None:
    near, far = tcp_pair()
    with deadline(TIMEOUT_S, "the test"):
        near.sendall(data + b"a question")
        near.shutdown(socket.SHUT_WR)
        got = receive(far)
        assert (got.size, got.source) == (header.size, None if header.is_datagram else header.source)
        assert far.recv(100) == b"a question"
        assert far.recv(100) == b""
    near.close()
    far.close()


def test_header_may_come_in_any_pieces() -> None:
    near, far = tcp_pair()
    receiving = gevent.spawn(receive, far)
    with deadline(TIMEOUT_S, "the test"):
        for byte in with_checksum():
            near.sendall(bytes([byte]))
            gevent.idle()
        assert receiving.get().source == USER
        assert not far.has_unread
    near.close()
    far.close()


def test_end_before_the_end_of_a_header_is_no_header() -> None:
    near, far = tcp_pair()
    near.sendall(with_checksum()[:-1])
    near.close()
    with deadline(TIMEOUT_S, "the test"), pytest.raises(ConnClosed):
        receive(far)
    far.close()
