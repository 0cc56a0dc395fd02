"""Frames, states and windows: the numbers on the wire, how a stream ends, how much a peer may send."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib.errors import ProtocolError
from gnar_lib.yamux import frame, window
from gnar_lib.yamux.state import TRANSITIONS, Event, State

WIRE = Path(__file__).resolve().parent.parent / "wire"


def test_wire_numbers_are_those_of_the_specification() -> None:
    assert (frame.DATA, frame.WINDOW_UPDATE, frame.PING, frame.GO_AWAY) == (0, 1, 2, 3)
    assert (frame.SYN, frame.ACK, frame.FIN, frame.RST) == (1, 2, 4, 8)
    assert (frame.NORMAL, frame.PROTOCOL_ERROR, frame.INTERNAL_ERROR) == (0, 1, 2)
    assert (frame.VERSION, frame.HEADER_BYTES, frame.INITIAL_WINDOW_BYTES) == (0, 12, 262144)


def test_header_is_big_endian() -> None:
    packed = frame.pack(frame.WINDOW_UPDATE, frame.SYN | frame.FIN, 0x01020304, 0x05060708)
    assert packed.hex() == "000100050102030405060708"


@given(st.integers(0, 3), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_header_comes_back_as_it_was_packed(kind: int, flags: int, stream_id: int, length: int) -> None:
    packed = frame.pack(kind, flags, stream_id, length)
    assert frame.unpack(b"junk" + packed, 4) == (kind, flags, stream_id, length)


@pytest.mark.parametrize("header", ["010000000000000100000000", "000400000000000100000000"])
def test_unknown_version_or_type_is_an_error_of_the_protocol(header: str) -> None:
    with pytest.raises(ProtocolError):
        frame.unpack(bytes.fromhex(header))


# ---- states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_event_has_a_place_in_every_state_that_is_not_the_end(state: State, event: Event) -> None:
    expected = {
        Event.SEND_FIN: {State.OPEN: State.WE_ENDED, State.PEER_ENDED: State.ENDED},
        Event.RECEIVE_FIN: {State.OPEN: State.PEER_ENDED, State.WE_ENDED: State.ENDED},
        Event.SEND_RST: dict.fromkeys((State.OPEN, State.WE_ENDED, State.PEER_ENDED), State.RESET),
        Event.RECEIVE_RST: dict.fromkeys((State.OPEN, State.WE_ENDED, State.PEER_ENDED), State.RESET),
    }
    assert TRANSITIONS.get((state, event)) == expected[event].get(state)


# ---- windows -----------------------------------------------------------------------------------------------

INITIAL = frame.INITIAL_WINDOW_BYTES


def use(one: window.Window, count: int) -> int:
    """Have the peer send `count` bytes and the reader take them."""
    one.use_room(count)
    one.consumed += count
    return one.grant() if one.consumed >= one.half else 0


def test_window_grants_half_of_itself_at_a_time() -> None:
    one = window.Window(window.Path(), monotonic())
    assert use(one, INITIAL // 2 - 1) == 0
    assert use(one, 1) == INITIAL // 2
    assert one.room == INITIAL


def test_data_beyond_the_window_is_an_error_of_the_protocol() -> None:
    one = window.Window(window.Path(), monotonic())
    one.use_room(INITIAL)
    with pytest.raises(ProtocolError):
        one.use_room(1)


def test_window_of_a_fast_reader_on_a_long_path_doubles_up_to_its_limit() -> None:
    path = window.Path()
    path.set_rtt(60.0)  # no test takes that long
    one, sizes = window.Window(path, monotonic()), []
    while one.size < window.MAX_WINDOW_BYTES:
        assert use(one, one.size // 2) > 0
        sizes.append(one.size)
        assert one.room == one.size
    assert sizes == [INITIAL << n for n in range(1, 7)]
    assert use(one, one.size // 2) == one.size // 2
    assert one.size == window.MAX_WINDOW_BYTES


def test_window_does_not_grow_before_the_round_trip_is_known() -> None:
    one = window.Window(window.Path(), monotonic())
    use(one, INITIAL // 2)
    assert one.size == INITIAL


def test_windows_of_one_session_grow_within_a_common_limit() -> None:
    path = window.Path()
    path.set_rtt(60.0)
    several = [window.Window(path, monotonic()) for _ in range(8)]
    for one in several:
        for _ in range(10):
            use(one, one.size // 2)
    assert sum(one.size - INITIAL for one in several) == window.MAX_GROWTH_BYTES
    assert path.grown_bytes == window.MAX_GROWTH_BYTES
    for one in several:
        one.release()
    assert path.grown_bytes == 0


# ---- recordings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["go-2024-tcp-multiplex", "go-2024-udp-multiplex"])
@pytest.mark.parametrize("end", ["client", "server"])
def test_recorded_conversation_is_frames_from_end_to_end(name: str, end: str) -> None:
    chunks = json.loads((WIRE / f"{name}.json").read_text())
    data = b"".join(bytes.fromhex(chunk["hex"]) for chunk in chunks if chunk["from"] == end)
    if end == "client":
        data = data[3 + int.from_bytes(data[1:3], "big") :]  # Login comes before the first frame
    at = count = 0
    while at < len(data):
        kind, _, stream_id, length = frame.unpack(data, at)
        assert stream_id % 2 == 1
        at += frame.HEADER_BYTES + (length if kind == frame.DATA else 0)
        count += 1
    assert at == len(data)
    assert count > 5
