"""One hook: which events it delivers, in which order, how often it tries, and what it drops."""

from __future__ import annotations

import logging
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest

from gnar_lib import events
from gnar_lib.config import HookConfig
from gnar_lib.events import (
    ClientCame,
    ClientGone,
    CloseReason,
    Connected,
    ConnectFailed,
    LoginRefused,
    ProxyClosed,
    ProxyOpened,
    Refusal,
    ServiceReached,
    ServiceUnreachable,
    Side,
    Stopping,
    UserCame,
    emit,
)
from gnar_lib.hooks import hook as hook_module
from gnar_lib.hooks.hook import COMMANDS_AT_ONCE, Hook
from gnar_lib.hooks.message import Message
from gnar_lib.hooks.outcome import Outcome
from gnar_lib.hooks.queue import FREQUENT, MAX_FREQUENT, MAX_QUEUED, Pace, Queue
from gnar_lib.net import Crew
from tests.helpers.docs import DOCS
from tests.helpers.loop import turn, wait_until

PAGE = DOCS["docs/hooks.md"].read_text()
USER, CLIENT, SERVER = ("192.0.2.1", 4000), ("192.0.2.2", 50), ("192.0.2.3", 8910)
DOWN = Outcome("it is down", may_retry=True)


class Recorder:
    """Stands in for a receiver: keeps the messages, and answers with the next of `outcomes`."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.outcomes: list[Outcome] = []
        self.open: gevent.event.Event = gevent.event.Event()  # not set: it hangs
        self.open.set()

    def deliver(self, message: Message) -> Outcome:
        self.open.wait()
        self.messages.append(message)
        return self.outcomes.pop(0) if self.outcomes else Outcome()

    @property
    def told(self) -> list[str]:
        return [message.event for message in self.messages]


class Running:
    """A hook with its greenlet."""

    def __init__(self, config: HookConfig) -> None:
        self.receiver = Recorder()
        self.hook = Hook(config, self.receiver, "server", "vps")
        self.crew = Crew("hooks")
        self.hook.start()
        self.crew.spawn(self.hook.run)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(hook_module, "COMMAND_EVERY_S", 1e-9)
    monkeypatch.setattr(events, "_listeners", {})


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("gnar"), "propagate", True)
    caplog.set_level(logging.INFO, "gnar")
    return lambda: [record.getMessage() for record in caplog.records]


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start hooks of these events and settings; they end with the test."""
    started: list[Running] = []

    def begin(*names: str, **settings: Any) -> Running:
        started.append(Running(HookConfig(names, command=("true",), **settings)))
        return started[-1]

    yield begin
    for each in started:
        each.crew.kill()
        assert each.crew.wait_empty(5)


def gone(number: int = 1, *proxies: str) -> None:
    ports = tuple(range(9000, 9000 + len(proxies)))
    emit(ClientGone, CLIENT, "it hung up", False, f"id{number}", proxies, 1.0, ports)


def opened(name: str, port: int) -> None:
    emit(ProxyOpened, Side.SERVER, name, "tcp", port, CLIENT)


# ---- what is told ------------------------------------------------------------------------------------------


def test_only_events_that_are_named_are_made_and_told_each_type_in_order(start: Start) -> None:
    running = start("user-came", "stopping")
    for _ in range(3):
        emit(UserCame, Side.SERVER, "blog", USER)
    emit(Stopping, Side.SERVER)
    gone()
    turn()
    assert running.receiver.told == ["stopping"] + ["user-came"] * 3
    assert events._listeners.keys() == {UserCame, Stopping}


def test_hook_of_some_proxies_is_told_of_these_and_of_what_is_about_none(start: Start) -> None:
    running = start("user-came", "client-gone", "proxy-opened", "stopping", proxies=("blog",))
    for name in ("shop", "blog"):
        emit(UserCame, Side.SERVER, name, USER)
        gone(1, "other", name)
        opened(name, 9000)
    gone(1)
    emit(Stopping, Side.SERVER)
    turn()
    assert running.receiver.told == ["client-gone", "proxy-opened", "stopping", "user-came"]
    assert "shop" not in str(running.receiver.messages)


# ---- tries -------------------------------------------------------------------------------------------------


def test_event_is_tried_again_with_its_id_before_the_next_one(start: Start) -> None:
    running = start("user-came", "stopping")
    running.receiver.outcomes = [DOWN] * 3
    emit(UserCame, Side.SERVER, "blog", USER)
    turn()
    emit(Stopping, Side.SERVER)
    wait_until(lambda: len(running.receiver.messages) == 5, "all tries")
    assert running.receiver.told == ["user-came"] * 4 + ["stopping"]
    ids = [message.id for message in running.receiver.messages]
    assert len({*ids[:4]}) == 1
    assert ids[4] != ids[0]


def test_pauses_double_and_a_receiver_may_ask_for_longer_ones(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    running = start("stopping")
    finished = SimpleNamespace(wait=pauses.append, is_set=lambda: False)
    monkeypatch.setattr(running.hook, "_finished", finished)
    monkeypatch.setattr(hook_module, "FIRST_PAUSE_S", 1.0)
    running.receiver.outcomes = [DOWN] * 10 + [Outcome("busy", may_retry=True, wait_s=600)]
    emit(Stopping, Side.SERVER)
    wait_until(lambda: len(running.receiver.messages) == 12, "all tries")
    expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert all(0.8 * wanted <= got <= 1.2 * wanted for wanted, got in zip(expected, pauses, strict=False))
    assert pauses[10] == 600


@pytest.mark.parametrize(
    ("outcome", "settings"),
    [
        (Outcome("not found"), {}),
        (DOWN, {"retry_for_s": 0.0}),
        (Outcome("busy", may_retry=True, wait_s=600), {"retry_for_s": 599.0}),
    ],
)
def test_event_is_given_up_when_another_try_does_not_help_or_time_is_over(
    start: Start, lines: Callable[[], list[str]], outcome: Outcome, settings: dict[str, float]
) -> None:
    running = start("stopping", **settings)
    running.receiver.outcomes = [outcome]
    emit(Stopping, Side.SERVER)
    turn()
    assert running.receiver.told == ["stopping"]
    assert lines() == [f"stopping is not delivered: {outcome.reason}; given up"]
    emit(Stopping, Side.SERVER)
    turn()
    assert lines()[1:] == ["works again"]


# ---- too much ----------------------------------------------------------------------------------------------


def test_flood_of_events_with_a_receiver_that_hangs_takes_bounded_memory_and_is_told_once(
    start: Start, lines: Callable[[], list[str]]
) -> None:
    running = start("user-came")
    running.receiver.open.clear()
    tracemalloc.start()
    try:
        for number in range(100_000):
            emit(UserCame, Side.SERVER, "blog", ("192.0.2.1", number))
            if number % 1000 == 0:
                gevent.sleep(0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 << 20
    assert len(running.hook._queue) == MAX_FREQUENT
    assert lines() == [f"an event is dropped: {MAX_FREQUENT} wait already"]
    running.receiver.open.set()
    wait_until(lambda: len(running.receiver.messages) == MAX_FREQUENT + 1, "those that were kept")
    told = [message.fields["user"] for message in running.receiver.messages]
    assert told == [f"192.0.2.1:{number}" for number in range(MAX_FREQUENT + 1)]


def test_flood_by_strangers_takes_no_place_of_what_clients_do_and_is_told_behind_it(start: Start) -> None:
    running = start("login-refused", "user-came", "client-gone", "proxy-opened", "stopping")
    running.receiver.open.clear()
    for number in range(2 * MAX_QUEUED):
        emit(LoginRefused, ("192.0.2.1", number), "the token is wrong", Refusal.TOKEN)
        emit(UserCame, Side.SERVER, "blog", USER)
        turn()
    gone(1, "nas")
    opened("nas", 9000)
    emit(Stopping, Side.SERVER)
    running.receiver.open.set()
    wait_until(lambda: len(running.receiver.messages) == MAX_FREQUENT + 4, "those that were kept")
    assert running.receiver.told[1:4] == ["client-gone", "proxy-opened", "stopping"]


def test_events_that_only_clients_can_make_have_a_bound() -> None:
    queue = Queue()
    gone_client = ClientGone(CLIENT, "it hung up", False)
    refused = [queue.put(gone_client, 1.0) for _ in range(MAX_QUEUED)]
    assert refused == [0] * (MAX_QUEUED - MAX_FREQUENT) + [MAX_QUEUED - MAX_FREQUENT] * MAX_FREQUENT


def test_types_that_leave_room_for_others_are_those_that_the_page_names() -> None:
    (told,) = re.findall(r"Strangers and users can make .*?: (.*?)\. Those", PAGE, re.DOTALL)
    assert sorted(re.findall(r"`([a-z-]+)`", told)) == sorted(map(events.name_of, FREQUENT))


def test_flood_of_events_runs_few_commands_at_once_and_what_matters_is_next(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "COMMAND_EVERY_S", 3600.0)
    running = start("login-refused", "client-gone")
    for number in range(MAX_QUEUED):
        emit(LoginRefused, ("192.0.2.1", number), "the token is wrong", Refusal.TOKEN)
        turn()
    assert running.receiver.told == ["login-refused"] * COMMANDS_AT_ONCE
    gone(1, "nas")
    turn()
    assert len(running.receiver.told) == COMMANDS_AT_ONCE
    assert running.hook._pace is not None
    running.hook._pace._used -= 1  # an hour later
    running.hook._woken.set()
    wait_until(lambda: running.receiver.told[COMMANDS_AT_ONCE:] == ["client-gone"], "the next command")


def test_hook_that_posts_has_no_pace() -> None:
    assert Hook(HookConfig(("stopping",)), Recorder(), "server", "vps")._pace is None


def test_pace_lets_a_burst_go_and_then_one_in_each_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(3, 2.0)

    def used_at_once() -> int:
        count = 0
        while not pace.wait_s():
            pace.use()
            count += 1
        return count

    assert used_at_once() == 3
    assert pace.wait_s() == 2.0
    now[0] += 1.5
    assert pace.wait_s() == 0.5
    now[0] += 0.5
    assert used_at_once() == 1
    now[0] += 1000
    assert used_at_once() == 3


# ---- the end -----------------------------------------------------------------------------------------------


def test_hook_that_is_to_finish_tries_once_more_and_takes_nothing_new(start: Start) -> None:
    running = start("user-came", "stopping")
    running.receiver.outcomes = [DOWN, DOWN, DOWN]
    for _ in range(2):
        emit(UserCame, Side.SERVER, "blog", USER)
    wait_until(lambda: running.receiver.messages, "the first try")
    running.hook.finish(20.0)
    emit(Stopping, Side.SERVER)
    assert running.crew.wait_empty(5)
    assert running.receiver.told.count("stopping") == 0
    assert not events._listeners.get(UserCame)


def test_hook_that_hangs_ends_after_its_time(start: Start, lines: Callable[[], list[str]]) -> None:
    running = start("user-came")
    running.receiver.open.clear()
    for _ in range(3):
        emit(UserCame, Side.SERVER, "blog", USER)
    turn()
    running.hook.finish(0.05)
    assert running.crew.wait_empty(5)
    assert lines() == ["3 events were not delivered before the end"]


# ---- delay -------------------------------------------------------------------------------------------------


def test_what_stays_away_is_told_after_the_delay_with_the_time_of_the_event(start: Start) -> None:
    running = start("client-gone", "stopping", delay_s=0.2)
    before = time.time()
    gone()
    emit(Stopping, Side.SERVER)
    turn()
    assert running.receiver.told == ["stopping"]
    happened = time.time()
    wait_until(lambda: running.receiver.told == ["stopping", "client-gone"], "the delay")
    assert time.time() >= before + 0.2
    assert before <= running.receiver.messages[1].fields["at"] <= happened


@pytest.mark.parametrize(
    ("names", "lost", "back"),
    [
        (
            ("client-gone", "client-came"),
            lambda: gone(1, "nas"),
            lambda: emit(ClientCame, CLIENT, "gnar", False, "id1"),
        ),
        (("client-gone",), lambda: gone(1, "web", "nas"), lambda: opened("nas", 9001)),
        (
            ("proxy-closed", "proxy-opened"),
            lambda: emit(ProxyClosed, Side.SERVER, "nas", "tcp", 9000, CLIENT, CloseReason.CLIENT_LEFT),
            lambda: opened("nas", 9000),
        ),
        (
            ("connect-failed", "connected"),
            lambda: emit(ConnectFailed, "it is away", True, 1.0),
            lambda: emit(Connected, SERVER, False),
        ),
        (
            ("service-unreachable", "service-reached"),
            lambda: emit(ServiceUnreachable, "nas", "tcp", "it is away", False),
            lambda: emit(ServiceReached, "nas", "tcp"),
        ),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_what_is_back_in_time_is_not_told_and_what_is_late_is(
    start: Start, names: tuple[str, ...], lost: Callable[[], None], back: Callable[[], None]
) -> None:
    patient, quick = start(*names, delay_s=60.0), start(*names, delay_s=0.1)
    lost()
    wait_until(lambda: quick.receiver.told == [names[0]], "the shorter delay")
    back()
    turn()
    assert patient.receiver.told == []
    assert quick.receiver.told == [*names]
    assert patient.hook._absences is not None
    assert patient.hook._absences.next_s is None
    assert not patient.hook._absences._client_of


def test_events_by_which_a_client_that_was_started_anew_is_known_are_told(start: Start) -> None:
    running = start("client-gone", "client-came", "proxy-opened", delay_s=60.0)
    gone(1, "nas")
    emit(ClientCame, CLIENT, "gnar", False, "id2")
    opened("nas", 9000)
    turn()
    assert running.receiver.told == ["client-came", "proxy-opened"]
    assert running.hook._absences is not None
    assert running.hook._absences.next_s is None


def test_return_of_another_is_no_return(start: Start) -> None:
    running = start("client-gone", delay_s=0.3)
    gone(1, "nas")
    emit(ClientCame, CLIENT, "gnar", False, "id2")
    emit(ClientCame, CLIENT, "Go", False, "")
    opened("nas", 9001)
    opened("web", 9000)
    wait_until(lambda: running.receiver.told == ["client-gone"], "the delay")


def test_trouble_that_goes_on_is_told_once_and_again_after_it_was_over(start: Start) -> None:
    running = start("connect-failed", delay_s=0.05)
    for _ in range(2):
        for _ in range(20):
            emit(ConnectFailed, "it is away", True, 1.0)
            gevent.sleep(0.01)
        emit(Connected, SERVER, False)
    wait_until(lambda: len(running.receiver.messages) == 2, "both")
    turn()
    assert running.receiver.told == ["connect-failed"] * 2


def test_more_absences_than_can_be_held_are_told_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnar_lib.hooks.absence.MAX_HELD", 3)
    running = start("client-gone", delay_s=60.0)
    for number in range(5):
        gone(number)
    turn()
    assert [message.fields["id"] for message in running.receiver.messages] == ["id3", "id4"]
