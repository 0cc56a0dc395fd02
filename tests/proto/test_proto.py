"""Messages on the wire: encoded and decoded, cut anywhere; what is no message is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib import proto
from gnar_lib.errors import ConnClosed, MessageTooLongError, ProtocolError
from gnar_lib.proto import (
    Challenge,
    Exchange,
    Heartbeat,
    Login,
    Message,
    Proof,
    ProxyCancel,
    ProxyReq,
    ProxyResp,
    UDPDatagram,
    Welcome,
    packet,
    to_frame,
)
from gnar_lib.proto.msg import MAX_PORT, MAX_TEXT, from_frame

if TYPE_CHECKING:
    from gnar_lib.net import Conn

MAX_FRAME_BYTES = packet.HEADER.size + packet.MAX_BODY_BYTES
DEEP = 5000  # levels: beyond what the JSON parser follows, within one frame


class FakeConn:
    """A conn from which bytes arrive in given pieces, and which ignores what is sent."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.sent = b""

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        self.unread(piece[size:])
        return piece[:size]

    def unread(self, data: bytes) -> None:
        if data:
            self._pieces.insert(0, data)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    @property
    def rest(self) -> bytes:
        return b"".join(self._pieces)


def recv(conn: FakeConn, max_bytes: int = MAX_FRAME_BYTES) -> Message:
    return proto.recv(cast("Conn", conn), max_bytes)


def frame(packet_type: int, body: bytes) -> bytes:
    return packet.HEADER.pack(packet_type, len(body)) + body


# ---- one table of messages and their bytes, for both directions --------------------------------------------

CASES: list[tuple[Message, bytes]] = [
    (
        Login(token="4724", version="v0.0.1-", timestamp=1795333499),
        b'\x01\x00\x3b{"token":"4724","version":"v0.0.1-","timestamp":1795333499}',
    ),
    (
        Login(token="4b44", client_version="0.0.1", timestamp=1795333512),
        b'\x01\x00\x40{"token":"4b44","client_version":"0.0.1","timestamp":1795333512}',
    ),
    (
        Login(token="", timestamp=7, features=("wait",), auth="hmac", nonce="ab", client_id="cd"),
        b'\x01\x00\x5a{"token":"","timestamp":7,"features":["wait"],"auth":"hmac","nonce":"ab","client_id":"cd"}',
    ),
    (
        Login(token="", timestamp=0, session="ef", waiting=3, proof="01"),
        b'\x01\x00\x42{"token":"","timestamp":0,"session":"ef","waiting":3,"proof":"01"}',
    ),
    (Heartbeat(), b"\x02\x00\x02{}"),
    (Heartbeat(waiting=4), b'\x02\x00\x0d{"waiting":4}'),
    (
        ProxyReq(remote_port=19001, proxy_name="demo", subdomain="", proxy_type="tcp"),
        b'\x03\x00\x4b{"remote_port":19001,"proxy_name":"demo","subdomain":"","proxy_type":"tcp"}',
    ),
    (
        ProxyReq(remote_port=0, proxy_name="dns", subdomain="", proxy_type="udp", udp_timeout=300),
        b'\x03\x00X{"remote_port":0,"proxy_name":"dns","subdomain":"","proxy_type":"udp","udp_timeout":300}',
    ),
    (
        ProxyReq(
            0, "blog", "*.dev", "http", path="/api", request_headers=("X-A: v", "-X-B"), redirect_https=True
        ),
        (
            b'\x03\x00\x95{"remote_port":0,"proxy_name":"blog","subdomain":"*.dev","proxy_type":"http","path":"/api",'
            b'"request_headers":["X-A: v","-X-B"],"redirect_https":true}'
        ),
    ),
    (
        ProxyReq(0, "b", "b", "http", host_header="a", response_headers=("-B",), basic_auth=("u:h",)),
        (
            b'\x03\x00\x87{"remote_port":0,"proxy_name":"b","subdomain":"b","proxy_type":"http","host_header":"a",'
            b'"response_headers":["-B"],"basic_auth":["u:h"]}'
        ),
    ),
    (
        ProxyReq(1, "b", "", "udp", allow_from=("10.0.0.0/8",), deny_from=("::1",), error_page="<p>"),
        (
            b'\x03\x00\x87{"remote_port":1,"proxy_name":"b","subdomain":"","proxy_type":"udp",'
            b'"allow_from":["10.0.0.0/8"],"deny_from":["::1"],"error_page":"<p>"}'
        ),
    ),
    (
        ProxyResp(domain="b.example.com", status="success", proxy_name="b", url="https://b.example.com"),
        (
            b'\x04\x00\x5c{"domain":"b.example.com","status":"success","proxy_name":"b",'
            b'"url":"https://b.example.com"}'
        ),
    ),
    (ProxyResp(domain="", status="success"), b'\x04\x00\x20{"domain":"","status":"success"}'),
    (
        ProxyResp(domain="", status="failed", error="taken", retry=True, proxy_name="é"),
        b'\x04\x00\x4e{"domain":"","status":"failed","error":"taken","retry":true,"proxy_name":"\xc3\xa9"}',
    ),
    (
        ProxyResp(domain="", status="failed", error="taken", retry=True, proxy_name="b", own=True),
        b'\x04\x00\x58{"domain":"","status":"failed","error":"taken","retry":true,"proxy_name":"b","own":true}',
    ),
    (
        ProxyCancel(proxy_name="demo", remote_port=19001),
        b'\x05\x00\x29{"proxy_name":"demo","remote_port":19001}',
    ),
    (
        Exchange(conn_id="4e408fac", proxy_type="tcp"),
        b'\x06\x00\x29{"conn_id":"4e408fac","proxy_type":"tcp"}',
    ),
    (
        Exchange(conn_id="4e40", proxy_type="tcp", proof="23", proxy_name="demo", user="[::1]:5"),
        b'\x06\x00\x57{"conn_id":"4e40","proxy_type":"tcp","proof":"23","proxy_name":"demo","user":"[::1]:5"}',
    ),
    (UDPDatagram(payload="aGk=", addr=None), b'\x07\x00\x1e{"payload":"aGk=","addr":null}'),
    (
        UDPDatagram(payload="", addr={"IP": "127.0.0.1", "Port": 53, "Zone": ""}),
        b'\x07\x00\x3c{"payload":"","addr":{"IP":"127.0.0.1","Port":53,"Zone":""}}',
    ),
    (Challenge(nonce="ab"), b'\x10\x00\x0e{"nonce":"ab"}'),
    (Proof(proof="cd"), b'\x11\x00\x0e{"proof":"cd"}'),
    (Welcome(session="ef", features=("wait",)), b'\x12\x00\x24{"features":["wait"],"session":"ef"}'),
    (Welcome(session="ef", time=1795333499), b'\x12\x00\x22{"session":"ef","time":1795333499}'),
    (Welcome(error="wrong token"), b'\x12\x00\x17{"error":"wrong token"}'),
]
IDS = [f"{type(message).__name__}-{number}" for number, (message, _) in enumerate(CASES)]
EVERY_FRAME = b"".join(data for _, data in CASES)


@pytest.mark.parametrize(("message", "data"), CASES, ids=IDS)
def test_message_is_these_bytes_and_these_bytes_are_the_message(message: Message, data: bytes) -> None:
    assert to_frame(message) == data
    assert from_frame(data) == message


@pytest.mark.parametrize(("message", "data"), CASES, ids=IDS)
def test_message_arrives_byte_by_byte(message: Message, data: bytes) -> None:
    conn = FakeConn(*(data[i : i + 1] for i in range(len(data))), b"raw")
    assert recv(conn) == message
    assert conn.rest == b"raw"


@pytest.mark.parametrize(("message", "data"), CASES, ids=IDS)
def test_stream_that_ends_inside_a_message_is_an_end_and_no_message(message: Message, data: bytes) -> None:
    for cut in range(1, len(data)):
        with pytest.raises(ConnClosed, match="inside a message"):
            recv(FakeConn(data[:cut]))
    with pytest.raises(ConnClosed, match=r"closed the connection$"):
        recv(FakeConn())
    assert recv(FakeConn(data)) == message


@pytest.mark.parametrize(("message", "data"), CASES, ids=IDS)
def test_field_that_nobody_knows_is_ignored(message: Message, data: bytes) -> None:
    body = json.loads(data[3:]) | {"of a later version": [{"a": None}]}
    assert from_frame(frame(data[0], json.dumps(body).encode())) == message


def test_every_message_has_a_case() -> None:
    assert {type(message).TYPE for message, _ in CASES} == set(packet.PacketType)


def test_send_writes_one_frame() -> None:
    conn = FakeConn()
    proto.send(cast("Conn", conn), Heartbeat())
    assert conn.sent == b"\x02\x00\x02{}"


# ---- properties --------------------------------------------------------------------------------------------

TEXT = st.text(max_size=40)
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
ADDRESSES = st.none() | st.fixed_dictionaries({"IP": TEXT, "Port": INTEGERS, "Zone": TEXT})
BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "int": INTEGERS,
    "bool": st.booleans(),
    "tuple[str, ...]": st.lists(TEXT, max_size=4).map(tuple),
    "dict[str, Any] | None": ADDRESSES,
}
CLASSES = sorted({type(message) for message, _ in CASES}, key=lambda cls: cls.TYPE)


def of_class(cls: type[Message]) -> st.SearchStrategy[Message]:
    values = {
        field.name: st.integers(0, MAX_PORT)
        if field.name == "remote_port"
        else BY_ANNOTATION[str(field.type)]
        for field in fields(cls)
    }
    return st.builds(cls, **values)


MESSAGES = st.one_of([of_class(cls) for cls in CLASSES])


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data at some places, each taken modulo the length of the data."""
    places = sorted({place % (len(data) + 1) for place in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)


@given(MESSAGES)
def test_any_message_comes_back_as_it_was(message: Message) -> None:
    assert from_frame(to_frame(message)) == message


@given(st.lists(MESSAGES, min_size=1, max_size=5), st.binary(max_size=9000), CUTS)
def test_messages_cut_anywhere_arrive_whole_and_lose_nothing_behind_them(
    messages: list[Message], behind: bytes, cuts: list[int]
) -> None:
    conn = FakeConn(*cut(b"".join(map(to_frame, messages)) + behind, cuts))
    assert [recv(conn) for _ in messages] == messages
    assert conn.rest == behind


def read_to_the_end(conn: FakeConn) -> NoReturn:
    while True:
        recv(conn)


def recv_or_refuse(data: bytes, cuts: list[int]) -> None:
    """Read messages to the end; anything but a message and these two errors fails the test."""
    conn = FakeConn(*cut(data, cuts))
    with pytest.raises((ProtocolError, ConnClosed), match=r"\A[^\n]+\Z"):
        read_to_the_end(conn)


@given(st.binary(max_size=300), CUTS)
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    recv_or_refuse(data, cuts)


@given(st.sampled_from([*packet.PacketType]), st.binary(max_size=200), CUTS)
def test_any_body_is_a_message_or_a_protocol_error(
    kind: packet.PacketType, body: bytes, cuts: list[int]
) -> None:
    recv_or_refuse(frame(kind, body), cuts)


@given(st.integers(0, len(EVERY_FRAME) - 1), st.integers(0, 255), CUTS)
def test_any_byte_of_a_message_may_be_wrong(place: int, byte: int, cuts: list[int]) -> None:
    recv_or_refuse(EVERY_FRAME[:place] + bytes([byte]) + EVERY_FRAME[place + 1 :], cuts)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(CASES), st.data())
def test_any_value_in_a_field_is_taken_or_refused_by_name(
    case: tuple[Message, bytes], data: st.DataObject
) -> None:
    message, _ = case
    name = data.draw(st.sampled_from([field.name for field in fields(message)]))
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    values[name] = data.draw(ANY_JSON)
    said = None
    try:
        from_frame(frame(message.TYPE, json.dumps(values).encode()))
    except ProtocolError as exc:
        said = str(exc)
    assert said is None or "not JSON" in said or name in said


# ---- what is refused, and with which words -----------------------------------------------------------------


def login(**values: object) -> bytes:
    return json.dumps({"token": "", "version": "", "timestamp": 1} | values).encode()


REFUSED = {
    "not JSON": (frame(1, b"abc"), "LOGIN: not JSON"),
    "empty body": (frame(2, b""), "HEARTBEAT: not JSON"),
    "JSON cut short": (frame(2, b'{"a":'), "HEARTBEAT: not JSON"),
    "two objects": (frame(2, b"{}{}"), "HEARTBEAT: not JSON"),
    "bytes that are not UTF-8": (frame(1, b'{"token":"\xff"}'), "LOGIN: not JSON"),
    "UTF-16": (frame(2, "{}".encode("utf-16")), "HEARTBEAT: not JSON"),
    "UTF-32 without a mark": (frame(2, "{}".encode("utf-32-le")), "HEARTBEAT: not JSON"),
    "a byte order mark": (frame(2, b"\xef\xbb\xbf{}"), "HEARTBEAT: not JSON"),
    "a control character in text": (frame(1, b'{"token":"\n"}'), "LOGIN: not JSON"),
    "NaN": (frame(1, b'{"token":"","timestamp":NaN}'), "LOGIN: not JSON"),
    "infinity where nobody looks": (frame(2, b'{"later":-Infinity}'), "HEARTBEAT: not JSON"),
    "a number of 5000 digits": (
        frame(2, b'{"waiting":' + b"9" * 5000 + b"}"),
        "not JSON|not a 64-bit integer",
    ),
    "lists nested deeply": (frame(2, b"[" * DEEP + b"]" * DEEP), "not JSON|not a JSON object"),
    "objects nested deeply": (
        frame(2, b'{"waiting":' * DEEP + b"1" + b"}" * DEEP),
        "not JSON|not a 64-bit integer",
    ),
    "a list": (frame(2, b"[]"), "HEARTBEAT: not a JSON object"),
    "null": (frame(2, b"null"), "HEARTBEAT: not a JSON object"),
    "text": (frame(2, b'"{}"'), "HEARTBEAT: not a JSON object"),
    "a missing field": (frame(1, b'{"token":"","version":""}'), "Login: timestamp is missing"),
    "a missing port": (frame(5, b'{"proxy_name":""}'), "ProxyCancel: remote_port is missing"),
    "another case of a name": (frame(5, b'{"proxy_name":"","Remote_Port":1}'), "remote_port is missing"),
    "a number for text": (frame(1, login(token=1)), "Login: token is not a string"),
    "null for text": (frame(1, login(token=None)), "Login: token is not a string"),
    "text for a number": (frame(1, login(timestamp="1")), "Login: timestamp is not a 64-bit integer"),
    "a truth for a number": (frame(1, login(timestamp=True)), "Login: timestamp is not a 64-bit integer"),
    "a fraction for a number": (frame(1, login(timestamp=1.5)), "Login: timestamp is not a 64-bit integer"),
    "a huge float": (frame(1, b'{"token":"","timestamp":1e999}'), "Login: timestamp is not a 64-bit integer"),
    "a number past 64 bits": (frame(1, login(timestamp=1 << 63)), "Login: timestamp is not a 64-bit integer"),
    "a number below 64 bits": (
        frame(1, login(timestamp=-1 - (1 << 63))),
        "timestamp is not a 64-bit integer",
    ),
    "a number for a list": (frame(1, login(features=1)), "Login: features is not a list of strings"),
    "a list of numbers": (frame(1, login(features=[1])), "Login: features is not a list of strings"),
    "half a surrogate pair": (frame(1, login(nonce="\ud800")), "Login: nonce is not a string"),
    "half a pair in a list": (frame(1, login(features=["\udfff"])), "features is not a list of strings"),
    "text too long": (frame(1, login(nonce="x" * (MAX_TEXT + 1))), f"nonce is longer than {MAX_TEXT}"),
    "a list too long": (
        frame(1, login(features=[""] * (MAX_TEXT + 1))),
        f"features is longer than {MAX_TEXT}",
    ),
    "a port past the last": (frame(5, b'{"proxy_name":"","remote_port":65536}'), "not from 0 to 65535"),
    "a port below the first": (frame(5, b'{"proxy_name":"","remote_port":-1}'), "not from 0 to 65535"),
    "an address that is text": (frame(7, b'{"payload":"","addr":"::1"}'), "not null or an address"),
    "an address without a port": (frame(7, b'{"payload":"","addr":{"IP":""}}'), "not null or an address"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_message_is_refused_with_these_words(name: str) -> None:
    data, said = REFUSED[name]
    with pytest.raises(ProtocolError, match=said) as caught:
        recv(FakeConn(data))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("packet_type", sorted(set(range(256)) - {*map(int, packet.PacketType)}))
def test_unknown_type_is_refused_at_its_first_byte(packet_type: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown packet type 0x{packet_type:02x}"):
        recv(FakeConn(bytes([packet_type])))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"HTTP/1.1 400 Bad Request", "HTTP"),
        (b"GET / HTTP/1.1", "HTTP"),
        (b"<!DOCTYPE HTML>\n<html lang=en>", "HTTP"),
        (b"<html>", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2", "SSH"),
        (b"\x16\x03\x01\x02\x00", "TLS"),
        (b"\x15\x03\x01\x00\x02\x02F", "TLS"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "the PROXY protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n", "the PROXY protocol"),
    ],
)
def test_other_protocols_are_called_by_their_names(start: bytes, name: str) -> None:
    with pytest.raises(ProtocolError, match=f"^this is {name}$"):
        recv(FakeConn(start))


def test_of_two_fields_with_one_name_the_last_counts_as_with_go() -> None:
    assert from_frame(frame(2, b'{"waiting":1,"waiting":2}')) == Heartbeat(waiting=2)


def test_frame_longer_than_it_may_be_is_refused_before_its_body_came() -> None:
    with pytest.raises(ProtocolError, match="a frame of 503 bytes where at most 100 are allowed"):
        recv(FakeConn(b"\x01", b"\x01\xf4"), max_bytes=100)
    assert recv(FakeConn(b"\x02\x00\x02{}"), max_bytes=5) == Heartbeat()
    with pytest.raises(ProtocolError, match="a frame of 5 bytes where at most 4 are allowed"):
        recv(FakeConn(b"\x02\x00\x02{}"), max_bytes=4)


def test_longest_message_arrives_and_one_byte_more_is_not_sent() -> None:
    empty = len(to_frame(UDPDatagram(payload="", addr=None)))
    longest = UDPDatagram(payload="x" * (MAX_FRAME_BYTES - empty), addr=None)
    data = to_frame(longest)
    assert len(data) == MAX_FRAME_BYTES
    assert recv(FakeConn(*cut(data, [1, 4096, 65535]))) == longest
    conn = FakeConn()
    with pytest.raises(MessageTooLongError, match="message too long: 65536 bytes, at most 65535 fit"):
        proto.send(cast("Conn", conn), UDPDatagram(payload=longest.payload + "x", addr=None))
    assert conn.sent == b""


def test_text_that_is_not_unicode_is_not_sent() -> None:
    with pytest.raises(MessageTooLongError, match="not Unicode"):
        to_frame(Proof("\ud800"))


def test_expect_refuses_another_message_by_name() -> None:
    with pytest.raises(ProtocolError, match="Heartbeat where Login was expected"):
        proto.expect(cast("Conn", FakeConn(to_frame(Heartbeat()))), Login)
