"""Conns, dialling, listening and greenlets, over real sockets: what blocks, what wakes, what closes."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

import gnar_lib
from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError, DeadlineError, DialError, ListenError, PortTakenError
from gnar_lib.net import Crew, SocketConn, deadline, dial, dial_host, listen, resolve, set_keepalive
from gnar_lib.net.conn import socket_class
from gnar_lib.net.target import Target

V4 = socket.AF_INET
LOOPBACK = "127.0.0.1"
TIMEOUT_S = 10.0
MIB = 1 << 20
BLACKHOLE = "192.0.2.1"  # nobody has it (RFC 5737)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Let no test wait for ever."""
    with deadline(TIMEOUT_S, "the test"):
        yield


def tcp_pair() -> tuple[SocketConn, SocketConn]:
    listener = listen(LOOPBACK, 0)
    near = dial(V4, listener.getsockname())
    far = listener.accept()
    listener.close()
    return near, far


def unix_pair() -> tuple[SocketConn, SocketConn]:
    near, far = socket.socketpair()
    return SocketConn(near), SocketConn(far)


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SocketConn, SocketConn]]:
    """Yield two conns that are joined."""
    near, far = tcp_pair() if request.param == "tcp" else unix_pair()
    yield near, far
    near.close()
    far.close()


Pair = tuple[SocketConn, SocketConn]


class Waiter:
    """Calls something that waits, in a greenlet, and keeps what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._greenlet = gevent.spawn(self._run, call)
        gevent.sleep(0)
        gevent.sleep(0)
        assert not self._greenlet.ready(), "it was to wait"

    @staticmethod
    def _run(call: Callable[[], object]) -> object:
        try:
            return call()
        except ConnError as exc:
            return exc

    def result(self) -> object:
        return self._greenlet.get()


def read_all(conn: SocketConn) -> bytes:
    data = bytearray()
    while more := conn.recv(1 << 16):
        data += more
    return bytes(data)


# ---- reading -----------------------------------------------------------------------------------------------


def test_recv_waits_for_the_first_byte_and_takes_no_more_than_asked(pair: Pair) -> None:
    near, far = pair
    waiter = Waiter(lambda: near.recv(3))
    far.sendall(b"hello")
    assert waiter.result() == b"hel"
    assert near.recv(100) == b"lo"


def test_recv_after_a_short_read_still_sees_what_had_come(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"a")
    assert near.recv(100) == b"a"
    far.sendall(b"b")
    far.shutdown(socket.SHUT_WR)
    assert near.recv(100) == b"b"
    assert near.recv(100) == b""
    assert near.recv(100) == b""


def test_unread_bytes_come_first_in_every_way_of_reading(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"ef")
    near.wait_readable()
    near.unread(b"d")
    near.unread(b"abc")
    assert near.has_unread
    assert near.recv(2) == b"ab"
    buffer = memoryview(bytearray(10))
    assert near.recv_into(buffer[:1]) == 1
    assert near.recv_now(1) == b"d"
    assert bytes(buffer[:1]) == b"c"
    near.unread(b"x")
    assert near.recv_into_now(buffer) == 1
    assert near.recv_into(buffer) == 2
    assert bytes(buffer[:2]) == b"ef"


def test_now_does_not_wait(pair: Pair) -> None:
    near, far = pair
    buffer = memoryview(bytearray(10))
    assert near.recv_now(10) is None
    assert near.recv_into_now(buffer) is None
    far.sendall(b"x")
    near.wait_readable()
    assert near.recv_into_now(buffer) == 1
    far.shutdown(socket.SHUT_WR)
    near.wait_readable()
    assert near.recv_now(10) == b""


def test_reader_that_keeps_its_watcher_started_sees_every_byte(pair: Pair) -> None:
    near, far = pair
    near.keep_reading = True
    sent = [os.urandom(1 + number % 50) for number in range(200)]

    def send() -> None:
        for part in sent:
            far.sendall(part)
            gevent.sleep(0)
        far.shutdown(socket.SHUT_WR)

    sender = gevent.spawn(send)
    assert read_all(near) == b"".join(sent)
    sender.get()


def test_two_conns_of_one_greenlet_with_started_watchers_do_not_mix(pair: Pair) -> None:
    near, far = pair
    other_near, other_far = tcp_pair()
    near.keep_reading = other_near.keep_reading = True

    def send() -> None:
        far.sendall(b"a")
        gevent.sleep(0.001)
        far.sendall(b"b")  # an event of the conn that nobody waits on then
        gevent.sleep(0.001)
        other_far.sendall(b"c")

    sender = gevent.spawn(send)
    assert [near.recv(1), other_near.recv(1), near.recv(1)] == [b"a", b"c", b"b"]
    sender.get()
    other_near.close()
    other_far.close()


# ---- writing -----------------------------------------------------------------------------------------------


def test_sendall_waits_for_room_and_loses_nothing(pair: Pair) -> None:
    near, far = pair
    data = os.urandom(4 * MIB)
    waiter = Waiter(lambda: near.sendall(data))
    received = bytearray()
    while len(received) < len(data):
        received += far.recv(100_000)
    assert waiter.result() is None
    assert received == data


def test_send_now_takes_what_fits_and_then_nothing(pair: Pair) -> None:
    near, far = pair
    taken = 0
    while sent := near.send_now(b"x" * MIB):
        taken += sent
    assert near.sendmsg_now([b"a", b"b"]) == 0
    near.shutdown(socket.SHUT_WR)
    assert len(read_all(far)) == taken


def test_sendmsg_now_sends_many_buffers_in_order(pair: Pair) -> None:
    near, far = pair
    buffers: list[bytes | bytearray | memoryview] = [b"a", memoryview(b"bc"), b"d"]
    assert near.sendmsg_now(buffers) == 4
    assert far.recv(10) == b"abcd"


def test_unacknowledged_counts_down_to_nothing() -> None:
    near, far = tcp_pair()
    near.sendall(b"x" * 1000)
    while near.unacknowledged():
        gevent.sleep(0.001)
    assert far.recv(2000) == b"x" * 1000
    near.close()
    far.close()
    with pytest.raises(ConnError):
        near.unacknowledged()


# ---- ending ------------------------------------------------------------------------------------------------


def test_half_close_leaves_the_other_direction_open(pair: Pair) -> None:
    near, far = pair
    near.sendall(b"request")
    near.shutdown(socket.SHUT_WR)
    assert read_all(far) == b"request"
    far.sendall(b"answer")
    far.shutdown(socket.SHUT_WR)
    assert read_all(near) == b"answer"
    near.shutdown(socket.SHUT_WR)  # more than once, and after the peer's end, is no error


def test_shutdown_of_a_closed_conn_is_no_error(pair: Pair) -> None:
    near, _ = pair
    near.close()
    near.shutdown(socket.SHUT_WR)
    near.close()
    near.abort()
    assert near.closed
    assert near.fileno() == -1
    assert "closed" in repr(near)


def test_abort_is_a_reset_at_the_peer() -> None:
    near, far = tcp_pair()
    near.sendall(b"x")
    near.abort()
    with pytest.raises(ConnClosed, match="reset by peer") as caught:
        read_all(far)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    far.close()


def test_writing_to_a_peer_that_has_gone_is_our_error() -> None:
    near, far = tcp_pair()
    far.abort()
    near.wait_readable()
    with pytest.raises(ConnError):
        near.recv(1)
    with pytest.raises(ConnError):
        near.sendall(b"x")
    near.close()


@pytest.mark.parametrize("end", ["close", "abort"])
def test_close_wakes_the_reader_and_the_writer(pair: Pair, end: str) -> None:
    near, _ = pair
    reader = Waiter(lambda: near.recv(1))
    writer = Waiter(lambda: near.sendall(b"x" * 32 * MIB))
    getattr(near, end)()
    assert isinstance(reader.result(), ConnClosed)
    assert isinstance(writer.result(), ConnClosed)


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.recv(1),
        lambda conn: conn.recv_now(1),
        lambda conn: conn.recv_into(memoryview(bytearray(1))),
        lambda conn: conn.recv_into_now(memoryview(bytearray(1))),
        lambda conn: conn.sendall(b"x"),
        lambda conn: conn.send_now(b"x"),
        lambda conn: conn.sendmsg_now([b"x"]),
        lambda conn: conn.wait_readable(),
        lambda conn: conn.wait_writable(),
        lambda conn: conn.getsockname(),
    ],
)
def test_everything_on_a_closed_conn_is_conn_closed(pair: Pair, call: Callable[[SocketConn], object]) -> None:
    pair[0].close()
    with pytest.raises(ConnClosed):
        call(pair[0])


def test_callbacks_are_called_in_the_hub_until_close(pair: Pair) -> None:
    near, far = pair
    heard: list[bytes | None] = []
    near.call_when_readable(lambda: heard.append(near.recv_now(10)))
    far.sendall(b"a")
    while not heard:
        gevent.sleep(0.001)
    near.call_when_readable(None)
    far.sendall(b"b")
    gevent.sleep(0.005)
    assert heard == [b"a"]
    writable: list[int] = []

    def once() -> None:
        writable.append(1)
        near.call_when_writable(None)

    near.call_when_writable(once)
    while not writable:
        gevent.sleep(0.001)
    near.close()
    near.call_when_readable(lambda: heard.append(b"never"))
    near.call_when_writable(lambda: writable.append(2))
    gevent.sleep(0.005)
    assert (heard, writable) == ([b"a"], [1])


# ---- dialling ----------------------------------------------------------------------------------------------


def test_refused_dial_says_who_refused() -> None:
    listener = listen(LOOPBACK, 0)
    address = listener.getsockname()
    listener.close()
    with pytest.raises(DialError, match=rf"cannot connect to {LOOPBACK}:{address[1]}: Connection refused"):
        dial(V4, address)


def test_dial_that_nobody_answers_ends_in_time() -> None:
    """A full backlog drops the SYN: the kernel would try for two minutes."""
    with socket.socket() as full:
        full.bind((LOOPBACK, 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with pytest.raises(DialError, match=r"connecting to \S+ took longer than 0.2 s"):
            dial(V4, full.getsockname(), timeout_s=0.2)
        for filler in fillers:
            filler.close()


def test_dial_that_is_killed_closes_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SocketConn] = []

    def never(conn: SocketConn) -> None:
        made.append(conn)
        gevent.sleep(TIMEOUT_S)

    monkeypatch.setattr(SocketConn, "wait_writable", never)
    with socket.socket() as full:
        full.bind((LOOPBACK, 0))
        full.listen()
        dialling = gevent.spawn(dial, V4, full.getsockname())
        while not made and not dialling.ready():
            gevent.sleep(0)
        dialling.kill()
    if made:
        assert made[0].closed
    else:  # loopback was quick enough to need no wait
        dialling.get().close()


def test_dial_from_an_address_is_seen_as_coming_from_it() -> None:
    listener = listen(LOOPBACK, 0)
    near = dial(V4, listener.getsockname(), source="127.0.0.2")
    far = listener.accept()
    assert net.host_of(far.getpeername()) == "127.0.0.2"
    for thing in (near, far, listener):
        thing.close()
    with pytest.raises(DialError, match="Cannot assign requested address"):
        dial(V4, (LOOPBACK, 1), source=BLACKHOLE)


def test_dial_host_goes_on_to_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(LOOPBACK, 0)
    port = listener.port
    found = [(socket.AF_INET6, ("::1", port, 0, 0)), (V4, (LOOPBACK, port))]
    monkeypatch.setattr("gnar_lib.net.endpoint.resolve", lambda *_: found)
    dial_host("name", port).close()
    listener.close()
    with pytest.raises(DialError, match=f"{LOOPBACK}:{port}"):
        dial_host("name", port)


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a" * 300, "..", "\udcff"])
def test_name_that_does_not_resolve_is_a_dial_error(host: str) -> None:
    with pytest.raises(DialError, match="cannot resolve"):
        resolve(host, 1)


# ---- targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dial_one", [lambda port: Target("127.0.0.1", port).dial(), lambda port: dial_host("127.0.0.1", port)]
)
def test_a_dial_that_failed_leaves_nothing_to_the_collector(dial_one: Callable[[int], object]) -> None:
    def held() -> int:
        return sum(isinstance(thing, SocketConn) for thing in gc.get_objects())

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(10):
            with pytest.raises(DialError):
                dial_one(port)
        assert held() <= before + 1
    finally:
        gc.enable()


def test_target_is_looked_up_again_only_when_its_address_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = listen(LOOPBACK, 0), listen(LOOPBACK, 0)
    ports, asked = [first.port], list[int]()

    def lookup(*_: object) -> list[tuple[int, net.Sockaddr]]:
        asked.append(1)
        return [(V4, (LOOPBACK, port)) for port in ports]

    monkeypatch.setattr("gnar_lib.net.target.resolve", lookup)
    monkeypatch.setattr("gnar_lib.net.target.LOOK_UP_PAUSE_S", 0.0)
    target = Target("name", 1)
    for _ in range(3):
        target.dial().close()
    assert len(asked) == 1
    first.close()
    ports[:] = [second.port]
    conn = target.dial()
    assert conn.getpeername() == (LOOPBACK, second.port)
    conn.close()
    target.dial().close()
    assert len(asked) == 2
    second.close()
    with pytest.raises(DialError, match="Connection refused"):
        target.dial()
    assert len(asked) == 3


# ---- listening and accepting -------------------------------------------------------------------------------


def test_everywhere_is_ipv4_and_ipv6_on_one_port() -> None:
    listener = listen("", 0)
    for host in (LOOPBACK, "::1"):
        near = dial_host(host, listener.port)
        far = listener.accept()
        assert net.host_of(far.getpeername()) == (f"[{host}]" if ":" in host else host)
        near.close()
        far.close()
    listener.close()


def test_port_that_is_taken_and_address_that_is_not_ours() -> None:
    listener = listen(LOOPBACK, 0)
    with pytest.raises(PortTakenError, match=f"{LOOPBACK}:{listener.port} is already in use"):
        listen(LOOPBACK, listener.port)
    with pytest.raises(PortTakenError):
        listen("", listener.port)
    listener.close()
    with pytest.raises(ListenError, match="Cannot assign requested address"):
        listen(BLACKHOLE, 0)


def test_many_at_once_are_all_accepted_each_in_a_greenlet_of_its_own() -> None:
    crew, listener, count = Crew("test"), listen(LOOPBACK, 0), 300
    seen: list[SocketConn] = []

    def handle(conn: SocketConn) -> None:
        seen.append(conn)
        conn.sendall(conn.recv(10))
        conn.close()

    listener.serve(crew, handle)
    conns = [dial(V4, listener.getsockname()) for _ in range(count)]
    while len(seen) < count:
        gevent.sleep(0.001)
    assert len(crew) == count
    for conn in reversed(conns):
        conn.sendall(b"x")
        assert conn.recv(10) == b"x"
        conn.close()
    assert crew.wait_empty(TIMEOUT_S)
    listener.close()


def test_handler_may_close_the_listener_and_a_defect_of_one_harms_no_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [caplog.handler])
    crew, listener = Crew("test"), listen(LOOPBACK, 0)
    seen: list[int] = []

    def handle(conn: SocketConn) -> None:
        seen.append(1)
        conn.close()
        if len(seen) == 1:
            raise ZeroDivisionError
        listener.close()

    address = listener.getsockname()
    conns = [dial(V4, address) for _ in range(3)]
    listener.serve(crew, handle)
    while len(seen) < 2:
        gevent.sleep(0.001)
    gevent.sleep(0.005)
    assert len(seen) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert crew.wait_empty(TIMEOUT_S)
    for conn in conns:
        conn.close()


FEW_DESCRIPTORS = """
import resource, socket, sys
import gevent
from gnar_lib import eventlog, logger, net
logger.setup()
eventlog.start()
held, crew, listener = [], net.Crew("test"), net.listen("127.0.0.1", 0)
listener.serve(crew, held.append)
clients = [socket.socket() for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 6, 200))
for client in clients:
    client.connect(listener.getsockname())
while not 0 < len(held) < 20 or listener._watcher.active:
    gevent.sleep(0.005)
for _ in range(9):  # it tries again and again
    listener._resume()
    while listener._watcher.active:
        gevent.sleep(0.005)
print("waits with", len(held) < 20, flush=True)
served = 0
while served < 20:
    gevent.sleep(0.005)
    served += len(held)
    while held:
        held.pop().close()
print("served", served, flush=True)
"""


def test_keep_alive_on_a_socket_that_takes_no_options_any_more_is_no_error() -> None:
    sock = socket_class(socket.AF_INET, socket.SOCK_STREAM)
    sock.close()  # as macOS refuses any option once the peer has reset
    set_keepalive(sock)


def test_out_of_descriptors_makes_accepting_wait_and_then_go_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        env=os.environ | {"PYTHONPATH": str(Path(gnar_lib.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout == "waits with True\nserved 20\n", done.stderr
    assert done.stderr.count("accepting waits: Too many open files") == 1
    assert "Traceback" not in done.stderr


def test_accept_out_of_descriptors_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(LOOPBACK, 0)

    def fail(_self: object) -> tuple[int, object]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(type(listener.sock), "_accept", fail)
    with pytest.raises(OSError, match="Too many open files"):
        listener.accept()
    listener.close()


# ---- deadlines and greenlets -------------------------------------------------------------------------------


def test_deadline_ends_a_wait_and_says_of_what(pair: Pair) -> None:
    with pytest.raises(DeadlineError, match=r"^reading took longer than 0.01 s$"), deadline(0.01, "reading"):
        pair[0].recv(1)
    pair[1].sendall(b"x")
    assert pair[0].recv(1) == b"x"


def test_deadline_of_another_block_is_not_taken_for_ones_own(pair: Pair) -> None:
    with pytest.raises(DeadlineError, match="outer"), deadline(0.01, "outer"), deadline(5, "inner"):
        pair[0].recv(1)


def test_deadline_that_was_kept_leaves_nothing_behind(pair: Pair) -> None:
    with deadline(0.01, "nothing"):
        pass
    gevent.sleep(0.02)
    assert pair[0].recv_now(1) is None


def test_kill_ends_all_where_they_wait_and_their_finally_runs(pair: Pair) -> None:
    crew, closed = Crew("test"), list[int]()

    def wait(number: int) -> None:
        try:
            if number == 1:
                pair[0].recv(1)
            gevent.sleep(TIMEOUT_S)
        finally:
            closed.append(number)

    for number in range(5):
        crew.spawn(wait, number)
    assert len(crew) == 5
    assert not crew.wait_empty(0)
    gevent.sleep(0)
    crew.kill()
    assert crew.wait_empty(TIMEOUT_S)
    assert sorted(closed) == [0, 1, 2, 3, 4]
    assert len(crew) == 0
    pair[1].sendall(b"x")
    assert pair[0].recv(1) == b"x"


def test_kill_spares_the_one_who_calls_it() -> None:
    crew, ended = Crew("test"), list[str]()

    def kill() -> None:
        crew.kill()
        gevent.sleep(0.001)
        ended.append("killer")

    crew.spawn(gevent.sleep, TIMEOUT_S)
    crew.spawn(kill)
    assert crew.wait_empty(TIMEOUT_S)
    assert ended == ["killer"]


def test_kill_ends_also_those_that_have_not_begun() -> None:
    crew, began = Crew("test"), list[int]()
    crew.spawn(began.append, 1)
    crew.spawn(gevent.sleep, TIMEOUT_S)
    crew.kill()
    assert crew.wait_empty(1)


def test_greenlets_are_used_again_and_keep_nothing_of_the_job_before() -> None:
    crew, names = Crew("test"), set[int]()
    for _ in range(50):
        crew.spawn(lambda: names.add(id(gevent.getcurrent())))
        assert crew.wait_empty(TIMEOUT_S)
    assert len(names) < 50
    before = net.busy_greenlets()
    crew.spawn(gevent.sleep, TIMEOUT_S)
    gevent.sleep(0)
    assert net.busy_greenlets() == before + 1
    crew.kill()
    assert crew.wait_empty(TIMEOUT_S)
    assert net.busy_greenlets() == before
    thing = Crew("held by nobody else")
    crew.spawn(lambda _: None, thing)
    assert crew.wait_empty(TIMEOUT_S)
    gone = weakref.ref(thing)
    del thing
    assert gone() is None


# ---- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown", "host"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80", "127.0.0.1"),
        (("::1", 80, 0, 0), "[::1]:80", "[::1]"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80", "10.0.0.1"),
        ("/tmp/x.sock", "/tmp/x.sock", ""),  # noqa: S108 (only a text)
        ("", "", ""),
    ],
)
def test_address_for_people(address: net.Sockaddr, shown: str, host: str) -> None:
    assert net.format_address(address) == shown
    assert net.host_of(address) == host


def test_address_that_is_not_known_is_a_question() -> None:
    assert net.format_address(None) == "?"
