"""Frames of a WebSocket: one table of bytes, read at once and byte by byte, and what is sent."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import dataclass, field

import pytest

from gnar_lib.transport.ws_engine import LEAST_BYTES, MAX_TINY_FRAMES, MOST_FRAMES, WebSocketEngine
from tests.helpers.exchanges import frame
from tests.helpers.websocket import BINARY, CLOSE, MASK, PING, PONG, TEXT, frames_in

FIN, CONTINUED = 0x80, 0
NORMAL = (1000).to_bytes(2, "big")
KIB = 1024

Frames = list[tuple[int, bytes]]


@dataclass
class Case:
    """What a peer sends, and what comes of it."""

    name: str
    sent: bytes  # by a client, so with masks; see `of_server`
    stream: bytes = b""
    is_end: bool = False
    broken: str = ""  # words of the error
    told: Frames = field(default_factory=list)  # the frames with which the peer is answered


def by_client(code: int, payload: bytes = b"", first: int = FIN) -> bytes:
    return frame(code, payload, mask=MASK, first=first)


def close(code: int, reason: bytes = b"") -> bytes:
    return by_client(CLOSE, code.to_bytes(2, "big") + reason)


def refused(name: str, sent: bytes, code: int, words: str) -> Case:
    """Return the case of something behind which nothing is read, and of which the peer is told."""
    told = [(FIN | CLOSE, code.to_bytes(2, "big"))]
    return Case(name, by_client(BINARY, b"before") + sent, b"before", broken=words, told=told)


RANDOM = os.urandom(70_000)
OK = [
    Case("one message", by_client(BINARY, b"hello"), b"hello"),
    Case("two messages", by_client(BINARY, b"hello ") + by_client(BINARY, b"world"), b"hello world"),
    Case("an empty message", by_client(BINARY) + by_client(BINARY, b"x"), b"x"),
    *(Case(f"{n} bytes", by_client(BINARY, RANDOM[:n]), RANDOM[:n]) for n in (125, 126, 127, 300)),
    Case(
        "fragments",
        by_client(BINARY, b"one ", 0) + by_client(CONTINUED, b"two ", 0) + by_client(CONTINUED, b"three"),
        b"one two three",
    ),
    Case(
        "empty fragments",
        by_client(BINARY, b"", 0)
        + by_client(CONTINUED, b"", 0)
        + by_client(CONTINUED)
        + by_client(BINARY, b"x"),
        b"x",
    ),
    Case(
        "ping between fragments",
        by_client(BINARY, b"one ", 0) + by_client(PING, b"?") + by_client(CONTINUED, b"two"),
        b"one two",
        told=[(FIN | PONG, b"?")],
    ),
    Case("ping without a payload", by_client(PING), told=[(FIN | PONG, b"")]),
    Case("the longest ping", by_client(PING, b"x" * 125), told=[(FIN | PONG, b"x" * 125)]),
    Case("pong that nobody has asked for", by_client(PONG, b"x") + by_client(BINARY, b"y"), b"y"),
    Case("close", by_client(BINARY, b"all") + close(1000), b"all", is_end=True),
    Case("close with a reason", close(1000, "grüße".encode()), is_end=True),
    Case("close without a status", by_client(CLOSE), is_end=True),
    Case("bytes behind close", close(1000) + by_client(BINARY, b"x") + b"\xff" * 100, is_end=True),
    Case("close in the middle of a message", by_client(BINARY, b"x", 0) + close(1000), b"x", is_end=True),
]
NOT_OK = [
    refused("text", by_client(TEXT, b"hello"), 1003, "text has come"),
    refused("text in fragments", by_client(TEXT, b"hello", 0), 1003, "text has come"),
    *(
        refused(f"reserved bit {bit:x}", by_client(BINARY, b"x", FIN | bit), 1002, "Reserved bit")
        for bit in (16, 32, 64)
    ),
    *(refused(f"opcode {code}", by_client(code, b"x"), 1002, "Invalid opcode") for code in (3, 7, 11, 15)),
    refused("no mask", frame(BINARY, b"x"), 1002, "unmasked frame"),
    refused("ping that is too long", by_client(PING, b"x" * 126), 1002, "payload len > 125"),
    refused("fragment of a ping", by_client(PING, b"x", 0), 1002, "fragment control frame"),
    refused("long form of a short length", b"\x82\xfe\x00\x7d" + MASK, 1002, "1 would have sufficed"),
    refused(
        "longest form of a length",
        b"\x82\xff" + (65535).to_bytes(8, "big") + MASK,
        1002,
        "2 would have sufficed",
    ),
    refused("negative length", b"\x82\xff\x80" + bytes(7) + MASK, 1002, "non-zero MSB"),
    refused("continuation of nothing", by_client(CONTINUED, b"x"), 1002, "unexpected CONTINUATION"),
    refused(
        "message in a message",
        by_client(BINARY, b"", 0) + by_client(BINARY, b"x"),
        1002,
        "expected CONTINUATION",
    ),
    refused("close of one byte", by_client(CLOSE, b"\x03"), 1002, "1 byte payload"),
    refused("close with no status of a wire", close(1005), 1002, "local-only"),
    refused("close with no status at all", close(999), 1002, "invalid code"),
    refused("reason that is no text", close(1000, b"\xff"), 1007, "reason"),
    Case("going away", close(1001), broken="has closed the WebSocket: 1001"),
    Case("status of a program's own", close(4321, b"bye"), broken="has closed the WebSocket: 4321 bye"),
    Case("reason with a line's end", close(1011, b"oh\r\n\x1b[31mno"), broken="1011 oh[31mno"),
    Case("long reason", close(1011, b"x" * 123), broken="1011 " + "x" * 60),
]


class Reader:
    """Reads what an engine gets, and fetches what the engine makes."""

    def __init__(self, *, is_client: bool = False) -> None:
        self.engine = WebSocketEngine(is_client=is_client)
        self.stream, self.made = bytearray(), bytearray()
        self._buffer = memoryview(bytearray(64 * KIB))

    def feed(self, data: bytes, step: int = 1 << 30, size: int = 64 * KIB) -> None:
        """Let the engine have `data` in pieces, and read through a buffer of `size` bytes."""
        for at in range(0, len(data), step):
            self.engine.receive(data[at : at + step])
            while count := self.engine.read_into(self._buffer[:size]):
                self.stream += self._buffer[:count]
            self.made += self.engine.made.read()

    @property
    def told(self) -> Frames:
        return [(first, payload) for first, _, payload in frames_in(bytes(self.made))]


@pytest.mark.parametrize("step", [1 << 30, 1, 3], ids=["at once", "byte by byte", "three bytes at a time"])
@pytest.mark.parametrize("case", [*OK, *NOT_OK], ids=lambda case: case.name)
def test_frames_of_a_client_are_read(case: Case, step: int) -> None:
    reader = Reader()
    reader.feed(case.sent, step)
    assert reader.stream == case.stream
    assert reader.engine.peer_ended is case.is_end
    assert case.broken in reader.engine.why_broken
    assert bool(case.broken) is bool(reader.engine.why_broken)
    assert reader.told == case.told


def test_shown_reason_is_short() -> None:
    reader = Reader()
    reader.feed(close(1011, b"x" * 123))
    assert reader.engine.why_broken.endswith(" " + "x" * 60)


@pytest.mark.parametrize("step", [1 << 30, 1])
def test_frames_of_a_server_have_no_mask(step: int) -> None:
    reader = Reader(is_client=True)
    reader.feed(frame(BINARY, b"hello") + frame(PING, b"?"), step)
    assert (bytes(reader.stream), reader.engine.why_broken) == (b"hello", "")
    ((first, mask, payload),) = frames_in(bytes(reader.made))
    assert (first, len(mask), payload) == (FIN | PONG, 4, b"?")
    reader.feed(by_client(BINARY, b"x"), step)
    assert "unexpected masked frame" in reader.engine.why_broken


@pytest.mark.parametrize("size", [1, 100, 64 * KIB])
def test_long_frames_are_read_through_a_buffer_of_any_size(size: int) -> None:
    reader, count = Reader(), len(RANDOM) if size > 1 else 2000
    reader.feed(by_client(BINARY, RANDOM[:count]) + by_client(BINARY, b"end"), 32 * KIB, size)
    assert reader.stream == RANDOM[:count] + b"end"


def test_message_without_an_end_takes_no_more_memory_than_a_piece_of_it() -> None:
    reader, piece = Reader(), bytes(32 * KIB)
    reader.feed(b"\x02\xff" + (1 << 62).to_bytes(8, "big") + MASK)
    tracemalloc.start()
    for _ in range(200):
        reader.feed(piece)
        reader.stream.clear()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(piece)


# ---- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (1, b"\x01"),
        (125, b"\x7d"),
        (126, b"\x7e\x00\x7e"),
        (65535, b"\x7e\xff\xff"),
        (65536, b"\x7f" + (65536).to_bytes(8, "big")),
    ],
)
def test_write_is_one_message_with_the_shortest_length(size: int, length: bytes) -> None:
    data = os.urandom(size)
    server, client = WebSocketEngine(is_client=False), WebSocketEngine(is_client=True)
    for kind in (bytes, bytearray, memoryview):
        assert server.write(kind(data)) == client.write(kind(data)) == size
        assert server.made.read() == b"\x82" + length + data
        made = bytes(client.made.read())
        assert made[: 1 + len(length)] == b"\x82" + bytes([length[0] | 0x80]) + length[1:]
        ((first, mask, payload),) = frames_in(made)
        assert (first, len(mask), payload) == (0x82, 4, data)


def test_each_frame_of_a_client_has_a_mask_of_its_own() -> None:
    client = WebSocketEngine(is_client=True)
    for _ in range(100):
        client.write(b"x")
    assert len({mask for _, mask, _ in frames_in(bytes(client.made.read()))}) > 90


def test_nothing_is_kept_of_what_comes_behind_the_end() -> None:
    for end in (close(1000), close(1001), by_client(TEXT, b"x")):
        reader = Reader()
        reader.feed(end)
        tracemalloc.start()
        for _ in range(50):
            reader.engine.receive(bytes(32 * KIB))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 32 * KIB


def test_nothing_is_kept_of_a_frame_that_was_read_in_pieces() -> None:
    engines = [WebSocketEngine(is_client=False) for _ in range(20)]
    sent = by_client(BINARY, RANDOM)
    buffer = memoryview(bytearray(len(RANDOM)))
    tracemalloc.start()
    for engine in engines:
        engine.receive(sent)
        assert engine.read_into(buffer[:100]) == 100
        assert engine.read_into(buffer[100:]) == len(RANDOM) - 100
        assert buffer == RANDOM
        assert engine.read_into(buffer) == 0  # as a conn reads before it waits
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < len(engines) * 8 * KIB


def test_goodbye_is_close_and_nothing_follows_not_even_pong() -> None:
    reader = Reader()
    reader.engine.say_goodbye()
    reader.engine.say_goodbye()
    reader.feed(by_client(PING) + by_client(BINARY, b"still read"))
    reader.engine.look()
    reader.engine.look()
    reader.feed(by_client(TEXT, b"refused"))
    assert reader.stream == b"still read"
    assert reader.told == [(FIN | CLOSE, NORMAL)]


def test_stream_goes_on_behind_the_peers_close() -> None:
    reader = Reader()
    reader.feed(close(1000))
    reader.engine.write(b"answer")
    reader.engine.say_goodbye()
    assert frames_in(bytes(reader.engine.made.read())) == [
        (FIN | BINARY, b"", b"answer"),
        (FIN | CLOSE, b"", NORMAL),
    ]


def test_look_pings_where_nothing_was_sent_since_the_last_one() -> None:
    reader = Reader()

    def made_by_look() -> list[tuple[int, bytes, bytes]]:
        reader.engine.look()
        return frames_in(bytes(reader.engine.made.read()))

    ping = [(FIN | PING, b"", b"")]
    assert [made_by_look(), made_by_look()] == [ping, ping]
    reader.engine.write(b"x")
    reader.engine.made.read()
    assert [made_by_look(), made_by_look()] == [[], ping]
    reader.feed(by_client(PING))
    assert [made_by_look(), made_by_look()] == [[], ping]


# ---- floods ------------------------------------------------------------------------------------------------


def test_of_many_pings_the_last_one_is_answered_and_nothing_queues() -> None:
    reader = Reader()
    reader.feed(b"".join(by_client(PING, b"%d" % number) for number in range(500)))
    assert reader.told == [(FIN | PONG, b"499")]


def test_while_the_peer_takes_nothing_one_pong_waits_and_one_is_owed() -> None:
    engine, buffer = WebSocketEngine(is_client=False), memoryview(bytearray(100))
    for number in range(500):
        engine.receive(by_client(PING, b"%03d" % number))
        engine.read_into(buffer)
    assert frames_in(bytes(engine.made.read())) == [(FIN | PONG, b"", b"000")]
    engine.write(b"x")
    assert frames_in(bytes(engine.made.read())) == [(FIN | PONG, b"", b"499"), (FIN | BINARY, b"", b"x")]


TINY = {
    "pings": by_client(PING),
    "pongs": by_client(PONG),
    "empty messages": by_client(BINARY),
    "short messages": by_client(BINARY, b"x" * (LEAST_BYTES - 1)),
}


@pytest.mark.parametrize("kind", TINY)
def test_flood_of_frames_that_carry_nothing_ends_the_stream(kind: str) -> None:
    reader = Reader()
    reader.feed(TINY[kind] * MAX_TINY_FRAMES)
    assert not reader.engine.why_broken
    reader.feed(TINY[kind] * MAX_TINY_FRAMES)
    assert "too many frames" in reader.engine.why_broken
    assert reader.told[-1] == (FIN | CLOSE, (1008).to_bytes(2, "big"))


@pytest.mark.parametrize("kind", TINY)
def test_frames_that_carry_nothing_may_come_for_ever_if_slowly(kind: str) -> None:
    reader = Reader()
    for _ in range(3):
        reader.feed(TINY[kind] * MAX_TINY_FRAMES)
        reader.engine.look()
    assert not reader.engine.why_broken


def test_many_short_frames_that_carry_something_are_no_flood() -> None:
    reader = Reader()
    reader.feed(by_client(BINARY, b"x" * LEAST_BYTES) * (3 * MAX_TINY_FRAMES))
    assert not reader.engine.why_broken
    assert len(reader.stream) == 3 * MAX_TINY_FRAMES * LEAST_BYTES


@pytest.mark.parametrize("kind", [BINARY, PING])
def test_only_so_many_small_frames_are_read_at_once_but_never_none(kind: int) -> None:
    """A piece of 64 KiB may hold thousands, which would hold everybody up for 50 ms."""
    engine, buffer = WebSocketEngine(is_client=False), memoryview(bytearray(64 * KIB))
    small, others = by_client(BINARY, b"12345678"), MAX_TINY_FRAMES if kind == PING else 0
    engine.receive(by_client(PING) * others + small * 5 * MOST_FRAMES)
    counts = []
    while count := engine.read_into(buffer):
        counts.append((count, engine.has_more))
    assert sum(count for count, _ in counts) == 8 * 5 * MOST_FRAMES
    assert max(counts) == (8 * MOST_FRAMES, True)
    assert not engine.has_more
