"""The codec alone: both roles against each other, bodies in pieces, and any bytes at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnar_lib.errors import ConnClosed, GnarError, ProtocolError
from gnar_lib.http import ClientCodec, HTTPError, Limits, ServerCodec
from gnar_lib.http.head import HeadBuffer, check_request
from gnar_lib.net import Crew, SocketConn, deadline
from tests.helpers.conns import tcp_pair
from tests.helpers.web import WAIT_S
from tests.peers.mux import clean, session_pair

if TYPE_CHECKING:
    from gnar_lib.http import RequestHead
    from gnar_lib.net import Conn

LIMITS = Limits()
PIECE = bytes(range(256)) * 1000
Serve = Callable[[ServerCodec], None]

tokens = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=20)
visible = st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f\x85\xa0")
values = st.text(visible, max_size=30)
cuts_anywhere = st.lists(st.integers(0, 5000), max_size=8)
OWN = {"host", "content-length", "transfer-encoding", "expect", "connection", "upgrade"}  # with a meaning
targets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=50)


class Source:
    """A conn from which given pieces come, and which keeps what is sent."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.sent = b""

    def recv(self, size: int) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]

    def sendall(self, data: bytes) -> None:
        self.sent += data


def server(*pieces: bytes, limits: Limits = LIMITS) -> ServerCodec:
    return ServerCodec(Source(*pieces), limits)  # type: ignore[arg-type]


def client(*pieces: bytes) -> ClientCodec:
    codec = ClientCodec(Source(*pieces), LIMITS)  # type: ignore[arg-type]
    codec.send_head("GET", "/", [("Host", "a")])
    codec.end_body()
    return codec


def body_of(codec: ServerCodec | ClientCodec) -> bytes:
    return b"".join(iter(codec.receive_body, b""))


def serve_and_close(serve: Serve, conn: SocketConn) -> None:
    try:
        serve(ServerCodec(conn, LIMITS))
    finally:
        conn.close()


@contextmanager
def joined(serve: Serve, over: str) -> Iterator[ClientCodec]:
    """Yield a client whose server runs in a greenlet, over a socket or over a stream of a session."""
    with clean(2 * WAIT_S), deadline(WAIT_S, "an exchange"), session_pair() as (ours, theirs):
        crew = Crew("http")
        if over == "stream":
            theirs.serve(crew, lambda stream: serve(ServerCodec(stream, LIMITS)))
            near: Conn = ours.open()
        else:
            near, far = tcp_pair()
            crew.spawn(serve_and_close, serve, far)
        yield ClientCodec(near, LIMITS)
        near.close()
        crew.wait_empty()


# ---- both roles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framing", [("Content-Length", str(20 * len(PIECE))), ("Transfer-Encoding", "chunked")]
)
@pytest.mark.parametrize("over", ["socket", "stream"])
def test_bodies_pass_in_pieces_both_ways(framing: tuple[str, str], over: str) -> None:
    heads: list[RequestHead] = []

    def serve(codec: ServerCodec) -> None:
        for _ in range(3):
            heads.append(codec.receive_head())
            codec.send_head(200, [framing])
            while piece := codec.receive_body():  # the answer begins before the request has ended
                assert len(piece) <= 1 << 16
                codec.send_body(piece)
            codec.end_body()
            assert codec.start_next()

    def send(codec: ClientCodec) -> None:
        for _ in range(20):
            codec.send_body(PIECE)
        codec.end_body()

    with joined(serve, over) as codec:
        for number in range(3):
            codec.send_head("PUT", f"/{number}", [("Host", "a"), framing])
            sender = gevent.spawn(send, codec)
            assert codec.receive_head().status == 200
            assert body_of(codec) == PIECE * 20
            sender.get()
            assert codec.start_next()
    assert [(head.method, head.target) for head in heads] == [("PUT", f"/{number}") for number in range(3)]


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    codec = client(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 200\r\nX: a\r\n\r\n", b"all", b" of it")
    head = codec.receive_head()
    assert (head.status, head.values(b"x")) == (200, [b"a"])
    assert body_of(codec) == b"all of it"
    assert not codec.start_next()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\nX: a\n\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 999 no\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ],
)
def test_what_is_no_response_is_an_error_of_the_peer(raw: bytes) -> None:
    codec = client(raw)
    with pytest.raises(ProtocolError):  # noqa: PT012  (the head or the body is wrong)
        codec.receive_head()
        body_of(codec)


def test_a_defect_in_a_head_is_found_before_anything_is_sent() -> None:
    codec = server(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    codec.receive_head()
    for status, fields in ((200, [("X", "a\r\nSet-Cookie: b")]), (200, [("X: a", "b")]), (99, [])):
        with pytest.raises(ValueError, match=r"Illegal|should be"):
            codec.send_whole(status, fields, b"")
    codec.send_whole(200, [], b"fine")
    source = codec._conn
    assert isinstance(source, Source)
    assert source.sent == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"


def test_a_body_that_is_cut_off_is_not_taken_for_the_whole() -> None:
    codec = server(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab")
    codec.receive_head()
    assert codec.receive_body() == b"ab"
    assert not codec.has_whole_body
    for _ in range(2):
        with pytest.raises((HTTPError, ConnClosed)):
            codec.receive_body()
    assert not codec.start_next()


# ---- any bytes ---------------------------------------------------------------------------------------------


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the bytes, cut at some places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


def outcome(*pieces: bytes, limits: Limits = LIMITS) -> list[object]:
    """Return all requests with their bodies up to the end or the first error."""
    codec = server(*pieces, limits=limits)
    found: list[object] = []
    try:
        while codec.wait_for_head():
            found.append(codec.receive_head())
            found.append(body_of(codec))
            codec.send_whole(404, [], b"")
            if not codec.start_next():
                break
    except HTTPError as exc:
        found.append(exc.status)
    return found


@settings(deadline=None)
@given(st.binary(max_size=300), cuts_anywhere)
def test_any_bytes_are_refused_the_same_in_whatever_pieces(data: bytes, cuts: list[int]) -> None:
    assert outcome(*pieces_of(data, cuts)) == outcome(data)


PARTS = (
    *(b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n"),
    *(b"Host: a\r\n", b"X: y\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"5\r\nhello\r\n", b"1;x\r\na\r\n", b"0\r\n\r\n", b"0\r\n", b"hello", b"X" * 300),
    *(b"Upgrade: x\r\nConnection: upgrade\r\n", b"\r\n", b"\n", b"\r", b" "),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14), cuts_anywhere)
def test_parts_of_requests_mean_the_same_in_whatever_pieces(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    limits = Limits(head_bytes=400, target_bytes=200)
    assert outcome(*pieces_of(data, cuts), limits=limits) == outcome(data, limits=limits)


@settings(deadline=None)
@given(
    tokens,
    targets.map(lambda target: "/" + target),
    st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in OWN), values), max_size=10),
    st.lists(st.binary(min_size=1, max_size=100), max_size=10),
    cuts_anywhere,
)
def test_what_was_sent_is_what_is_received(
    method: str, target: str, fields: list[tuple[str, str]], chunks: list[bytes], cuts: list[int]
) -> None:
    lines = [f"{method} {target} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked"]
    lines += [f"{name}: {value}" for name, value in fields]
    data = "\r\n".join([*lines, "", ""]).encode("latin-1")
    data += b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    codec = server(*pieces_of(data + b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n", cuts))
    received = codec.receive_head()
    assert (received.method, received.target) == (method, target)
    assert received.fields[2:] == [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    assert body_of(codec) == b"".join(chunks)
    if method not in {"CONNECT", "HEAD"}:
        codec.send_whole(200, [], b"x")
        assert codec.start_next()
        assert codec.receive_head().target == "/last"


def test_a_head_costs_the_same_however_it_comes() -> None:
    buffer, looked_at = HeadBuffer(LIMITS), 0

    class Counting(bytearray):
        def find(self, sub: bytes, start: int = 0) -> int:  # type: ignore[override]
            nonlocal looked_at
            looked_at += len(self) - start
            return super().find(sub, start)

    buffer.received = Counting()
    for _ in range(8000):
        buffer.received += b"G"
        assert buffer.take() is None
    assert looked_at == 8000


@pytest.mark.parametrize("head", [b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n\r\n"])
def test_a_head_of_nothing_is_refused(head: bytes) -> None:
    with pytest.raises(GnarError):
        check_request(head, LIMITS)


def test_a_conn_that_breaks_is_an_error_of_the_conn() -> None:
    near, far = tcp_pair()
    codec = ServerCodec(near, LIMITS)
    far.sendall(b"GET / HT")
    assert codec.wait_for_head()
    far.abort()
    with pytest.raises(ConnClosed):
        codec.receive_head()
    assert isinstance(near, SocketConn)
    near.close()
