"""Datagrams in frames, in the binary form and in that of the Go programs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib.errors import MessageTooLongError, ProtocolError
from gnar_lib.net import Datagram
from gnar_lib.net.datagram import BATCH, pack_address, unpack_address
from gnar_lib.proto.datagram import (
    MAX_PAYLOAD_BYTES,
    NOBODY,
    BinaryFraming,
    Framing,
    JsonFraming,
)
from tests.helpers.datagrams import LOOPBACK, USER

FRAMINGS = {"binary": BinaryFraming(), "json": JsonFraming(with_address=True)}
packed_addresses = st.one_of(
    st.builds(lambda ip, port: pack_address((str(ip), port)), st.ip_addresses(v=4), st.integers(0, 65535)),
    st.builds(lambda ip, port: pack_address((str(ip), port)), st.ip_addresses(v=6), st.integers(0, 65535)),
)
many_datagrams = st.lists(st.tuples(packed_addresses, st.binary(max_size=80)), max_size=20)


@given(packed_addresses)
def test_packed_address_is_22_bytes_and_unpacks_to_itself(packed: bytes) -> None:
    host, port, scope = unpack_address(packed)
    assert len(packed) == 22
    assert pack_address((host, port, 0, scope)) == packed


def test_ipv4_user_of_an_ipv6_socket_is_the_ipv4_user() -> None:
    assert pack_address(("::ffff:10.1.2.3", 53, 0, 0)) == pack_address(("10.1.2.3", 53))
    assert unpack_address(pack_address(("::ffff:10.1.2.3", 53, 0, 0))) == ("10.1.2.3", 53, 0)
    assert unpack_address(pack_address(("fe80::1%3", 53, 0, 3))) == ("fe80::1", 53, 3)


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
@given(datagrams=many_datagrams, cut=st.integers(1, 200))
def test_frames_cut_anywhere_bring_the_same_datagrams(
    framing: Framing, datagrams: list[Datagram], cut: int
) -> None:
    stream = framing.frame(datagrams)
    found: list[Datagram] = []
    rest = b""
    for start in range(0, len(stream), cut):
        rest += stream[start : start + cut]
        some, used = framing.parse(rest)
        found += some
        rest = rest[used:]
    assert found == datagrams
    assert rest == b""


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_datagrams_are_parsed_a_batch_at_a_time(framing: Framing) -> None:
    data, counts = framing.frame([(USER, b"")] * 150), list[int]()
    used = 1
    while used:
        found, used = framing.parse(data)
        counts.append(len(found))
        data = data[used:]
    assert counts == [BATCH, BATCH, 150 - 2 * BATCH, 0]
    assert data == b""


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
@given(noise=st.binary(max_size=200), before=many_datagrams)
def test_noise_is_an_error_of_the_protocol_and_nothing_else(
    framing: Framing, noise: bytes, before: list[Datagram]
) -> None:
    data = framing.frame(before) + noise
    try:
        found, used = framing.parse(data)
    except ProtocolError:
        return
    assert found[: len(before)] == before
    assert used <= len(data)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x13\x00\x15" + b"x" * 21,
        b"\x07\x00\x02{}" + b"x" * 30,
        b"\x02\x00\x02{}" + b"x" * 30,
        b"\xff",
    ],
)
def test_frame_that_is_no_datagram_is_refused_in_binary(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        BinaryFraming().parse(frame)


@pytest.mark.parametrize(
    "body",
    [
        b'{"payload":"%%%","addr":null}',
        b'{"payload":"aGVsbG8","addr":null}',
        b'{"payload":"","addr":{"IP":"nowhere","Port":1,"Zone":""}}',
        b'{"payload":"","addr":{"IP":"127.0.0.1","Port":65536,"Zone":""}}',
        b'{"payload":"","addr":{"IP":"127.0.0.1"}}',
        b'{"payload":7,"addr":null}',
        b"[]",
    ],
)
def test_json_that_is_no_datagram_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        JsonFraming(with_address=True).parse(b"\x07" + len(body).to_bytes(2, "big") + body)


def test_largest_payload_fits_in_binary_and_one_byte_more_does_not() -> None:
    framing = BinaryFraming()
    frame = framing.frame([(USER, b"x" * MAX_PAYLOAD_BYTES)])
    assert framing.parse(frame) == ([(USER, b"x" * MAX_PAYLOAD_BYTES)], 3 + 65535)
    with pytest.raises(MessageTooLongError):
        framing.frame([(USER, b"x" * (MAX_PAYLOAD_BYTES + 1))])


def test_json_form_is_that_of_the_go_programs() -> None:
    to_client, to_server = JsonFraming(with_address=True), JsonFraming(with_address=False)
    packed = pack_address((LOOPBACK, 47020))
    question = b'\x07\x00G{"payload":"aGVsbG8=","addr":{"IP":"127.0.0.1","Port":47020,"Zone":""}}'
    answer = b'\x07\x00*{"payload":"ZWNobzpoZWxsbw==","addr":null}'
    assert to_client.frame([(packed, b"hello")]) == question
    assert to_server.frame([(packed, b"echo:hello")]) == answer
    assert to_server.parse(question) == ([(packed, b"hello")], len(question))
    assert to_client.parse(answer) == ([(NOBODY, b"echo:hello")], len(answer))


def test_zones_tell_link_local_users_apart() -> None:
    frame = b'\x07\x00F{"payload":"aGVsbG8=","addr":{"IP":"fe80::1","Port":4702,"Zone":"%s"}}'
    (first, second), _ = JsonFraming(with_address=False).parse(frame % b"e0" + frame % b"e1")
    assert first[0] != second[0]
