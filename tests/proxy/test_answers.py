"""When the first byte comes back from the service, that is said: once, and only if there is a byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import gevent
import pytest

from gnar_lib.errors import ConnError
from gnar_lib.events import Side, UserAnswered
from gnar_lib.net import Conn, SocketConn
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.joiner import Joiner
from gnar_lib.proxy.stream import busy_pairs
from gnar_lib.yamux import Session
from tests.helpers.conns import tcp_pair
from tests.helpers.events import hear
from tests.helpers.loop import turn, wait_until

USER = ("192.0.2.1", 4000)
TIMEOUT_S = 10.0


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[UserAnswered]:
    """Collect the events, which nobody else gets."""
    return hear(monkeypatch, UserAnswered)


@dataclass
class Ends:
    """The far ends of a user and of a service that are joined."""

    user: SocketConn
    service: Conn


def plain() -> tuple[Conn, Conn, Callable[[], None]]:
    """Return both ends of the way to a service, and what closes the rest."""
    near, far = tcp_pair()
    return near, far, far.close


def multiplexed() -> tuple[Conn, Conn, Callable[[], None]]:
    """Return both ends of a stream, and what closes the sessions."""
    sessions = [Session(conn, is_client=not number) for number, conn in enumerate(tcp_pair())]

    def close() -> None:
        for session in sessions:
            session.close()

    return sessions[0].open(), sessions[1].accept(), close


@contextmanager
def joined(make: Callable[[], tuple[Conn, Conn, Callable[[], None]]]) -> Iterator[Ends]:
    user, accepted = tcp_pair()
    near, service, close = make()

    def join() -> None:
        with suppress(ConnError):
            Joiner(Side.SERVER, "blog", Meter()).join(accepted, USER, lambda: near)

    with gevent.Timeout(TIMEOUT_S):
        running = gevent.spawn(join)
        turn()
        yield Ends(user, service)
        user.close()
        service.close()
        running.join()
        close()


@pytest.mark.parametrize("make", [plain, multiplexed])
def test_the_first_byte_from_the_service_is_told_once(
    make: Callable[[], tuple[Conn, Conn, Callable[[], None]]], answers: list[UserAnswered]
) -> None:
    with joined(make) as ends:
        ends.user.sendall(b"question")
        assert ends.service.recv(100) == b"question"
        turn()
        assert not answers
        ends.service.sendall(b"a")
        assert ends.user.recv(1) == b"a"
        wait_until(lambda: answers, "the answer is told")
        ends.service.sendall(b"nswer")
        assert ends.user.recv(100) == b"nswer"
        turn()
        assert len(answers) == 1
        assert (answers[0].side, answers[0].proxy, answers[0].user) == (Side.SERVER, "blog", USER)
        assert 0 < answers[0].after_s < TIMEOUT_S


@pytest.mark.parametrize("make", [plain, multiplexed])
def test_what_comes_after_a_silence_is_no_first_byte(
    make: Callable[[], tuple[Conn, Conn, Callable[[], None]]], answers: list[UserAnswered]
) -> None:
    with joined(make) as ends:
        for _ in range(2):
            ends.service.sendall(b"hello")
            assert ends.user.recv(100) == b"hello"
            wait_until(lambda: not busy_pairs(), "nobody waits for more of the service any longer")
    assert len(answers) == 1


@pytest.mark.parametrize("make", [plain, multiplexed])
def test_a_service_that_ends_without_a_byte_has_not_answered(
    make: Callable[[], tuple[Conn, Conn, Callable[[], None]]], answers: list[UserAnswered]
) -> None:
    with joined(make) as ends:
        ends.service.close()
        assert ends.user.recv(100) == b""
        turn()
    assert not answers
