"""Sessions of UDP users with a local service, and the limit on their datagrams."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gevent
import gevent.socket
import pytest

from gnar_lib import net
from gnar_lib.errors import DialError
from gnar_lib.net import Datagram, DatagramConn, datagram_conn
from gnar_lib.net.target import DatagramTarget, UnixDatagramTarget
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy import sessions as sessions_module
from gnar_lib.proxy.sessions import Limits
from gnar_lib.proxy.udp import admit
from tests.helpers.datagrams import (
    LOOPBACK,
    TIMEOUT_S,
    USER,
    Answers,
    EchoService,
    answering,
    echoing,
    target_at,
    users,
)
from tests.helpers.descriptors import descriptors_of_this_process
from tests.helpers.loop import turn, wait_until

SESSION_S = 0.8  # a busy machine holds a process up for less


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


def test_service_sees_users_apart_and_answers_come_back_to_each() -> None:
    with answering() as (service, answers):
        for _ in range(3):
            for user in users(50):
                answers.ask(user, user + os.urandom(8))
        assert len({port for _, port in service.heard}) == 50
        assert len(answers.sessions) == answers.meter.sessions == answers.meter.users_total == 50
        assert answers.meter.dropped == 0


def test_session_ends_after_its_time_without_a_datagram_and_not_before() -> None:
    with answering(Limits(timeout_s=SESSION_S)) as (_, answers):
        idle, busy = users(2)
        answers.ask(idle, b"once")
        answers.ask(busy, b"once")
        while answers.has(idle):
            gevent.sleep(SESSION_S / 16)  # far more often than the session needs
            answers.ask(busy, b"again")
        assert answers.has(busy)
        wait_until(lambda: len(answers.sessions) == 0, "the session of the busy user has ended")


def test_answers_alone_keep_a_session() -> None:
    with answering(Limits(timeout_s=SESSION_S)) as (service, answers):
        answers.ask(USER, b"once")
        end = time.monotonic() + 1.5 * SESSION_S
        while time.monotonic() < end:
            gevent.sleep(SESSION_S / 16)  # far more often than the session needs
            service._sock.sendto(b"news", (LOOPBACK, service.heard[0][1]))
        assert len(answers.sessions) == 1


def test_session_idle_longest_goes_first_when_there_are_too_many() -> None:
    with answering(Limits(60.0, sessions=3)) as (_, answers):
        first, second, third, fourth = users(4)
        for user in (first, second, third):
            answers.ask(user, b"hello")
        answers.ask(first, b"again")
        answers.ask(fourth, b"hello")
        assert [answers.has(user) for user in (first, second, third, fourth)] == [True, False, True, True]


def test_strangers_end_no_session_that_had_an_answer() -> None:
    heard: list[Datagram] = []
    with closing(net.bind_udp(LOOPBACK, 0)) as service:
        service.serve(heard.extend)
        answers = Answers(target_at(service.port), Limits(60.0, sessions=8))
        with closing(answers.sessions):
            answers.sessions.send([(USER, b"hello")])
            wait_until(lambda: heard, "the service has heard the user")
            service.send(heard[:1])
            wait_until(lambda: answers.got, "an answer")
            answers.sessions.send([(user, b"x") for user in users(200)[1:]])
            assert answers.has(USER)
            assert len(answers.sessions) == 8


def test_strangers_who_are_answered_end_no_session_of_a_user_who_went_on() -> None:
    with answering(Limits(60.0, sessions=8)) as (_, answers):
        answers.ask(USER, b"hello")
        answers.ask(USER, b"go on")
        for stranger in users(20)[1:]:
            answers.ask(stranger, b"x")
        assert answers.has(USER)
        assert len(answers.sessions) == 8


def test_few_sessions_a_second_can_begin_and_the_others_go_on() -> None:
    with answering(Limits(60.0, new=10)) as (_, answers):
        answers.ask(USER, b"hello")
        answers.sessions.send([(user, b"x") for user in users(100)[1:]])
        assert len(answers.sessions) == 10
        assert answers.meter.dropped == 90
        answers.ask(USER, b"go on")


def test_proxy_with_most_sessions_gives_one_up_when_all_have_half_of_the_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = sessions_module._all.count
    monkeypatch.setattr(sessions_module._all, "most", lambda: others + 10)
    with answering() as (_, flooded), answering() as (_, other):
        flooded.sessions.send([(user, b"x") for user in users(100)])
        assert len(flooded.sessions) == 10
        for user in users(8):
            other.ask(user, b"hello")
        assert [len(flooded.sessions), len(other.sessions)] == [5, 5]


def test_sessions_are_at_most_half_of_the_descriptors() -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
    try:
        with answering() as (_, answers):
            answers.sessions.send([(user, b"x") for user in users(500)])
            assert len(answers.sessions) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_sessions_leave_no_descriptor_behind() -> None:
    with answering(Limits(60.0, sessions=20)) as (_, answers):
        answers.ask(USER, b"x")
        before = descriptors_of_this_process()
        for user in users(200):
            answers.sessions.send([(user, b"x")])
        answers.sessions.close()
        assert descriptors_of_this_process() <= before


def test_port_unreachable_ends_nothing() -> None:
    with closing(EchoService()) as gone:
        port = gone.port
    answers = Answers(target_at(port))
    with closing(answers.sessions):
        for _ in range(5):
            answers.sessions.send([(USER, b"anybody?")])
            turn()  # the refusal has come
        with closing(EchoService(port=port)):
            answers.ask(USER, b"there you are")
            assert len(answers.sessions) == answers.meter.users_total == 1


def test_target_with_two_addresses_is_found_at_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(EchoService()) as service:
        port = service.port
        found = [(socket.AF_INET, ("127.0.0.3", port)), (socket.AF_INET, (LOOPBACK, port))]
        monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: found)
        answers = Answers(target_at(port, "two.example"))
        with closing(answers.sessions):
            answers.ask_again_until_answered(USER, b"hello")
            assert answers.got[0] == (USER, b"hello")


def test_name_is_looked_up_again_when_its_only_address_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnar_lib.net.place.LOOK_UP_PAUSE_S", 0.0)
    with closing(EchoService()) as service:
        addresses = [("127.0.0.3", service.port), (LOOPBACK, service.port)]
        monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: [(socket.AF_INET, addresses[0])])
        answers = Answers(target_at(service.port, "moved.example"))
        del addresses[0]
        with closing(answers.sessions):
            answers.ask_again_until_answered(USER, b"hello")


@pytest.mark.parametrize("is_silent", [True, False], ids=["the old service is silent", "the old one answers"])
def test_service_that_moves_is_found_after_silence_and_by_new_users(
    is_silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnar_lib.net.place.MAX_AGE_S", 0.0)
    monkeypatch.setattr("gnar_lib.net.place.LOOK_UP_PAUSE_S", 0.0)
    monkeypatch.setattr("gnar_lib.net.place.SILENT_PAUSE_S", 0.0)
    monkeypatch.setattr(datagram_conn, "SILENT_S", 0.0)
    monkeypatch.setattr(sessions_module, "SILENT_S", 0.0)
    monkeypatch.setattr(sessions_module, "RECHECK_S", 0.0)
    found: list[tuple[int, tuple[str, int]]] = []
    monkeypatch.setattr("gnar_lib.net.place.resolve", lambda *_: list(found))
    known, newcomer = users(2)
    with closing(EchoService()) as old, closing(EchoService("127.0.0.2", old.port)) as new:
        found.append((socket.AF_INET, (LOOPBACK, old.port)))
        answers = Answers(target_at(old.port, "moves.example"))
        with closing(answers.sessions):
            answers.ask(known, b"hello")
            found[:] = [(socket.AF_INET, ("127.0.0.2", new.port))]
            if is_silent:
                old.stop_answering()
                answers.ask_again_until_answered(known, b"still there?")
            else:
                answers.ask(known, b"still there?")
                answers.ask(newcomer, b"first")  # which has the name looked up
            turn()
            answers.ask_again_until_answered(users(3)[2], b"second")
            heard = {payload for payload, _ in new.heard}
            assert (b"still there?" in heard) == is_silent
            assert b"second" in heard


def test_addresses_are_young_for_half_a_minute_and_the_preferred_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    addresses = [(socket.AF_INET, (f"127.0.0.{number}", 9)) for number in (1, 2)]

    def resolve(*args: object) -> list[tuple[int, tuple[str, int]]]:
        asked.append(args)
        return list(addresses)

    monkeypatch.setattr("gnar_lib.net.place.resolve", resolve)
    target = target_at(9, "two.example")
    with closing(target.open()) as conn:
        assert target.refused(conn)
    for age_s, count in ((29.0, 1), (31.0, 2)):
        monkeypatch.setattr(target._place, "_looked_up_s", time.monotonic() - age_s)
        target.open().close()
        turn()
        assert len(asked) == count
    with closing(target.open()) as conn:
        assert conn.address == addresses[1][1]


def test_too_many_files_cost_the_session_idle_longest() -> None:
    class Full:
        """Fails for lack of descriptors at the first and the third call."""

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

        silent = refused

    with closing(EchoService()) as service:
        answers = Answers(Full(target_at(service.port)))
        first, second = users(2)
        with closing(answers.sessions):
            answers.sessions.send([(first, b"lost: there is no session to give up")])
            assert answers.meter.dropped == 1
            answers.ask(first, b"hello")
            answers.ask(second, b"hello")
            assert answers.has(second)
            assert not answers.has(first)


def test_limit_drops_what_exceeds_it_and_counts_the_rest() -> None:
    meter, flow = Meter(), Flow(Bucket(1000))
    datagrams = [(USER, b"x" * 400)] * 10
    passed = admit(datagrams, flow, meter)
    assert len(passed) == 2
    assert (flow.bytes, meter.dropped) == (800, 8)
    assert admit(datagrams, Flow(), meter) == datagrams


def test_unix_target_that_comes_back_is_found_again(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.sock"
    answers = Answers(UnixDatagramTarget(path))
    with closing(answers.sessions):
        answers.sessions.send([(USER, b"nobody there")])
        assert answers.meter.dropped == 1
        for _ in range(2):
            with echoing(net.bind_unix_datagram(path)):
                answers.ask_again_until_answered(USER, b"hello")
            answers.got.clear()
