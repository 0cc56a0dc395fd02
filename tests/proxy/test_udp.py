"""Datagrams in this process: frames, sessions, the data connection, sockets and the relay."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import gevent
import gevent.socket
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib import logger, net
from gnar_lib.errors import ConnError, DialError, MessageTooLongError, PortTakenError, ProtocolError
from gnar_lib.net import Datagram, DatagramConn, DatagramSocket, datagram
from gnar_lib.net.datagram import connect_udp, pack_address, unpack_address
from gnar_lib.net.target import DatagramTarget, UnixDatagramTarget
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import (
    MAX_PAYLOAD_BYTES,
    NOBODY,
    BinaryFraming,
    Framing,
    JsonFraming,
)
from gnar_lib.proxy.share import Share
from gnar_lib.proxy.udp import MAX_QUEUED_BYTES, Carrier, Limits, OpensSockets, Sessions, admit
from gnar_lib.relay import DatagramRelay, Role, parse_address

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 20.0
SESSION_S = 0.8  # a busy machine holds a process up for less
LOG = logger.get("test")
USER = pack_address((LOOPBACK, 1000))
FRAMINGS = {"binary": BinaryFraming(), "json": JsonFraming(with_address=True)}

packed_addresses = st.one_of(
    st.builds(lambda ip, port: pack_address((str(ip), port)), st.ip_addresses(v=4), st.integers(0, 65535)),
    st.builds(lambda ip, port: pack_address((str(ip), port)), st.ip_addresses(v=6), st.integers(0, 65535)),
)
many_datagrams = st.lists(st.tuples(packed_addresses, st.binary(max_size=80)), max_size=20)


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that sends no event; the test's time limit ends it."""
    while not true():
        gevent.sleep(0.002)


# ---- frames ------------------------------------------------------------------------------------------------


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
    stream = b"".join(framing.frame(datagrams))
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
@given(noise=st.binary(max_size=200), before=many_datagrams)
def test_noise_is_an_error_of_the_protocol_and_nothing_else(
    framing: Framing, noise: bytes, before: list[Datagram]
) -> None:
    data = b"".join(framing.frame(before)) + noise
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
    frame = b"".join(framing.frame([(USER, b"x" * MAX_PAYLOAD_BYTES)]))
    assert framing.parse(frame) == ([(USER, b"x" * MAX_PAYLOAD_BYTES)], 3 + 65535)
    with pytest.raises(MessageTooLongError):
        framing.frame([(USER, b"x" * (MAX_PAYLOAD_BYTES + 1))])


def test_json_form_is_that_of_the_go_programs() -> None:
    to_client, to_server = JsonFraming(with_address=True), JsonFraming(with_address=False)
    packed = pack_address((LOOPBACK, 47020))
    question = b'\x07\x00G{"payload":"aGVsbG8=","addr":{"IP":"127.0.0.1","Port":47020,"Zone":""}}'
    answer = b'\x07\x00*{"payload":"ZWNobzpoZWxsbw==","addr":null}'
    assert to_client.frame([(packed, b"hello")]) == [question]
    assert to_server.frame([(packed, b"echo:hello")]) == [answer]
    assert to_server.parse(question) == ([(packed, b"hello")], len(question))
    assert to_client.parse(answer) == ([(NOBODY, b"echo:hello")], len(answer))


def test_zones_tell_link_local_users_apart() -> None:
    frame = b'\x07\x00F{"payload":"aGVsbG8=","addr":{"IP":"fe80::1","Port":4702,"Zone":"%s"}}'
    (first, second), _ = JsonFraming(with_address=False).parse(frame % b"e0" + frame % b"e1")
    assert first[0] != second[0]


# ---- sessions ----------------------------------------------------------------------------------------------


class EchoService:
    """A UDP service in a greenlet that answers with what it got, and notes from whom."""

    def __init__(self, host: str = LOOPBACK, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = gevent.socket.socket(family, socket.SOCK_DGRAM)
        self._sock.bind((host, port))
        self.port = int(self._sock.getsockname()[1])
        self.heard: list[tuple[bytes, int]] = []
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            payload, peer = self._sock.recvfrom(65536)
            self.heard.append((payload, peer[1]))
            self._sock.sendto(payload, peer)

    def close(self) -> None:
        self._greenlet.kill()
        self._sock.close()


class Answers:
    """Sessions with a service, and what it answered."""

    def __init__(self, target: OpensSockets, timeout_s: float = 60.0, most: int = 4096) -> None:
        self.meter = Meter()
        self.got: list[Datagram] = []
        limits = Limits(timeout_s=timeout_s, sessions=most)
        self.sessions = Sessions(target, self.got.extend, self.meter, limits, LOG)

    def ask(self, user: bytes, payload: bytes) -> None:
        """Send one datagram and wait for its answer."""
        self.sessions.send([(user, payload)])
        wait_until(lambda: (user, payload) in self.got)


def users(number: int) -> list[bytes]:
    return [pack_address((LOOPBACK, 1000 + index)) for index in range(number)]


def target_at(port: int, host: str = LOOPBACK) -> DatagramTarget:
    target = DatagramTarget(host, port)
    target.look_up()
    return target


@contextmanager
def answering(timeout_s: float = 60.0, most: int = 4096) -> Iterator[tuple[EchoService, Answers]]:
    """Run a service and sessions with it for the block."""
    with closing(EchoService()) as service:
        answers = Answers(target_at(service.port), timeout_s, most)
        with closing(answers.sessions):
            yield service, answers
        assert answers.meter.sessions == 0


def test_service_sees_users_apart_and_answers_come_back_to_each() -> None:
    with answering() as (service, answers):
        for _ in range(3):
            for user in users(50):
                answers.ask(user, user + os.urandom(8))
        assert len({port for _, port in service.heard}) == 50
        assert len(answers.sessions) == answers.meter.sessions == answers.meter.users_total == 50
        assert answers.meter.dropped == 0


def test_session_ends_after_its_time_without_a_datagram_and_not_before() -> None:
    with answering(timeout_s=SESSION_S) as (_, answers):
        idle, busy = users(2)
        answers.ask(idle, b"once")
        answers.ask(busy, b"once")
        while idle in answers.sessions._conns:
            gevent.sleep(0.05)
            answers.ask(busy, b"again")
        assert answers.sessions._conns.keys() == {busy}
        wait_until(lambda: len(answers.sessions) == 0)


def test_answers_alone_keep_a_session() -> None:
    with answering(timeout_s=SESSION_S) as (service, answers):
        answers.ask(USER, b"once")
        end = time.monotonic() + 1.5 * SESSION_S
        while time.monotonic() < end:
            gevent.sleep(0.05)
            service._sock.sendto(b"news", (LOOPBACK, service.heard[0][1]))
        assert len(answers.sessions) == 1


def test_session_idle_longest_goes_first_when_there_are_too_many() -> None:
    with answering(most=3) as (_, answers):
        first, second, third, fourth = users(4)
        for user in (first, second, third):
            answers.ask(user, b"hello")
        answers.ask(first, b"again")
        answers.ask(fourth, b"hello")
        assert list(answers.sessions._conns) == [third, first, fourth]


def test_sessions_leave_no_descriptor_behind() -> None:
    with answering(most=20) as (_, answers):
        answers.ask(USER, b"x")
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for user in users(200):
            answers.sessions.send([(user, b"x")])
        answers.sessions.close()
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before


def test_port_unreachable_ends_nothing() -> None:
    with closing(EchoService()) as gone:
        port = gone.port
    answers = Answers(target_at(port))
    with closing(answers.sessions):
        for _ in range(5):
            answers.sessions.send([(USER, b"anybody?")])
            gevent.sleep(0.005)
        with closing(EchoService(port=port)):
            answers.ask(USER, b"there you are")
            assert len(answers.sessions) == answers.meter.users_total == 1


def test_target_with_two_addresses_is_found_at_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(EchoService()) as service:
        port = service.port
        found = [(socket.AF_INET, ("127.0.0.3", port)), (socket.AF_INET, (LOOPBACK, port))]
        monkeypatch.setattr("gnar_lib.net.target.resolve", lambda *_: found)
        answers = Answers(target_at(port, "two.example"))
        with closing(answers.sessions):
            while not answers.got:
                answers.sessions.send([(USER, b"hello")])
                gevent.sleep(0.005)
            assert answers.got[0] == (USER, b"hello")


def test_name_is_looked_up_again_when_its_only_address_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnar_lib.net.target.LOOK_UP_PAUSE_S", 0.0)
    with closing(EchoService()) as service:
        addresses = [("127.0.0.3", service.port), (LOOPBACK, service.port)]
        monkeypatch.setattr("gnar_lib.net.target.resolve", lambda *_: [(socket.AF_INET, addresses[0])])
        answers = Answers(target_at(service.port, "moved.example"))
        del addresses[0]
        with closing(answers.sessions):
            while not answers.got:
                answers.sessions.send([(USER, b"hello")])
                gevent.sleep(0.005)


def test_too_many_files_cost_the_session_idle_longest() -> None:
    class Full:
        """Has no descriptor left every other time."""

        def __init__(self, target: DatagramTarget) -> None:
            self._target = target
            self.calls = 0

        def open(self) -> DatagramConn:
            self.calls += 1
            if self.calls in (1, 3):
                raise DialError("too many") from OSError(errno.EMFILE, "too many open files")
            return self._target.open()

        @staticmethod
        def refused(_conn: DatagramConn) -> bool:
            return False

    with closing(EchoService()) as service:
        answers = Answers(Full(target_at(service.port)))
        first, second = users(2)
        with closing(answers.sessions):
            answers.sessions.send([(first, b"lost: there is no session to give up")])
            assert answers.meter.dropped == 1
            answers.ask(first, b"hello")
            answers.ask(second, b"hello")
            assert list(answers.sessions._conns) == [second]


def test_limit_drops_what_exceeds_it_and_counts_the_rest() -> None:
    meter, flow = Meter(), Flow(Bucket(1000))
    datagrams = [(USER, b"x" * 400)] * 10
    passed = admit(datagrams, flow, meter)
    assert len(passed) == 2
    assert (flow.bytes, meter.dropped) == (800, 8)
    assert admit(datagrams, Flow(), meter) == datagrams


# ---- the data connection -----------------------------------------------------------------------------------


class StuckConn:
    """A conn that takes what `room` says, and blocks the rest until there is some."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.sent = b""

    def send_now(self, data: bytes | memoryview) -> int:
        count = min(self.room, len(data))
        self.room -= count
        self.sent += bytes(data[:count])
        return count

    def sendall(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest := rest[self.send_now(rest) :]:
            gevent.sleep(0.001)


def stuck_carrier(framing: Framing, room: int = 0) -> tuple[StuckConn, Carrier, Meter]:
    conn, meter = StuckConn(room), Meter()
    return conn, Carrier(conn, framing, meter, LOG), meter  # type: ignore[arg-type]  # all it uses


def test_slow_data_connection_holds_1_mib_and_drops_the_rest() -> None:
    framing = BinaryFraming()
    conn, carrier, meter = stuck_carrier(framing)
    sent = [(USER, number.to_bytes(4, "big") * 250) for number in range(5000)]
    for each in sent:
        carrier.post([each])
        carrier.flush()
        gevent.sleep(0)
    assert meter.dropped > 3000
    assert conn.sent == b""
    conn.room = 1 << 30
    wait_until(lambda: not carrier._is_writing)
    found, used = framing.parse(conn.sent)
    assert used == len(conn.sent) <= MAX_QUEUED_BYTES + 2048
    assert found == sent[: len(found)]
    assert len(found) == 5000 - meter.dropped
    carrier.post([(USER, b"again")])
    carrier.flush()
    assert conn.sent.endswith(b"again")


def test_empty_datagrams_are_bounded_as_well() -> None:
    conn, carrier, meter = stuck_carrier(BinaryFraming())
    for _ in range(1500):
        carrier.post([(USER, b"")] * 64)
        carrier.flush()
        gevent.sleep(0)
    assert meter.dropped > 1500 * 64 - 2 * MAX_QUEUED_BYTES // 25
    conn.room = 1 << 30
    wait_until(lambda: not carrier._is_writing)


def test_datagram_too_large_for_json_is_dropped_alone_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    framing = JsonFraming(with_address=True)
    conn, carrier, meter = stuck_carrier(framing, 1 << 30)
    logger._root.addHandler(caplog.handler)
    try:
        for _ in range(3):
            carrier.post([(USER, b"before"), (USER, b"x" * 60_000), (USER, b"behind")])
            carrier.flush()
    finally:
        logger._root.removeHandler(caplog.handler)
    assert meter.dropped == 3
    assert framing.parse(conn.sent)[0] == [(USER, b"before"), (USER, b"behind")] * 3
    assert caplog.text.count("dropped") == 1


def test_carrier_hands_on_what_comes_and_closes_its_conn() -> None:
    near, far = _pair()
    got: list[Datagram] = []
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    running = gevent.spawn(carrier.run, got.extend)
    sent = [(USER, os.urandom(size % 3000)) for size in range(0, 70_000, 70)]
    gevent.spawn(far.sendall, b"".join(BinaryFraming().frame(sent)))
    wait_until(lambda: len(got) == len(sent))
    assert got == sent
    far.close()
    running.get()
    assert near.closed


def test_carrier_ends_on_what_is_no_datagram() -> None:
    near, far = _pair()
    carrier = Carrier(near, BinaryFraming(), Meter(), LOG)
    far.sendall(b"\x02\x00\x02{}")
    with pytest.raises(ProtocolError):
        carrier.run(lambda _: None)
    assert near.closed
    far.close()


def _pair() -> tuple[net.SocketConn, net.SocketConn]:
    listener = net.listen(LOOPBACK, 0)
    near = net.dial(socket.AF_INET, (LOOPBACK, listener.port))
    far = listener.accept()
    listener.close()
    return near, far


# ---- beside streams ----------------------------------------------------------------------------------------


def test_datagrams_pause_for_users_of_tcp_that_are_busy_and_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [0]
    monkeypatch.setattr("gnar_lib.proxy.share.busy_pairs", lambda: pairs[0])
    monkeypatch.setattr("gnar_lib.proxy.share.LOOK_EVERY_S", 0.0)
    meter, share = Meter(Meter()), Share()

    def work() -> float:
        """Do more than there is credit for; return the pause."""
        return share.pause_after(time.monotonic() - 0.01, meter)

    assert work() == 0  # no TCP at all
    pairs[0] = 1
    meter.up.bytes += 1
    assert work() > 0.005
    share.bytes, meter.up.bytes = 100, 101
    monkeypatch.setattr("gnar_lib.proxy.share.BUSY_FOR_S", 0.0)
    assert work() == 0  # connected, and silent: what was counted besides was datagrams


# ---- sockets -----------------------------------------------------------------------------------------------


def udp_user(host: str = LOOPBACK) -> gevent.socket.socket:
    sock = gevent.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(TIMEOUT_S)
    return sock


@contextmanager
def echoing(sock: DatagramSocket) -> Iterator[DatagramSocket]:
    """Have a socket answer with what it gets, for the block."""
    failed: list[int] = []
    sock.serve(lambda datagrams: failed.append(sock.send(datagrams)))
    try:
        yield sock
    finally:
        sock.close()
    assert sum(failed) == 0


@pytest.mark.parametrize("bind", ["", "0.0.0.0", "::"])
@pytest.mark.parametrize("asked", [LOOPBACK, "127.0.0.2", "127.0.0.3"])
def test_answer_leaves_from_the_address_that_the_question_came_to(bind: str, asked: str) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on loopback")
    with echoing(net.bind_udp(bind, 0)) as sock, udp_user() as user:
        for each in (asked, LOOPBACK, asked):
            user.sendto(b"question", (each, sock.port))
            assert user.recvfrom(100) == (b"question", (each, sock.port))


def test_ipv6_and_ipv4_users_are_answered_by_one_socket() -> None:
    with echoing(net.bind_udp("", 0)) as sock, udp_user("::1") as six, udp_user() as four:
        six.sendto(b"six", ("::1", sock.port))
        four.sendto(b"four", (LOOPBACK, sock.port))
        assert six.recvfrom(100)[0] == b"six"
        assert four.recvfrom(100)[0] == b"four"
        assert sock.recent_peers(60) == 2


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 65507])
def test_datagram_of_any_size_arrives_whole(size: int) -> None:
    payload = os.urandom(size)
    with echoing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as user:
        user.sendto(payload, (LOOPBACK, sock.port))
        assert user.recv(65536) == payload


def test_what_the_kernel_drops_is_counted() -> None:
    if sys.platform != "linux":
        pytest.skip("other systems do not tell")
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, udp_user() as user:
        for _ in range(20_000):
            user.sendto(b"x" * 500, (LOOPBACK, sock.port))
        sock.serve(heard.extend)
        dropped = sock.take_overflow()
        assert dropped > 0
        wait_until(lambda: len(heard) + dropped == 20_000)
        assert sock.take_overflow() == 0


def test_peers_are_forgotten_when_there_are_too_many_and_are_not_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagram, "MAX_PEERS", 4)
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as sock:
        sock.serve(heard.extend)
        for number in range(9):
            with udp_user() as user:
                user.sendto(b"x", (LOOPBACK, sock.port))
                wait_until(lambda number=number: len(heard) == number + 1)  # type: ignore[misc]  # bound now
        assert sock.send(heard[:4]) == 4
        assert sock.send(heard[4:]) == 0
        assert sock.recent_peers(60) == 5
        assert sock.send([(pack_address(("192.0.2.1", 53)), b"not asked")]) == 1


def test_port_that_is_taken_is_said() -> None:
    with closing(net.bind_udp(LOOPBACK, 0)) as sock, pytest.raises(PortTakenError, match="already in use"):
        net.bind_udp(LOOPBACK, sock.port)


def test_unknown_name_and_foreign_address_are_not_bound() -> None:
    for host in ("no..such..name", "192.0.2.1"):
        with pytest.raises(ConnError):
            net.bind_udp(host, 0)


def test_unreachable_target_is_a_dial_error() -> None:
    with pytest.raises(DialError, match="cannot connect to"):
        connect_udp(socket.AF_INET, ("255.255.255.255", 9))


# ---- the relay ---------------------------------------------------------------------------------------------


@contextmanager
def relaying(listen: str, target: str) -> Iterator[DatagramRelay]:
    """Relay for the block; afterwards nothing is left."""
    running = DatagramRelay(parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET))
    try:
        yield running
    finally:
        running.close()
    assert len(running.sessions) == 0


@pytest.mark.parametrize("listen", ["udp:127.0.0.1:0", "UDP4-LISTEN:0,fork,reuseaddr", "UDP-RECVFROM:0,fork"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_relay_carries_datagrams_of_many_users_to_their_own_sessions(listen: str, host: str) -> None:
    with (
        closing(EchoService(host.strip("[]"))) as service,
        relaying(listen, f"udp:{host}:{service.port}") as running,
    ):
        asking = [udp_user() for _ in range(20)]
        for number, user in enumerate(asking):
            user.sendto(b"%d" % number, (LOOPBACK, running.listener.port))
        for number, user in enumerate(asking):
            assert user.recv(100) == b"%d" % number
            user.close()
        assert len(running.sessions) == len({port for _, port in service.heard}) == 20


def test_relay_between_udp_and_unix_datagrams_both_ways(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.sock"
    with (
        closing(EchoService()) as service,
        relaying(f"unix-dgram:{path},mode=600", f"udp:127.0.0.1:{service.port}"),
        relaying("udp:127.0.0.1:0", f"UNIX-SENDTO:{path}") as outer,
        udp_user() as user,
    ):
        for payload in (b"hello", b"", b"x" * 5000):
            user.sendto(payload, (LOOPBACK, outer.listener.port))
            assert user.recv(65536) == payload
    assert not Path(path).exists()


def test_unix_target_that_comes_back_is_found_again(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.sock"
    answers = Answers(UnixDatagramTarget(path))
    with closing(answers.sessions):
        answers.sessions.send([(USER, b"nobody there")])
        assert answers.meter.dropped == 1
        for _ in range(2):
            with echoing(net.bind_unix_datagram(path)):
                while (USER, b"hello") not in answers.got:
                    answers.sessions.send([(USER, b"hello")])
                    gevent.sleep(0.005)
            answers.got.clear()


@pytest.mark.parametrize(("listen", "dropped"), [("UNIX-RECV", 0), ("unix-dgram", 1)])
def test_user_of_a_unix_socket_without_a_name_is_heard_and_not_answered(
    tmp_path: Path, listen: str, dropped: int
) -> None:
    path = f"{tmp_path}/log"
    with (
        closing(EchoService()) as service,
        relaying(f"{listen}:{path}", f"udp:127.0.0.1:{service.port}") as running,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
    ):
        nameless.sendto(b"<13>line", path)
        wait_until(lambda: bool(service.heard))
        assert service.heard[0][0] == b"<13>line"
        wait_until(lambda: len(running.sessions) == 1)
        wait_until(lambda: running.meter.dropped == dropped)


def test_without_fork_one_user_is_served_and_no_other() -> None:
    with (
        closing(EchoService()) as service,
        relaying("UDP4-LISTEN:0,bind=127.0.0.1", f"udp:127.0.0.1:{service.port}") as running,
        udp_user() as first,
        udp_user() as second,
    ):
        for number in range(3):
            first.sendto(b"%d" % number, (LOOPBACK, running.listener.port))
            assert first.recv(100) == b"%d" % number
            second.sendto(b"me, too", (LOOPBACK, running.listener.port))
        assert {payload for payload, _ in service.heard} == {b"0", b"1", b"2"}


def test_bind_sets_the_address_that_the_service_sees() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on loopback")
    with closing(EchoService()) as service:
        target = DatagramTarget(LOOPBACK, service.port, source="127.0.0.2")
        target.look_up()
        with closing(target.open()) as conn:
            assert conn.sock.getsockname()[0] == "127.0.0.2"
