"""What is made of the bytes of a connection: exchanges, and nothing of other protocols."""

from __future__ import annotations

import time
import zlib

import pytest

from gnar_lib.inspect import Exchange, Inspector, Origin, State
from gnar_lib.inspect import store as store_module
from gnar_lib.inspect.parser import Budget
from tests.helpers.exchanges import Said, cut, frame, hear

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"

# What is said, and of each exchange: method, status, body of the request, body of the answer.
Expected = list[tuple[str, int, bytes, bytes]]
WHOLE: dict[str, tuple[list[Said], Expected]] = {
    "one": ([("user", GET), ("service", OK)], [("GET", 200, b"", b"ok")]),
    "keep-alive": (
        [("user", GET), ("service", OK), ("user", GET), ("service", OK)],
        [("GET", 200, b"", b"ok")] * 2,
    ),
    "pipelined": (
        [("user", GET * 3), ("service", OK + b"HTTP/1.1 204 No Content\r\n\r\n" + OK)],
        [("GET", 200, b"", b"ok"), ("GET", 204, b"", b""), ("GET", 200, b"", b"ok")],
    ),
    "a head": (
        [("user", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET), ("service", OK[:-2] + OK)],
        [("HEAD", 200, b"", b""), ("GET", 200, b"", b"ok")],
    ),
    "posted": (
        [("user", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + GET), ("service", OK * 2)],
        [("POST", 200, b"abc", b"ok"), ("GET", 200, b"", b"ok")],
    ),
    "chunked both ways, with an extension and a trailer": (
        [
            (
                "user",
                b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
            ),
            (
                "service",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n01\r\nk\r\n0\r\n\r\n",
            ),
            ("user", GET),
            ("service", OK),
        ],
        [("PUT", 200, b"abc", b"ok"), ("GET", 200, b"", b"ok")],
    ),
    "until the end": (
        [("user", b"GET / HTTP/1.0\n\n"), ("service", b"HTTP/1.0 404 Not Found\n\nnot here")],
        [("GET", 404, b"", b"not here")],
    ),
    "interim answers": (
        [
            ("user", b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"),
            ("service", b"HTTP/1.1 100 Continue\r\n\r\n"),
            ("user", b"a"),
            ("service", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
        ],
        [("POST", 200, b"a", b"ok")],
    ),
    "an early answer": (
        [
            ("user", b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"),
            ("service", b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"),
            ("user", b"cd" + GET),
            ("service", OK),
        ],
        [("POST", 413, b"abcd", b""), ("GET", 200, b"", b"ok")],
    ),
    "an offer of another protocol that is not taken": (
        [("user", b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"), ("user", GET), ("service", OK * 2)],
        [("GET", 200, b"", b"ok")] * 2,
    ),
    "a tunnel": (
        [
            ("user", b"CONNECT a:1 HTTP/1.1\r\n\r\n"),
            ("service", b"HTTP/1.1 200 OK\r\n\r\nhi"),
            ("user", b"\0ho"),
        ],
        [("CONNECT", 200, b"\0ho", b"hi")],
    ),
    "a websocket": (
        [
            ("user", UPGRADE),
            ("service", SWITCHED + b"\r\n" + frame(1, b"hi")),
            ("user", frame(8, b"", mask=b"1234")),
        ],
        [("GET", 101, b"", b"")],
    ),
}


def told(exchanges: list[Exchange]) -> Expected:
    return [
        (each.method, each.status, bytes(each.request_body.data), bytes(each.response_body.data))
        for each in exchanges
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("name", WHOLE)
def test_exchanges_are_the_same_however_the_bytes_are_cut(name: str, size: int) -> None:
    said, expected = WHOLE[name]
    found = hear(cut(said, size))
    assert told(found) == expected
    assert {each.state for each in found} == {State.DONE}, [each.problem for each in found]


def test_what_is_known_of_an_exchange() -> None:
    (found,) = hear([("user", GET), ("service", OK)])
    assert (found.path, found.query, found.version, found.request_fields) == (
        b"/a",
        b"b=c",
        "1.1",
        [(b"Host", b"x")],
    )
    assert (found.reason, found.response_fields) == (b"OK", [(b"Content-Length", b"2")])
    assert (found.proxy, found.user) == ("web", "192.0.2.1:4000")
    assert found.request_s is not None
    assert found.first_byte_s is not None
    assert found.duration_s is not None
    assert 0 <= found.request_s <= found.first_byte_s <= found.duration_s < 10


OTHER: dict[str, list[Said]] = {
    "a service that speaks first": [("service", b"SSH-2.0-x\r\n"), ("user", b"SSH-2.0-y\r\n")],
    "TLS": [("user", b"\x16\x03\x01\x02\x00\x01"), ("service", b"\x16")],
    "HTTP/2": [("user", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")],
    "a line without an end": [("user", b"G" * 100_000)],
    "a head without an end": [("user", b"GET / HTTP/1.1\r\nA: " + b"b" * 100_000)],
    "nothing but line ends": [("user", b"\r\n" * 50_000)],
    "nothing": [],
}


@pytest.mark.parametrize("size", [1, 60_000])
@pytest.mark.parametrize("name", OTHER)
def test_of_what_is_no_http_nothing_is_kept(name: str, size: int) -> None:
    assert hear(cut(OTHER[name], size)) == []


@pytest.mark.parametrize(
    "said",
    [
        [("user", GET)],
        [("user", GET), ("service", OK[:-1])],
        [("user", GET), ("service", b"220 smtp\r\n")],
        [("user", GET), ("service", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n")],
        [("user", GET), ("service", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")],
        [("user", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n")],
        [("user", GET * 100)],
    ],
)
def test_an_exchange_that_does_not_come_to_its_end_is_broken_and_says_why(said: list[Said]) -> None:
    found = hear(said)
    assert found
    assert all(each.state is State.BROKEN and each.problem for each in found)


def test_bodies_are_kept_to_their_bound_and_counted_to_their_end() -> None:
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    (found,) = hear(cut([("user", GET), ("service", long)], 999), body_bytes=1000)
    assert (found.response_body.size, len(found.response_body.data)) == (100_000, 1000)
    assert found.response_body.is_truncated


def test_who_the_user_is_stands_in_each_request_if_the_server_puts_it_there() -> None:
    asked = b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.9, 127.0.0.1\r\n\r\n"
    said: list[Said] = [("user", asked), ("service", OK)]
    assert [each.user for each in hear(said, tells_users=True)] == ["192.0.2.9"]
    assert [each.user for each in hear(said)] == ["192.0.2.1:4000"]


# ---- WebSockets --------------------------------------------------------------------------------------------


def messages(said: list[Said], size: int = 10_000, fields: bytes = b"") -> list[tuple[bool, str, int, bytes]]:
    opening: list[Said] = [("user", UPGRADE), ("service", SWITCHED + fields + b"\r\n")]
    (found,) = hear(cut([*opening, *said], size))
    assert (found.state, found.is_websocket) == (State.DONE, True)
    return [(each.is_of_user, each.kind, each.size, each.data) for each in found.messages]


@pytest.mark.parametrize("size", [1, 10_000])
def test_messages_of_both_directions_are_kept_in_their_order(size: int) -> None:
    said: list[Said] = [
        ("user", frame(1, b"hello", mask=b"abcd")),
        ("service", frame(1, b"he", first=0) + frame(9, b"?") + frame(0, b"llo")),
        ("user", frame(10, b"?", mask=b"\0\0\0\0") + frame(2, bytes(70_000), mask=b"\x01\x02\x03\x04")),
        ("service", frame(8, b"\x03\xe8bye")),
    ]
    assert messages(said, size) == [
        (True, "text", 5, b"hello"),
        (False, "ping", 1, b"?"),
        (False, "text", 5, b"hello"),
        (True, "pong", 1, b"?"),
        (True, "binary", 70_000, bytes(4096)),
        (False, "close", 5, b"\x03\xe8bye"),
    ]


@pytest.mark.parametrize("extension", ["", "; server_no_context_takeover"])
def test_compressed_messages_are_shown_as_they_were_meant(extension: str) -> None:
    fields = f"Sec-WebSocket-Extensions: permessage-deflate{extension}\r\n".encode()
    packer = zlib.compressobj(wbits=-15)
    said: list[Said] = []
    for text in (b"first " * 10, b"first again " * 1000):
        if extension:
            packer = zlib.compressobj(wbits=-15)
        packed = (packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
        said.append(("service", frame(1, packed, first=0xC0)))
    expected = [(False, "text", 60, b"first " * 10), (False, "text", 12_000, (b"first again " * 1000)[:4096])]
    assert messages(said, 5, fields) == expected


def test_a_message_that_becomes_huge_is_not_decompressed_to_its_end() -> None:
    packer = zlib.compressobj(wbits=-15)
    packed = (packer.compress(bytes(100 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    extension = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    ((_, _, size, data),) = messages([("service", frame(2, packed, first=0xC0))], 100_000, extension)
    assert (size, data) == (len(packed), bytes(4096))


def test_frames_that_make_no_sense_end_the_messages_and_not_the_exchange() -> None:
    assert messages([("service", frame(1, b"a") + b"\xff\xff" + frame(1, b"b"))]) == [
        (False, "text", 1, b"a")
    ]


# ---- bounds of everything together -------------------------------------------------------------------------


def test_the_last_exchanges_stay_and_old_ones_make_room() -> None:
    found = hear([("user", GET), ("service", OK)] * 600)
    assert [each.id for each in found] == [*range(101, 601)]


def test_memory_of_all_exchanges_is_bounded() -> None:
    inspector = Inspector(1 << 20)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    open_one = inspector.conversation(Origin("web", ""))
    open_one.requested(GET)
    open_one.answered(answer[:500_000])
    conversation = inspector.conversation(Origin("web", ""))
    for _ in range(100):
        conversation.requested(GET)
        conversation.answered(answer)
    kept = sum(len(each.response_body.data) for each in inspector.store)
    assert 30 << 20 < kept <= inspector.store.cost_bytes <= store_module.MAX_BYTES
    open_one.answered(answer[500_000:])  # goes on although nobody keeps it any more
    assert open_one.last is not None
    assert (open_one.last.state, len(open_one.last.response_body.data)) == (State.DONE, 0)
    inspector.store.clear()
    assert (len(inspector.store), inspector.store.cost_bytes) == (0, 0)


def test_heads_that_are_not_whole_share_a_bound_which_is_free_again_behind_them() -> None:
    inspector = Inspector(0)
    budget: Budget = inspector._keeping.budget
    begun = [inspector.conversation(Origin("web", "")) for _ in range(200)]
    for each in begun:
        each.requested(b"GET / HTTP/1.1\r\nA: " + b"b" * 30_000)
    assert budget.taken == 200 * (19 + 30_000)
    for each in begun:
        each.give_up("")
    assert budget.taken == 0


def test_a_body_of_tiny_chunks_is_not_read_to_its_end() -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n"
    (found,) = hear([("user", GET), ("service", chunks)])
    assert (found.state, found.problem) == (State.BROKEN, "what comes consists of too little")


@pytest.mark.parametrize(
    "frames",
    [b"\x81\x00" * 40_000, b"\x01\x00" + b"\x00\x00" * 40_000, b"\x89\x00" * 40_000],
    ids=["messages", "one message", "pings"],
)
def test_a_flood_of_frames_is_not_read_to_its_end(frames: bytes) -> None:
    inspector = Inspector(1000)
    conversation = inspector.conversation(Origin("web", "user"))
    conversation.requested(UPGRADE)
    conversation.answered(SWITCHED + b"\r\n")
    began_s = time.thread_time()
    for _ in range(20):
        conversation.answered(frames)
    took_s = time.thread_time() - began_s
    (found,) = inspector.store
    assert found.has_lost_messages
    assert found.response_body.size == 20 * len(frames)
    assert took_s < 0.5  # a tenth of that is usual; all frames take 2 s
    conversation.give_up("")
