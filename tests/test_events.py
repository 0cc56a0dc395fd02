"""Events reach those who have subscribed, and become lines of the log."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from gnar_lib import eventlog, events, logger
from gnar_lib.events import CloseReason, Side, Stopping, UserCame, emit

USER = ("192.0.2.1", 4000)
CLIENT = ("::ffff:192.0.2.2", 50)


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_listeners", {})


class Lines(logging.Handler):
    """Keeps `LEVEL prefix text` of each line that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {getattr(record, 'prefix', '')} {record.getMessage()}")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Start the log of events at debug level, and return the list that collects the lines."""
    monkeypatch.setattr(eventlog, "_bursts", eventlog._Bursts())
    root, handler = logging.getLogger("gnar"), Lines()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    eventlog.start()
    yield handler.lines
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_listener_gets_the_events_of_its_type_alone() -> None:
    got: list[events.Event] = []
    events.subscribe(UserCame, got.append)
    emit(UserCame, Side.SERVER, "blog", USER)
    emit(Stopping, Side.SERVER)
    assert got == [UserCame(Side.SERVER, "blog", USER)]


def test_no_event_is_made_when_nobody_listens() -> None:
    made = []

    def kind() -> events.Event:
        made.append("an event")
        return events.Event()

    emit(kind)
    assert not made


def test_whether_anybody_listens_can_be_asked() -> None:
    got: list[events.Event] = []
    assert not events.is_heard(UserCame)
    events.subscribe(UserCame, got.append)
    assert events.is_heard(UserCame)
    assert not events.is_heard(Stopping)
    events.unsubscribe(UserCame, got.append)
    assert not events.is_heard(UserCame)


def test_a_listener_that_has_left_gets_nothing_more() -> None:
    got: list[events.Event] = []
    events.subscribe(UserCame, got.append)
    events.unsubscribe(UserCame, got.append)
    events.unsubscribe(UserCame, got.append)
    emit(UserCame, Side.SERVER, "blog", USER)
    assert not got


def test_a_listener_may_leave_while_it_is_told() -> None:
    got: list[str] = []

    def once(_: UserCame) -> None:
        got.append("once")
        events.unsubscribe(UserCame, once)

    events.subscribe(UserCame, once)
    events.subscribe(UserCame, lambda _: got.append("always"))
    for _ in range(2):
        emit(UserCame, Side.SERVER, "blog", USER)
    assert got == ["once", "always", "always"]


def test_a_listener_that_fails_is_logged_and_holds_nobody_up(lines: list[str]) -> None:
    got: list[events.Event] = []

    def broken(_: UserCame) -> None:
        raise ValueError

    events.subscribe(UserCame, broken)
    events.subscribe(UserCame, got.append)
    emit(UserCame, Side.SERVER, "blog", USER)
    assert len(got) == 1
    assert lines[-1] == "ERROR events a listener of UserCame failed"


EXAMPLES: list[tuple[events.Event, str]] = [
    (
        events.LoginRefused(USER, "wrong token", events.Refusal.TOKEN),
        "WARNING server refused 192.0.2.1:4000: wrong token",
    ),
    (
        events.LoginGivenUp(USER, "it left"),
        "DEBUG server no login by 192.0.2.1:4000: it left",
    ),
    (
        events.ClientCame(CLIENT, "gnar-py/1", multiplexed=True),
        "INFO server client 192.0.2.2:50 (gnar-py/1, multiplexed)",
    ),
    (
        events.ClientReturned(CLIENT, USER),
        "INFO server client 192.0.2.1:4000 is back as 192.0.2.2:50",
    ),
    (
        events.ClientGone(CLIENT, "it hung up", broke_protocol=False),
        "INFO control client 192.0.2.2:50 has gone: it hung up",
    ),
    (
        events.ClientGone(CLIENT, "nonsense", broke_protocol=True),
        "WARNING control client 192.0.2.2:50 broke the protocol: nonsense",
    ),
    (events.Connected(USER, is_go=True), "INFO client connected to 192.0.2.1:4000 (a Go server)"),
    (
        events.ConnectFailed("reset", was_connected=True, retry_s=0.52),
        "WARNING client lost the server: reset; trying again in 0.5 s",
    ),
    (
        events.ConnectFailed("wrong token", was_connected=True, retry_s=0.52, is_refused=True),
        "ERROR client wrong token; trying again in 0.5 s",
    ),
    (
        events.DataConnsFail("refused; what helps", 2.0),
        "WARNING data connection cannot be opened: refused; what helps; trying again in 2.0 s",
    ),
    (
        events.ProxyOpened(Side.SERVER, "blog", "tcp", 9000, CLIENT),
        "INFO TCP [blog] port 9000 is open for 192.0.2.2:50",
    ),
    (events.ProxyOpened(Side.CLIENT, "dns", "udp", 53, USER, "h:53"), "INFO UDP [dns] open at h:53"),
    (
        events.ProxyRefused(Side.SERVER, "blog", "tcp", CLIENT, "port 1 is taken"),
        "WARNING TCP [blog] refused to 192.0.2.2:50: port 1 is taken",
    ),
    (
        events.ProxyRefused(Side.CLIENT, "blog", "tcp", CLIENT, "port 1 is taken", 2.0),
        "WARNING TCP [blog] port 1 is taken; trying again in 2.0 s",
    ),
    (
        events.ProxyRefused(Side.CLIENT, "blog", "tcp", CLIENT, "port 1 is not allowed"),
        "ERROR TCP [blog] the server refused: port 1 is not allowed",
    ),
    (
        events.ProxyClosed(Side.SERVER, "blog", "tcp", 9000, CLIENT, CloseReason.CANCELLED),
        "INFO TCP [blog] cancelled by 192.0.2.2:50",
    ),
    (UserCame(Side.SERVER, "blog", USER), "DEBUG TCP [blog] user 192.0.2.1:4000 has come"),
    (
        events.UserConnected(Side.SERVER, "blog", USER, 0.0301),
        "DEBUG TCP [blog] user 192.0.2.1:4000 is connected after 0.030 s",
    ),
    (
        events.UserAnswered(Side.RELAY, "tcp:9000", USER, 0.25),
        "DEBUG relay user 192.0.2.1:4000 is answered after 0.250 s",
    ),
    (
        events.UserLeft(Side.SERVER, "blog", USER, 10, 20, 1.5, "it"),
        "DEBUG TCP [blog] user 192.0.2.1:4000 has left after 1.500 s, with 10 bytes up and 20 down: it",
    ),
    (
        events.UserRefused("blog", "tcp", USER, "this server has 9 users already (max-users)"),
        "WARNING TCP [blog] turned 192.0.2.1:4000 away: this server has 9 users already (max-users)",
    ),
    (
        events.UdpUserCame(Side.SERVER, "dns", USER),
        "DEBUG UDP [dns] user 192.0.2.1:4000 has come",
    ),
    (events.DatagramsDropped(Side.SERVER, "dns", 7), "DEBUG UDP [dns] 7 datagrams were dropped"),
    (
        events.ServiceUnreachable("blog", "tcp", "refused", again=False),
        "WARNING TCP [blog] the local service does not answer: refused",
    ),
    (events.DescriptorsShort("accepting waits", "no files"), "WARNING net accepting waits: no files"),
    (events.Reloaded(Side.SERVER, 0), "INFO server configuration reloaded"),
    (events.Reloaded(Side.CLIENT, 2), "INFO client configuration reloaded: 2 new"),
    (Stopping(Side.SERVER), "INFO server stopping"),
]


@pytest.mark.parametrize(
    ("event", "line"),
    EXAMPLES,
    ids=lambda value: type(value).__name__ if isinstance(value, events.Event) else "",
)
def test_an_event_becomes_one_line(event: events.Event, line: str, lines: list[str]) -> None:
    emit(lambda: event)
    emit(type(event), *(getattr(event, name) for name in event.__dataclass_fields__))
    assert lines == [line]


KINDS = set(events.ALL)


def test_every_event_is_logged() -> None:
    assert set(eventlog._TOLD) == KINDS


def test_no_event_fills_the_log_however_often_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "_bursts", eventlog._Bursts())
    root = logging.getLogger("gnar")
    handlers = root.handlers
    try:
        down = events.ServiceUnreachable("blog", "tcp", "refused", again=False)
        flapping = [down, events.ServiceReached("blog", "tcp")]
        flapping_data = [events.DataConnsFail("refused", 2.0), events.DataConnsWork()]
        cases = [[event] for event, _ in EXAMPLES] + [flapping, flapping_data]
        assert {type(event) for case in cases for event in case} == KINDS
        for case in cases:
            stream = io.StringIO()
            logger.setup(stream)
            eventlog.start()
            for event in case * (3 * logger.LINES_PER_PERIOD):
                emit(type(event), *(getattr(event, name) for name in event.__dataclass_fields__))
            assert stream.getvalue().count("\n") <= logger.LINES_PER_PERIOD, case
    finally:
        root.handlers = handlers


def test_a_service_that_stays_away_is_told_once_and_so_is_its_return(lines: list[str]) -> None:
    for again in (False, True, True):
        emit(events.ServiceUnreachable, "blog", "tcp", "refused", again)
    emit(events.ServiceReached, "blog", "tcp")
    emit(events.ServiceUnreachable, "blog", "tcp", "refused", again=False)
    assert lines == [
        "WARNING TCP [blog] the local service does not answer: refused",
        "INFO TCP [blog] works again (2 more failed)",
        "WARNING TCP [blog] the local service does not answer: refused",
    ]


def test_another_proxy_of_the_same_name_tells_of_its_own_service(lines: list[str]) -> None:
    for again in (False, True):
        emit(events.ServiceUnreachable, "blog", "tcp", "port 1 refused", again)
    emit(events.ServiceUnreachable, "blog", "tcp", "port 2 refused", again=False)
    emit(events.ServiceReached, "blog", "tcp")
    assert lines == [
        "WARNING TCP [blog] the local service does not answer: port 1 refused",
        "WARNING TCP [blog] the local service does not answer: port 2 refused",
        "INFO TCP [blog] works again",
    ]


def test_starting_the_log_twice_logs_once(lines: list[str]) -> None:
    eventlog.start()
    emit(Stopping, Side.SERVER)
    assert lines == ["INFO server stopping"]


def test_settings_that_only_a_restart_changes_are_named(lines: list[str]) -> None:
    emit(events.Reloaded, Side.CLIENT, 0, unchanged=("port", "bind"), at_login=("token", "auth"))
    assert lines == [
        "WARNING client port stays as it is until the next start",
        "WARNING client bind stays as it is until the next start",
        "INFO client token changes at the next login",
        "INFO client auth changes at the next login",
        "INFO client configuration reloaded: 0 new",
    ]
