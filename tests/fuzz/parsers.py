"""What each parser promises for any input: its documented errors alone, and what it accepts can be written.

A check gets the input and a source of random choices. It returns whether the input was accepted, and raises
any error but the parser's own.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import h11

from gnar_lib.auth import passwords
from gnar_lib.client.inspector.edit import edited
from gnar_lib.client.inspector.rows import detail
from gnar_lib.config import load_client, load_server, names, values
from gnar_lib.config.mappings import mapping
from gnar_lib.config.model import DEFAULT_PORT
from gnar_lib.config.target import web_target
from gnar_lib.discover.asking import MAX_NAME as MAX_SERVICE_NAME
from gnar_lib.discover.asking import name_in_answer
from gnar_lib.errors import ConfigError, ConnClosed, ProtocolError, UsageError
from gnar_lib.http import ClientCodec, HTTPError, Limits, RequestHead, ServerCodec
from gnar_lib.http.chunks import Chunks
from gnar_lib.http.h2 import FirstRequest, H2Error, Opening
from gnar_lib.http.heads import lines_of, read_request
from gnar_lib.http.request import make_request
from gnar_lib.inspect import State, curl_of, har_text
from gnar_lib.net import Conn, Crew
from gnar_lib.proto import Message, UDPDatagram, packet, recv, to_frame
from gnar_lib.proto.announcing import exchange_of
from gnar_lib.proto.datagram import BinaryFraming, Framing, JsonFraming
from gnar_lib.proto.msg import from_frame
from gnar_lib.relay import Role, parse_address
from gnar_lib.server.web.basic import MAX_HEADER_BYTES, credentials_of
from gnar_lib.yamux import Session
from tests.fuzz.transports import (
    connect_answers,
    hello,
    proxy_headers,
    socks_answers,
    websocket_frames,
    websocket_heads,
)
from tests.helpers.exchanges import Said, cut, hear
from tests.helpers.h2 import opening
from tests.helpers.loop import turn
from tests.peers.mux import clean, conn_pair, stream_count

Check = Callable[[bytes, Random], bool]

WAIT_S = 20.0
# Trailers are measured whenever bytes come, so that some that are too long are taken if they come at once.
MAX_HTTP_BYTES = 16_000


# ---- frames and messages -----------------------------------------------------------------------------------


def frames(data: bytes, _random: Random) -> bool:
    """The first bytes say how long a frame is; a whole frame is a JSON object or an error."""
    try:
        size = packet.frame_size(data)
        assert size is None or packet.HEADER.size <= size <= packet.HEADER.size + packet.MAX_BODY_BYTES
        assert packet.frame_size(data[: packet.HEADER.size]) == size
        if size is None or size > len(data):
            return False
        packet_type, fields = packet.decode(data[:size])
    except ProtocolError:
        return False
    assert packet_type == data[0]
    assert isinstance(fields, dict)
    return True


class _Source:
    """A conn from which the input comes, in pieces of any size."""

    def __init__(self, data: bytes, random: Random) -> None:
        self.data = data
        self.sent = b""
        self._most = random.choice((1, 7, 100, 5000))

    def recv(self, size: int) -> bytes:
        size = min(size, self._most)
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    def unread(self, data: bytes) -> None:
        self.data = data + self.data

    def sendall(self, data: bytes) -> None:
        self.sent += data


def _messages_in(source: _Source) -> list[Message]:
    """Return the messages up to the first error, or to the end."""
    found = []
    with suppress(ProtocolError, ConnClosed):
        while True:
            found.append(recv(cast("Conn", source)))
    return found


def messages(data: bytes, random: Random) -> bool:
    """The same messages come however the bytes are cut, and each can be sent again."""
    found = _messages_in(_Source(data, random))
    assert found == _messages_in(_Source(data, random))
    for message in found:
        if isinstance(message, UDPDatagram) and message.addr is not None:  # may hold what gnar does not know
            message = replace(message, addr={key: message.addr[key] for key in ("IP", "Port")})  # noqa: PLW2901
        assert from_frame(to_frame(message)) == message
    return bool(found)


def announcements(data: bytes, _random: Random) -> bool:
    """An Exchange is the same message whether its proxy is known or not, and whatever was read before."""
    frame = packet.HEADER.pack(packet.PacketType.EXCHANGE, min(len(data), packet.MAX_BODY_BYTES)) + data
    try:
        message = from_frame(frame)
    except ProtocolError:
        message = None
    for _ in range(2):
        try:
            assert exchange_of(frame) == message
        except ProtocolError:
            assert message is None
    return message is not None


# ---- datagrams ---------------------------------------------------------------------------------------------


def _datagrams(framing: Framing, data: bytes, random: Random) -> bool:
    try:
        found, used = framing.parse(data)
    except ProtocolError:
        return False
    assert 0 <= used <= len(data)
    first, first_used = framing.parse(data[: random.randint(0, used)])
    assert found[: len(first)] == first
    assert first_used <= used
    again, again_used = framing.parse(framing.frame(found))
    assert [payload for _, payload in again] == [payload for _, payload in found]
    if isinstance(framing, BinaryFraming):
        assert (again, again_used) == (found, used)
    return bool(found)


def datagrams(data: bytes, random: Random) -> bool:
    """The datagrams of whole frames come however the bytes are cut, and can be sent again."""
    return _datagrams(BinaryFraming(), data, random)


def json_datagrams(data: bytes, random: Random) -> bool:
    """As `datagrams`, in the form of the Go programs."""
    return _datagrams(JsonFraming(with_address=False), data, random)


# ---- multiplexing ------------------------------------------------------------------------------------------


def yamux(data: bytes, random: Random) -> bool:
    """Any bytes leave a session working or end it in order; nothing of it stays."""
    with clean(WAIT_S):
        ours, theirs = conn_pair()
        session, crew = Session(ours, is_client=random.random() < 0.5), Crew("handlers")
        session.serve(crew, lambda stream: stream.sendall(stream.recv(10)))
        theirs.sendall(data[:30_000])  # what fits into the socket without waiting
        turn()
        is_open = not session.closed
        theirs.close()
        turn()
        assert session.closed
        assert stream_count(session) == len(crew) == 0
    return is_open


# ---- HTTP --------------------------------------------------------------------------------------------------


def _requests_in(source: _Source) -> list[tuple[RequestHead, bytes]]:
    """Return the requests up to the first error, or to the end, and answer them."""
    found = []
    codec = ServerCodec(cast("Conn", source), Limits())
    with suppress(HTTPError):
        while codec.wait_for_head():
            head = codec.receive_head()
            found.append((head, b"".join(iter(codec.receive_body, b""))))
            codec.send_whole(404, [("X", "y")], b"body")
            if not codec.start_next():
                break
    return found


def http_requests(data: bytes, random: Random) -> bool:
    """The same requests come however the bytes are cut; each means something, and can be sent again."""
    data = data[:MAX_HTTP_BYTES]
    found = _requests_in(_Source(data, random))
    assert found == _requests_in(_Source(data, random))
    for head, body in found:
        with suppress(HTTPError):
            request = make_request(head, ("192.0.2.1", 1))
            assert request.path.isprintable() or not request.path.isascii()
            assert not {*"\r\n\0"} & {*"".join(request.headers.values())}
        if head.version == "1.1":  # the only one that is sent
            again = _Source(b"", random)
            codec = ClientCodec(cast("Conn", again), Limits())
            fields = [(name.decode(), value.decode("latin-1")) for name, value in head.fields]
            codec.send_head(head.method, head.target, fields)
            codec.send_body(body)
            codec.end_body()
            ((head_again, body_again),) = _requests_in(_Source(again.sent, random))
            assert (sorted(head_again.fields), body_again) == (sorted(head.fields), body)
            assert (head_again.method, head_again.target) == (head.method, head.target)
    return bool(found)


def heads_to_pass(data: bytes, _random: Random) -> bool:
    """What is passed on means the same to whoever reads it next."""
    end = data.find(b"\r\n\r\n") + 4
    head = data[: end if end > 3 else len(data)]
    try:
        found = read_request(head, Limits())
    except HTTPError:
        return False
    version = b"1.0" if found.is_1_0 else b"1.1"
    again = b"%b %b HTTP/%b\r\nHost: %b\r\n" % (found.method, found.target, version, found.authority)
    lines = lines_of(found.pairs)
    assert lines.count(b"\r\n") == lines.count(b"\n") == lines.count(b"\r") == len(found.pairs)
    if found.authority:
        other = read_request(again + lines + b"\r\n", Limits())
        same = ("method", "target", "path", "host", "pairs", "is_1_0")
        assert [getattr(other, name) for name in same] == [getattr(found, name) for name in same]
        assert not other.length
    return True


def chunked_bodies(data: bytes, random: Random) -> bool:
    """A body ends at the same place however it is cut, and h11 finds the same end."""

    def end_of(pieces: Callable[[], int]) -> int | None:
        chunks, at = Chunks(), 0
        try:
            while at < len(data) and not chunks.has_ended:
                at += chunks.feed(data[at : at + pieces()])
        except ProtocolError:
            return None
        return at if chunks.has_ended else None

    end = end_of(lambda: len(data))
    assert end == end_of(lambda: random.randint(1, 9))
    if end is None:
        return False
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Request | h11.Data)
    assert len(data) - len(connection.trailing_data[0]) == end
    return True


def h2_openings(data: bytes, random: Random) -> bool:
    """The same request is found however the bytes are cut, and can be written again."""

    def read(pieces: Callable[[], int]) -> FirstRequest | str | None:
        parser, at = Opening(), 0
        found: FirstRequest | None = None
        try:
            while found is None and at < len(data):
                size = pieces()
                found, at = parser.feed(data[at : at + size]), at + size
        except H2Error as exc:
            return str(exc)
        assert parser.take_all() == data[:at]
        return found

    found = read(lambda: len(data))
    assert found == read(lambda: random.choice((1, 5, 100)))
    if not isinstance(found, FirstRequest):
        return False
    assert bool(found.host) <= bool(found.authority)
    pseudo = [(b":method", found.method), (b":path", found.target or b"/"), (b":authority", found.authority)]
    again = Opening().feed(opening([*pseudo, *found.pairs]))
    assert again is not None
    assert (again.method, again.host, again.pairs) == (found.method, found.host, found.pairs)
    return True


def http_responses(data: bytes, random: Random) -> bool:
    """The same response comes however the bytes are cut, or none of them is one."""

    def response() -> tuple[object, bytes] | None:
        codec = ClientCodec(cast("Conn", _Source(data, random)), Limits())
        codec.send_head("GET", "/", [("Host", "a")])
        codec.end_body()
        try:
            return codec.receive_head(), b"".join(iter(codec.receive_body, b""))
        except (ProtocolError, ConnClosed):
            return None

    found = response()
    assert found == response()
    return found is not None


# ---- the inspector -----------------------------------------------------------------------------------------


def _exchanges_in(data: bytes, size: int) -> list[object]:
    """Return what is made of a conversation: `>` begins what the user says, `<` what the service says."""
    turns = [(piece[:1], piece[1:]) for piece in re.split(rb"(?m)^(?=[<>])", data)]
    said: list[Said] = [("user" if who == b">" else "service", text) for who, text in turns]
    found = hear(cut(said, size), body_bytes=100)
    assert json.loads(har_text(found))["log"]["version"] == "1.2"
    for each in found:
        assert each.cost_bytes > 0
        assert len(each.request_body.data) <= each.request_body.limit
        shlex.split(curl_of(each).text)
        json.dumps(detail(each))
        with suppress(HTTPError):
            edited(each, {}).encoded()
    bodies = [(bytes(each.request_body.data), bytes(each.response_body.data)) for each in found]
    heads = [
        (each.method, each.target, each.request_fields, each.status, each.response_fields) for each in found
    ]
    messages = [[(part.kind, part.size, part.data) for part in each.messages] for each in found]
    return [*zip(heads, bodies, messages, [each.state for each in found], strict=True)]


def exchanges(data: bytes, random: Random) -> bool:
    """The same exchanges are found however the bytes are cut, and each can be shown in every form."""
    whole = _exchanges_in(data, len(data) + 1)
    assert whole == _exchanges_in(data, random.choice((1, 2, 7, 100, 5000)))
    return any(each[-1] is State.DONE for each in whole)  # type: ignore[index]


# ---- addresses and settings --------------------------------------------------------------------------------


def _text_of(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def relay_addresses(data: bytes, random: Random) -> bool:
    """An address is refused in one line, or shown as one that means the same."""
    role = random.choice((Role.LISTEN, Role.TARGET))
    try:
        found = parse_address(_text_of(data), role)
    except UsageError:
        return False
    if re.fullmatch(r"[\w.:-]+", found.host):  # others are shown without the quotes that they need
        again = parse_address(str(found), role)
        assert (again.transport, again.host, again.port) == (found.transport, found.host, found.port)
    return True


_READERS: tuple[values.Reader, ...] = (
    values.address(DEFAULT_PORT),
    mapping,
    web_target,
    values.port_ranges,
    values.rate,
    values.seconds,
    values.timeout,
    values.host,
    values.name,
    values.port,
    values.port_or_0,
    values.flag,
    names.domain,
    names.subdomain,
    names.host_patterns,
    names.headers,
    names.networks,
    names.path_prefix,
    names.basic_auth,
)


def settings(data: bytes, _random: Random) -> bool:
    """Each reader of a setting takes a text or raises its error; an address is shown as it is read."""
    accepted = False
    for reader in _READERS:
        with suppress(ConfigError):
            found: Any = reader(_text_of(data))
            accepted = True
            if reader is _READERS[0]:
                assert reader(str(found)) == found
    return accepted


_folder = tempfile.TemporaryDirectory(prefix="gnar-fuzz-")


def toml(data: bytes, random: Random) -> bool:
    """A file of settings is refused in one line, or each of its proxies has a name."""
    path = Path(_folder.name, "gnar.toml")
    path.write_bytes(data)
    try:
        if random.random() < 0.3:
            load_server({"config": str(path)}, {})
        else:
            proxies = load_client({"config": str(path)}, {}).proxies
            assert len({proxy.proxy_name for proxy in proxies}) == len(proxies) > 0
    except ConfigError:
        return False
    return True


def credentials(data: bytes, _random: Random) -> bool:
    """An Authorization field names a user and a password, both in UTF-8, or nobody."""
    found = credentials_of(data)
    if found is None:
        return False
    user, password = (each.decode() for each in found)
    again = b64encode(f"{user}:{password}".encode())
    assert ":" not in user
    assert len(again) > MAX_HEADER_BYTES - 10 or credentials_of(b"Basic " + again) == found
    return True


def hashes(data: bytes, _random: Random) -> bool:
    """A text that is a usable hash is no plain password, and what it costs can be told."""
    text = _text_of(data)
    if passwords.find_defect(text):
        return False
    assert passwords.is_hash(text)
    return True


def service_answers(data: bytes, _random: Random) -> bool:
    """The name of a service that was asked can be shown on a line of a terminal, whatever it has answered."""
    name = name_in_answer(data)
    assert name.isprintable()
    assert 0 < len(name) <= MAX_SERVICE_NAME
    return b"<title" in data.lower() and not name.endswith("HTTP")


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        *(frames, messages, announcements, datagrams, json_datagrams, yamux),
        *(http_requests, http_responses, exchanges),
        *(heads_to_pass, h2_openings, chunked_bodies, credentials, hashes, hello),
        *(connect_answers, socks_answers, proxy_headers, websocket_frames, websocket_heads),
        *(relay_addresses, settings, toml, service_answers),
    )
}
