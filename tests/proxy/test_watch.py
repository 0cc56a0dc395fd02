"""Pairs whose peers have gone without a word, or say nothing for long, are ended."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed
from gnar_lib.net import conn as conn_module
from gnar_lib.net import options
from gnar_lib.net.progress import TcpProgress, tcp_progress
from gnar_lib.pio.flow import Flow
from gnar_lib.proxy import watch as watch_module
from gnar_lib.proxy.stream import _Pair, stream
from gnar_lib.proxy.watch import Watch, watch
from tests.helpers.conns import Pair, tcp_pair
from tests.helpers.loop import turn, wait_until

TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wait_until(lambda: watch._timer is None, "what other tests have joined is forgotten")
    monkeypatch.setattr(watch_module, "TICK_S", 0.01)
    monkeypatch.setattr(watch_module, "MAX_ROUND_S", 0.01)
    with gevent.Timeout(TIMEOUT_S):
        yield
        wait_until(lambda: watch._timer is None, "nothing is watched any more")


@pytest.fixture
def ends() -> Iterator[Pair]:
    """The user's and the service's end of a joined pair."""
    user, a = tcp_pair()
    b, service = tcp_pair()
    errors: list[str] = []
    joined = gevent.spawn(join, a, b, errors)
    turn()
    yield user, service
    joined.join()
    assert len(errors) == 1
    for conn in (user, service):
        conn.close()


def join(a: net.SocketConn, b: net.SocketConn, errors: list[str]) -> None:
    try:
        stream(a, b)
    except ConnClosed as exc:
        errors.append(str(exc))


def is_reset(conn: net.SocketConn) -> bool:
    """Wait until a conn has been reset, of which no read tells behind the end of the stream."""
    wait_until(lambda: progress_of(conn).is_closed, "the reset")
    return True


def progress_of(conn: net.SocketConn) -> TcpProgress:
    return tcp_progress(conn.sock) or pytest.fail("this platform does not tell")


@pytest.mark.parametrize("first", [0, 1], ids=["user", "service"])
def test_peer_that_goes_after_the_end_of_its_direction_is_noticed(ends: Pair, first: int) -> None:
    gone, left = ends[first], ends[1 - first]
    gone.sendall(b"x")
    gone.shutdown(socket.SHUT_WR)
    assert (left.recv(1), left.recv(1)) == (b"x", b"")
    turn()
    gone.abort()
    assert is_reset(left)


def test_half_closed_pair_ends_when_the_other_direction_is_silent_for_long(ends: Pair) -> None:
    user, service = ends
    options.set_half_close_timeout(0.2)
    try:
        user.shutdown(socket.SHUT_WR)
        for _ in range(20):  # longer than that, but never silent for so long
            service.sendall(b"x")
            gevent.sleep(0.02)
        assert user.recv(100) == b"x" * 20
        assert is_reset(service)
        assert is_reset(user)
    finally:
        options.set_half_close_timeout(options.DEFAULT_HALF_CLOSE_TIMEOUT_S)


def test_peer_that_acknowledges_nothing_for_too_long_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = tcp_pair()
    told = TcpProgress(is_closed=False, has_failed=False, is_owed=False, silent_s=0.0)
    monkeypatch.setattr(conn_module, "tcp_progress", lambda _: told)
    dead_s = options.dead_after_s()

    def look(now_s: float, *, is_owed: bool, silent_s: float) -> str:
        nonlocal told
        told = TcpProgress(is_closed=False, has_failed=False, is_owed=is_owed, silent_s=silent_s)
        return near.why_gone(now_s)

    assert look(1000.0, is_owed=False, silent_s=900.0) == ""  # idle
    assert look(1010.0, is_owed=True, silent_s=910.0) == ""  # something was sent just now
    assert look(1010.0 + dead_s, is_owed=True, silent_s=910.0 + dead_s) == ""
    assert "nothing acknowledged for 121 s" in look(1011.0 + dead_s, is_owed=True, silent_s=911.0 + dead_s)
    assert look(2000.0, is_owed=True, silent_s=1.0) == ""  # an answer, and more was sent
    assert look(2000.0 + dead_s, is_owed=True, silent_s=dead_s + 1.0) != ""
    assert look(3000.0, is_owed=False, silent_s=0.1) == ""
    assert look(3001.0, is_owed=True, silent_s=1.1) == ""
    near.close()
    far.close()


def test_reader_that_stops_is_alive_however_long_it_takes() -> None:
    near, far = tcp_pair()
    while near.send_now(bytes(65536)):
        pass
    wait_until(
        lambda: (seen := tcp_progress(near.sock)) is not None and not seen.is_owed, "all is acknowledged"
    )
    assert near.why_gone(0.0) == ""
    assert near.why_gone(1e9) == ""
    near.close()
    far.close()


def test_bytes_that_came_before_a_reset_are_not_thrown_away() -> None:
    near, far = tcp_pair()
    far.sendall(b"x")
    far.abort()
    wait_until(lambda: near.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07", "the reset")
    assert near.why_gone(0.0) == ""
    assert near.recv(1) == b"x"
    assert "has gone" in near.why_gone(0.0)
    near.close()


def test_orderly_end_of_both_directions_is_no_failure_while_the_end_is_unread() -> None:
    near, far = tcp_pair()
    far.sendall(b"x")
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.close()
    wait_until(lambda: progress_of(near).is_closed, "both directions have ended")
    assert near.recv(1) == b"x"
    assert near.why_gone(0.0) == ""
    near.close()


def test_each_pair_has_its_turn_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "MAX_ROUND_S", 0.1)
    looks: dict[int, int] = {}
    made = Watch()

    class Counted:
        def __init__(self, number: int) -> None:
            self.number = number

        def look(self, now_s: float) -> None:
            assert now_s > 0
            looks[self.number] = looks.get(self.number, 0) + 1

    watched = [Counted(number) for number in range(25)]
    for each in watched:
        made.add(each)
    for ticks in range(1, 10):
        made._tick()
        assert sum(looks.values()) == 3 * ticks  # a tenth of them in each tick
    assert set(looks) == set(range(25))
    for each in watched:
        made.discard(each)
    made._tick()
    assert made._timer is None


def looked_at(pair: _Pair) -> gevent.Greenlet[[], None]:
    """Run a pair at which nobody looks but the test, by a clock of its own."""
    running = gevent.spawn(pair.run)
    turn()
    watch.discard(pair)
    return running


def test_pair_ends_when_no_byte_has_come_for_its_idle_timeout() -> None:
    user, a = tcp_pair()
    b, service = tcp_pair()
    pair = _Pair(a, b, Flow(), Flow(), 60.0)
    running = looked_at(pair)
    pair.look(1000.0)
    pair.look(1059.0)
    for now_s, sender, receiver in ((1060.0, user, service), (1120.0, service, user)):
        sender.sendall(b"x")
        assert receiver.recv(1) == b"x"
        turn()
        pair.look(now_s)
        pair.look(now_s + 59)
    assert not a.closed
    pair.look(1181.0)
    assert is_reset(user)
    assert is_reset(service)
    running.join()
    assert str(running.exception) == "idle for 60 s"
    for conn in (user, service):
        conn.close()


def test_silence_before_a_direction_has_ended_does_not_count_behind_its_end() -> None:
    user, a = tcp_pair()
    b, service = tcp_pair()
    pair = _Pair(a, b, Flow(), Flow(), 0.0)
    running = looked_at(pair)
    timeout_s = options.half_close_timeout_s()
    pair.look(1000.0)
    pair.look(1000.0 + 10 * timeout_s)  # silent, but neither direction has ended
    user.shutdown(socket.SHUT_WR)
    assert service.recv(1) == b""
    pair.look(1001.0 + 10 * timeout_s)
    pair.look(1000.0 + 11 * timeout_s)
    assert not a.closed
    pair.look(1002.0 + 11 * timeout_s)
    assert is_reset(user)
    running.join()
    assert "half-closed" in str(running.exception)
    for conn in (user, service):
        conn.close()
