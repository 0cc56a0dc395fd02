"""Sessions with inputs of hypothesis: any frames to a session of ours, and two sessions over a bad link."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import gevent
from hypothesis import given, settings
from hypothesis import strategies as st

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.yamux import Session
from gnar_lib.yamux.frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from tests.helpers.loop import turn
from tests.peers.mux import Frame, Peer, clean, conn_pair, encode, stream_count

if TYPE_CHECKING:
    from gnar_lib.yamux import Stream

TIMEOUT_S = 30.0


def some_bytes(seed: int, size: int) -> bytes:
    """Return bytes that are the same for the same seed."""
    return Random(seed).randbytes(size)  # noqa: S311  (made-up bytes, no secret)


# ---- any frames --------------------------------------------------------------------------------------------

IDS = [0, 1, 2, 3, 5, 0xFFFFFFFF]
LENGTHS = [0, 1, 12, 1000, INITIAL_WINDOW_BYTES // 2, INITIAL_WINDOW_BYTES, 0xFFFFFFFF - INITIAL_WINDOW_BYTES]
data_frames = st.tuples(
    st.just(DATA),
    st.integers(0, 15),
    st.sampled_from(IDS),
    st.sampled_from(LENGTHS[:-1]).map(lambda size: some_bytes(size, size)),
)
other_frames = st.tuples(
    st.sampled_from([WINDOW_UPDATE, PING]), st.integers(0, 15), st.sampled_from(IDS), st.sampled_from(LENGTHS)
)
opening_frames = st.tuples(
    st.sampled_from([DATA, WINDOW_UPDATE]), st.just(SYN), st.sampled_from([1, 3, 5]), st.just(0)
).map(lambda each: (each[0], each[1], each[2], b"" if each[0] == DATA else 0))
frame_lists = st.lists(st.one_of(data_frames, other_frames, opening_frames), max_size=12)


@dataclass(eq=False)  # each is itself alone: two with the same bytes are not one
class ModelStream:
    """The expected state of one stream after some frames."""

    data: bytes = b""
    may_send: int = INITIAL_WINDOW_BYTES
    ended: bool = False


@dataclass
class Model:
    """The specification as a model of a server that accepts streams only when all frames have come."""

    streams: dict[int, ModelStream] = field(default_factory=dict)
    opened: list[ModelStream] = field(default_factory=list)

    def get(self, kind: int, flags: int, stream_id: int, content: bytes | int) -> bool:
        """Take one frame, and tell whether the specification allows it."""
        if flags & SYN and kind != PING:
            if stream_id % 2 == 0 or stream_id in self.streams:
                return False
            self.streams[stream_id] = ModelStream()
            self.opened.append(self.streams[stream_id])
        stream = self.streams.get(stream_id)
        if stream is None or kind == PING:
            return True
        if isinstance(content, bytes):
            if len(stream.data) + len(content) > INITIAL_WINDOW_BYTES or (content and stream.ended):
                return False
            stream.data += content
        else:
            stream.may_send += content
            if stream.may_send > 0xFFFFFFFF:
                return False
        if flags & RST:
            self.opened.remove(stream)  # nobody has accepted the stream
            del self.streams[stream_id]
        was_ended, stream.ended = stream.ended, stream.ended or bool(flags & FIN)
        return not (was_ended and flags & FIN)


@settings(max_examples=60, deadline=None)
@given(frames=frame_lists, cuts=st.lists(st.integers(1, 50), max_size=10))
def test_any_frames_do_to_a_session_what_the_specification_says(frames: list[Frame], cuts: list[int]) -> None:
    model = Model()
    allowed = all(model.get(*each) for each in frames)
    data = b"".join(encode(*each) for each in frames)
    with clean(TIMEOUT_S):
        ours, theirs = conn_pair()
        session, peer = Session(ours, is_client=False), Peer(theirs)
        sending = gevent.spawn(send_in_pieces, theirs, data, cuts)
        if allowed:
            sending.join()
            peer.send((PING, SYN, 0, 0x5EED))
            peer.recv_until((PING, ACK, 0, 0x5EED))
            for expected in model.opened:
                check(session.accept(), expected)
            session.close()
        else:
            assert peer.recv_to_end()[-1] == (GO_AWAY, 0, 0, PROTOCOL_ERROR)
            assert session.closed
        theirs.close()
        sending.join()


def send_in_pieces(conn: net.SocketConn, data: bytes, cuts: list[int]) -> None:
    with suppress(ConnError):  # the session may end meanwhile
        for cut in cuts:
            conn.sendall(data[:cut])
            data = data[cut:]
            gevent.idle()
        conn.sendall(data)


def check(stream: Stream, expected: ModelStream) -> None:
    """Compare a stream with its model."""
    data = b""
    while more := stream.recv_now(100_000):
        data += more
    assert data == expected.data
    assert (more == b"") == expected.ended


@settings(max_examples=30, deadline=None)
@given(junk=st.binary(max_size=200), is_client=st.booleans())
def test_any_bytes_end_a_session_or_leave_it_working(junk: bytes, is_client: bool) -> None:
    with clean(TIMEOUT_S):
        ours, theirs = conn_pair()
        session, crew = Session(ours, is_client=is_client), net.Crew("handlers")
        session.serve(crew, lambda stream: stream.sendall(stream.recv(10)))
        theirs.sendall(junk)
        turn()
        theirs.close()
        turn()
        assert session.closed
        assert stream_count(session) == len(crew) == 0


# ---- two of ours -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """What one end of a stream does: sends pieces, reads so many bytes at a time, and ends in some way."""

    pieces: list[int]
    read_size: int
    into: bool
    end: str


@dataclass(frozen=True)
class Plan:
    """One stream: who opens it, and what each end does."""

    by_client: bool
    sides: tuple[Side, Side]


sides = st.builds(
    Side,
    pieces=st.lists(st.sampled_from([1, 13, 5000, 70_000, 600_000]), max_size=5),
    read_size=st.sampled_from([100, 4096, 65536, 1 << 20]),
    into=st.booleans(),
    end=st.sampled_from(["shutdown", "shutdown", "close", "abort"]),
)
plans = st.lists(st.builds(Plan, by_client=st.booleans(), sides=st.tuples(sides, sides)), max_size=8)


class Outcome:
    """What one end of a stream has sent and seen."""

    def __init__(self, seed: int, side: Side) -> None:
        self.side = side
        self.sent = some_bytes(seed, sum(side.pieces))
        self.received = b""
        self.at_end = False


def run_side(stream: Stream, outcome: Outcome, crew: net.Crew) -> None:
    """Read in a greenlet, write in this one, and end the stream as planned when both are done."""
    reader = gevent.spawn(read, stream, outcome)
    at = 0
    with suppress(ConnClosed):
        for size in outcome.side.pieces:
            stream.sendall(outcome.sent[at : at + size])
            at += size
        if outcome.side.end == "shutdown":
            stream.shutdown(socket.SHUT_WR)
        elif outcome.side.end == "abort":
            stream.abort()
        else:
            stream.close()
    reader.join()
    stream.close()
    assert len(crew)


def read(stream: Stream, outcome: Outcome) -> None:
    buffer = memoryview(bytearray(outcome.side.read_size))
    with suppress(ConnClosed):
        while True:
            if outcome.side.into:
                data = bytes(buffer[: stream.recv_into(buffer)])
            else:
                data = stream.recv(outcome.side.read_size)
            if not data:
                outcome.at_end = True
                return
            outcome.received += data


def carry(source: net.SocketConn, target: net.SocketConn, rng: Random) -> None:
    """Carry one direction of a link in pieces of any size, some of them late."""
    with suppress(ConnError):
        while data := source.recv(rng.choice([1, 7, 100, 5000, 1 << 18])):
            if rng.random() < 0.05:
                gevent.sleep(rng.random() / 500)
            while data:
                size = rng.choice([3, 1000, 1 << 17, 1 << 18])
                target.sendall(data[:size])
                data = data[size:]
    target.shutdown(socket.SHUT_WR)


@settings(max_examples=25, deadline=None)
@given(plans=plans, seed=st.integers(0, 1 << 30))
def test_two_sessions_over_a_bad_link_lose_and_reorder_nothing(plans: list[Plan], seed: int) -> None:
    with clean(TIMEOUT_S):
        outcomes = run_plans(plans, seed)
    for ends in outcomes:
        for mine, other in (ends, ends[::-1]):
            assert other.sent.startswith(mine.received)
            if mine.at_end and mine.side.end != "abort" and other.side.end != "abort":
                assert mine.received == other.sent[: len(mine.received)]
            if "shutdown" == mine.side.end == other.side.end:
                assert mine.at_end
                assert mine.received == other.sent


def run_plans(plans: list[Plan], seed: int) -> list[tuple[Outcome, Outcome]]:
    """Run all streams at once over one pair of sessions; return the outcome of both ends of each."""
    rng = Random(seed)  # noqa: S311  (as above)
    links, crew = net.Crew("links"), net.Crew("streams")
    near, near_link = conn_pair()
    far_link, far = conn_pair()
    links.spawn(carry, near_link, far_link, rng)
    links.spawn(carry, far_link, near_link, rng)
    sessions = Session(near, is_client=True), Session(far, is_client=False)
    outcomes: list[tuple[Outcome, Outcome]] = []
    by_number: dict[tuple[bool, int], Outcome] = {}

    def serve(by_client: bool) -> None:
        def handle(stream: Stream) -> None:
            stream.claim()
            run_side(stream, by_number[by_client, stream.id], crew)

        sessions[by_client].serve(crew, handle)

    serve(False)
    serve(True)
    for number, plan in enumerate(plans):
        ends = Outcome(2 * number, plan.sides[0]), Outcome(2 * number + 1, plan.sides[1])
        outcomes.append(ends)
        stream = sessions[not plan.by_client].open()
        by_number[plan.by_client, stream.id] = ends[1]
        crew.spawn(run_side, stream, ends[0], crew)
    for _ in range(2):
        assert crew.wait_empty(TIMEOUT_S / 2), "a stream hangs"
        for session in sessions:
            session.ping()  # then the other end has taken what was sent before
    assert [stream_count(session) for session in sessions] == [0, 0]
    assert [session.stored_bytes for session in sessions] == [0, 0]
    assert [session.error for session in sessions] == [None, None]
    for session in sessions:
        session.close()
    assert links.wait_empty(5)
    for conn in (near_link, far_link):
        conn.close()
    return outcomes
