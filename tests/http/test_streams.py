"""Event streams: what a reader gets, when a reader is given up, and a thousand of them at once."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue
from hypothesis import given, settings
from hypothesis import strategies as st

from gnar_lib.errors import ConnError
from gnar_lib.http import EventStream, Limits, Request, Routes, Send
from gnar_lib.http.streams import MAX_IGNORED_BYTES, MIN_IGNORED_BYTES, encode_event
from gnar_lib.net import SocketConn, deadline
from tests.helpers.descriptors import descriptors_of_this_process
from tests.helpers.loop import turn, wait_until
from tests.helpers.web import WAIT_S, Served, echo_routes, received, responses, serving

if TYPE_CHECKING:
    from collections.abc import Callable

ASK = b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n"
QUICK = Limits(comment_s=0.02, send_s=0.3, linger_s=0.1)
MANY = 1000


def stream_routes(run: Callable[[Send], None]) -> Routes:
    """Return routes with an event stream."""
    routes = echo_routes()
    routes.add("GET", "/events", lambda _request: EventStream(run))
    return routes


def reader(served: Served) -> SocketConn:
    """Return a connection that has asked for the stream, and has got the head of the answer."""
    conn = served.dial()
    conn.sendall(ASK)
    receive_until(conn, b"\r\n\r\n")
    return conn


def receive_until(conn: SocketConn, end: bytes) -> bytes:
    """Return what comes up to some bytes."""
    data = bytearray()
    with deadline(WAIT_S, f"{end!r}"):
        while end not in data:
            piece = conn.recv(1 << 16)
            assert piece, f"the stream has ended behind {data!r}"
            data += piece
    return bytes(data)


class Waiting:
    """A stream that waits for ever after its first event; it keeps the error that ends it."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.begun = 0

    def run(self, send: Send) -> None:
        self.begun += 1
        try:
            send("hello", "there")  # which a reader need not wait for
            Event().wait()
        except ConnError as exc:
            self.errors.append(exc)
            with pytest.raises(ConnError):
                send("too", "late")
            raise


# ---- what a reader gets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("a", ["data: a"]),
        ("", ["data: "]),
        ("a\nb", ["data: a", "data: b"]),
        ("a\r\nb\rc\n", ["data: a", "data: b", "data: c", "data: "]),
        ("a\n\nevent: forged\ndata: x", ["data: a", "data: ", "data: event: forged", "data: data: x"]),
        ("a\u2028b\x85c\x0bd", ["data: a\u2028b\x85c\x0bd"]),
        ("\ud800", ["data: ?"]),
    ],
)
def test_each_line_of_the_data_is_a_line_of_data(data: str, lines: list[str]) -> None:
    assert encode_event("", data) == "\n".join([*lines, "", ""]).encode()


@settings(deadline=None)
@given(st.text(), st.text(alphabet=st.characters(exclude_characters="\r\n\0", codec="utf-8"), min_size=1))
def test_a_reader_gets_the_data_that_was_sent(data: str, event_id: str) -> None:
    fields = [line.split(": ", 1) for line in encode_event("n", data, event_id).decode().split("\n")[:-2]]
    assert fields[:2] == [["event", "n"], ["id", event_id]]
    normal = data.replace("\r\n", "\n").replace("\r", "\n").encode(errors="replace").decode()
    assert "\n".join(value for name, value in fields[2:]) == normal


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b"])
def test_a_name_or_an_id_with_a_line_break_is_a_defect(bad: str) -> None:
    for arguments in ((bad, "x", ""), ("x", "x", bad)):
        with pytest.raises(ValueError, match="no name and id"):
            encode_event(*arguments)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_ends_when_its_function_returns(version: str) -> None:
    def run(send: Send) -> None:
        for number in range(3):
            send("count", str(number), str(number))
            gevent.sleep(0)

    with serving(stream_routes(run), headers=[("X-Always", "1")]) as served:
        raw = served.ask(f"GET /events HTTP/{version}\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n".encode())
    (got,) = responses(raw)
    assert got.headers["Content-Type"] == "text/event-stream"
    assert got.headers["Cache-Control"] == "no-store"
    assert got.headers["X-Always"] == "1"
    assert got.body == b"".join(b"event: count\nid: %d\ndata: %d\n\n" % (n, n) for n in range(3))


def test_head_of_a_stream_does_not_begin_it() -> None:
    waiting = Waiting()
    with serving(stream_routes(waiting.run)) as served:
        (got,) = responses(served.ask(b"HEAD /events HTTP/1.1\r\nHost: a\r\n\r\n"), ["HEAD"])
    assert got.headers["Content-Type"] == "text/event-stream"
    assert not waiting.begun


def test_a_silent_stream_sends_comments() -> None:
    def run(_send: Send) -> None:
        Event().wait()

    with serving(stream_routes(run), limits=QUICK) as served:
        conn = reader(served)
        assert receive_until(conn, b"3\r\n:\n\n\r\n" * 3)
        conn.close()
        wait_until(lambda: not len(served.crew), "the stream has ended")


def test_a_defect_in_a_stream_cuts_it_off() -> None:
    def run(send: Send) -> None:
        send("a", "b")
        raise ZeroDivisionError

    with serving(stream_routes(run)) as served:
        raw = served.ask(ASK)
        assert b"data: b\n\n" in raw
        assert not raw.endswith(b"0\r\n\r\n")
        assert responses(served.ask(b"GET / HTTP/1.0\r\n\r\n"))[0].status == 200


# ---- readers who go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort", "half-close"])
def test_a_reader_who_goes_ends_the_stream_wherever_it_waits(end: str) -> None:
    waiting = Waiting()
    with serving(stream_routes(waiting.run)) as served:
        conn = reader(served)
        if end == "half-close":
            conn.shutdown(1)
        else:
            getattr(conn, end)()
        wait_until(lambda: waiting.errors, "the stream is told")
        wait_until(lambda: not len(served.crew), "the stream has ended")
        conn.close()


def test_a_reader_who_goes_on_sending_is_cut_off() -> None:
    waiting = Waiting()
    with serving(stream_routes(waiting.run)) as served:
        conn = reader(served)
        conn.sendall(bytes(1000))
        turn()
        assert not waiting.errors
        conn.sendall(bytes(MAX_IGNORED_BYTES))
        wait_until(lambda: waiting.errors, "the stream is told")
        conn.close()


def test_a_reader_who_sends_byte_by_byte_is_cut_off_soon() -> None:
    waiting = Waiting()
    with serving(stream_routes(waiting.run)) as served:
        conn = reader(served)
        sent = 0
        while not waiting.errors and sent <= MAX_IGNORED_BYTES // MIN_IGNORED_BYTES + 1:
            conn.sendall(b"x")
            sent += 1
            turn()
        wait_until(lambda: waiting.errors, "the stream is told")
        conn.close()


def own_conn(send: Send) -> SocketConn:
    """Return the service's end of the connection of a stream."""
    conn = cast("Any", send).__self__._conn
    assert isinstance(conn, SocketConn)
    return conn


def test_a_reader_who_takes_nothing_is_cut_off_and_costs_little() -> None:
    unsent: list[int] = []

    def run(send: Send) -> None:
        while True:
            send("bulk", "x" * 10_000)
            unsent.append(own_conn(send).unacknowledged())

    with serving(stream_routes(run), limits=QUICK) as served:
        conn = reader(served)
        wait_until(lambda: not len(served.crew), "the reader is given up")
        conn.close()
    assert len(unsent) > 10
    assert max(unsent) < 300_000


def test_a_reader_who_takes_nothing_is_noticed_by_the_comments() -> None:
    errors: list[ConnError] = []

    def run(send: Send) -> None:
        try:
            while True:
                while own_conn(send).send_now(bytes(10_000)):
                    pass
                gevent.sleep(0.002)  # the kernel of the reader may still take some
        except ConnError as exc:
            errors.append(exc)

    with serving(stream_routes(run), limits=QUICK) as served:
        conn = reader(served)
        wait_until(lambda: errors, "the reader is given up")
        assert "takes nothing" in str(errors[0])
        conn.close()


# ---- many --------------------------------------------------------------------------------------------------


def test_a_thousand_streams_leave_room_for_requests() -> None:
    queues: list[Queue[str]] = []

    def run(send: Send) -> None:
        queue: Queue[str] = Queue()
        queues.append(queue)
        while True:
            send("news", queue.get())

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    before = descriptors_of_this_process()
    memory = rss_kib()
    try:
        with serving(stream_routes(run)) as served:
            conns = [reader(served) for _ in range(MANY)]
            grown = rss_kib() - memory
            assert served.service.crowd.streams == MANY
            (got,) = responses(served.ask(b"GET / HTTP/1.0\r\n\r\n"))
            assert got.status == 200
            (one_more,) = responses(served.ask(ASK))
            assert one_more.status == 503
            for queue in queues:
                queue.put("today")
            for conn in conns:
                receive_until(conn, b"data: today\n\n")
            for conn in conns:
                conn.close()
            wait_until(lambda: not served.service.crowd.streams, "all readers have gone")
        assert descriptors_of_this_process() <= before
        assert grown < MANY * 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def rss_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_streams_end_with_the_service() -> None:
    waiting = Waiting()
    with serving(stream_routes(waiting.run)) as served:
        conn = reader(served)
    assert b"0\r\n\r\n" not in received(conn)
    assert waiting.errors == []
    conn.close()


def test_a_stream_knows_the_request() -> None:
    def handler(request: Request) -> EventStream:
        return EventStream(lambda send: send("last", request.headers["last-event-id"]))

    routes = Routes()
    routes.add("GET", "/", handler)
    with serving(routes) as served:
        (got,) = responses(served.ask(b"GET / HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 7\r\n\r\n"))
    assert got.body == b"event: last\ndata: 7\n\n"
