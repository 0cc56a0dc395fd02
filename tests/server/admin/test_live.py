"""What the API tells of connections, and the stream on which the panel lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import gevent
import pytest

from gnar_lib import events
from gnar_lib.admin.feed import KEPT_OF_TYPE
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Secret, ServerConfig
from gnar_lib.events import ClientGone, LoginGivenUp, UserRefused, emit
from gnar_lib.pio import rates as rates_module
from gnar_lib.pio.meter import LiveConnection, Meter
from gnar_lib.server.admin import api as api_module
from gnar_lib.server.admin import live as live_module
from tests.helpers.admin import PASSWORD, READ_TOKEN, Told, Watched, watched
from tests.helpers.loop import wait_until

QUICKLY_S = 0.01
ADMIN = f"Bearer {PASSWORD}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have states and samples follow each other quickly."""
    monkeypatch.setattr(live_module, "LOOK_S", QUICKLY_S)
    monkeypatch.setattr(rates_module, "STEP_S", QUICKLY_S)


@contextmanager
def a_proxy(panel: Watched, name: str = "blog") -> Iterator[tuple[ControlConn, Meter]]:
    """Have a client with one proxy for the block."""
    control, port = panel.running.log_in(name)
    held = [each for one in panel.running.server.control_ingress.clients for each in one.held]
    (ingress,) = [each for each in held if each.port == port]
    yield control, ingress.proxy.meter
    control.close()


def come(
    stack: ExitStack, meter: Meter, host: str, port: int, end: Callable[[], None] = lambda: None
) -> LiveConnection:
    return stack.enter_context(meter.connection((host, port), end))


# ---- connections -------------------------------------------------------------------------------------------


def test_connections_are_filtered_sorted_and_shown_page_by_page() -> None:
    with watched() as panel, ExitStack() as stack:
        _, meter = stack.enter_context(a_proxy(panel))
        _, other = stack.enter_context(a_proxy(panel, "nas"))
        users = [come(stack, meter, f"192.0.2.{number % 7}", 4000 + number) for number in range(30)]
        come(stack, other, "2001:db8::1", 5)
        for number, live in enumerate(users):
            live.up.bytes = number * 37 % 30  # all different
            live.down.bytes = number % 3  # many are equal
            live.began_s += number
        proxies = {each["name"]: each["id"] for each in panel.get("proxies")["proxies"]}

        def ids(query: str) -> list[int]:
            shown = panel.get(f"connections?proxy={proxies['blog']}&{query}")["connections"]
            assert {each["proxy"] for each in shown} <= {proxies["blog"]}
            return [int(each["id"][1:]) - users[0].number for each in shown]

        everything = panel.get("connections")
        assert (everything["matched"], everything["total"], len(everything["connections"])) == (31, 31, 31)
        assert "[2001:db8::1]:5" in [each["user"] for each in everything["connections"]]
        assert ids("") == ids("sort=age&order=asc&limit=100&offset=0") == [*range(29, -1, -1)]
        assert ids("order=desc") == [*range(30)]
        assert ids("sort=up") == sorted(range(30), key=lambda number: number * 37 % 30)
        for sort in ("rate", "rate_up", "rate_down", "idle"):  # which change while the test looks at them
            assert sorted(ids(f"sort={sort}")) == [*range(30)]
        for sort in ("up", "down", "user", "age"):
            whole = ids(f"sort={sort}")
            pages = [ids(f"sort={sort}&limit=7&offset={offset}") for offset in range(0, 35, 7)]
            assert [each for page in pages for each in page] == whole, sort
            assert ids(f"sort={sort}&order=desc") == whole[::-1]
        assert ids("sort=down") == sorted(range(30), key=lambda number: (number % 3, number))
        assert ids("limit=0") == ids("offset=1000") == ids("filter=nobody") == []
        found = panel.get(f"connections?proxy={proxies['blog']}&filter=192.0.2.3%3A40&limit=2")
        assert (found["matched"], found["total"], len(found["connections"])) == (4, 30, 2)


@pytest.mark.parametrize("path", ["connections", "live"])
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("proxy=p999999", 404),
        ("proxy=blog", 404),
        ("sort=size", 400),
        ("sort=", 400),
        ("order=up", 400),
        ("limit=1001", 400),
        ("limit=-1", 400),
        ("limit=1e3", 400),
        ("limit=%D9%A3", 400),  # a digit, but no ASCII
        ("limit=", 400),
        ("offset=9007199254740993", 400),
        (f"offset={'9' * 5000}", 400),
        (f"filter={'x' * 201}", 400),
        ("limit=1&limit=2", 400),
        ("only=this", 400),
    ],
)
def test_wrong_parameters_are_refused(path: str, query: str, status: int) -> None:
    with watched() as panel:
        answer = panel.ask("GET", f"/api/v1/{path}?{query}")
        if (path, query) == ("connections", "only=this"):  # means nothing there
            status = 200
        assert answer.status == status, answer
        if status != 200:
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json["status"] == status


def test_an_idle_connection_says_so_and_one_that_moves_does_not() -> None:
    with watched() as panel, a_proxy(panel) as (_, meter), ExitStack() as stack:
        still, busy = come(stack, meter, "192.0.2.1", 1), come(stack, meter, "192.0.2.2", 2)
        for live in (still, busy):
            live.began_s -= 100
        busy.up.bytes += 1
        shown = panel.get("connections?sort=user")["connections"]
        assert shown[0]["idle_s"] >= 100
        assert shown[1]["idle_s"] == 0
        assert shown[0]["since"] == pytest.approx(panel.get("server")["now"] - 100, abs=5)


def test_only_what_is_shown_of_5000_connections_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with watched() as panel, a_proxy(panel) as (_, meter), ExitStack() as stack:
        for number in range(5000):
            come(stack, meter, "192.0.2.1", number)
        view = panel.admin._view
        made: list[LiveConnection] = []
        show = view._connection

        def count(proxy_id: str, connection: LiveConnection) -> Any:
            made.append(connection)
            return show(proxy_id, connection)

        monkeypatch.setattr(view, "_connection", count)
        found = panel.get("connections?limit=10&sort=rate")
        assert (found["total"], len(found["connections"]), len(made)) == (5000, 10, 10)


# ---- the stream of states ----------------------------------------------------------------------------------


def next_state(take: Callable[[], Told | None], fits: Callable[[Any], object] = lambda _: True) -> Any:
    """Return the data of the next state that fits."""
    while (told := take()) is not None:
        if told.name == "state" and fits(told.data):
            return told.data
    raise AssertionError("the stream has ended")


@pytest.mark.usefixtures("quick")
def test_the_first_state_holds_everything_and_later_ones_what_has_changed() -> None:
    with watched() as panel, a_proxy(panel) as (_, meter), ExitStack() as stack:
        live = come(stack, meter, "192.0.2.1", 1)
        with panel.stream("/api/v1/live") as take:
            first = next_state(take)
            assert "removed" not in first
            assert first["connections"] is None
            assert first["server"]["may_change"] is True
            (client,) = first["clients"] or next_state(take, lambda state: state["clients"])["clients"]
            later = next_state(take)
            assert (later["clients"], later["removed"]) == ([], [])
            live.down.bytes += 10_000
            moved = next_state(take, lambda state: [each for each in state["proxies"] if each["bytes_down"]])
            (proxy,) = moved["proxies"]
            assert (proxy["bytes_down"], proxy["client"]) == (10_000, client["id"])
            assert moved["clients"] == []
            pointed = next_state(take, lambda state: [each for each in state["proxies"] if each.get("point")])
            assert "chart" not in pointed["proxies"][0]
            with panel.stream("/api/v1/live") as other:
                (new,) = next_state(other)["proxies"]
                chart = new["chart"]
                assert len(chart["up"]) == len(chart["down"]) == len(chart["users"]) > 0
            stack.close()
            quiet = next_state(take, lambda state: [each for each in state["proxies"] if not each["users"]])
            assert quiet["proxies"][0]["users_total"] == 1


@pytest.mark.usefixtures("quick")
def test_many_proxies_come_in_several_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MAX_OF_STATE", 2)
    with watched() as panel, ExitStack() as stack:
        for number in range(5):
            stack.enter_context(a_proxy(panel, f"blog{number}"))
        panel.get("proxies")
        with panel.stream("/api/v1/live") as take:
            states = [next_state(take) for _ in range(3)]
    assert [len(state["proxies"]) for state in states] == [2, 2, 1]
    assert len({proxy["id"] for state in states for proxy in state["proxies"]}) == 5
    assert [len(state["clients"]) for state in states] == [5, 0, 0]
    assert all(state["server"]["proxies"] == 5 for state in states)


@pytest.mark.usefixtures("quick")
def test_an_idle_proxy_costs_a_reader_nothing_after_the_first_state() -> None:
    with watched() as panel, a_proxy(panel):
        panel.get("proxies")
        with panel.stream("/api/v1/live") as take:
            next_state(take, lambda state: state["proxies"])
            for _ in range(12):  # more than there are between two points
                assert next_state(take)["proxies"] == []


@pytest.mark.usefixtures("quick")
def test_what_is_not_listed_any_more_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    with watched() as panel, a_proxy(panel), panel.stream("/api/v1/live") as take:
        shown = next_state(take, lambda state: state["proxies"])
        (proxy,) = shown["proxies"]
        monkeypatch.setattr(panel.admin._view.registry, "_forget", lambda _now: None)
        del panel.admin._view.registry.proxies[proxy["id"]]
        panel.admin._view.registry.look = lambda: None  # type: ignore[method-assign]
        assert next_state(take, lambda state: state["removed"])["removed"] == [proxy["id"]]


@pytest.mark.usefixtures("quick")
def test_a_reader_who_has_missed_points_gets_whole_charts_again() -> None:
    with watched() as panel, a_proxy(panel) as (_, meter), ExitStack() as stack:
        live = come(stack, meter, "192.0.2.1", 1)
        live.up.bytes += 10_000
        sampler = panel.admin._view.sampler
        with panel.stream("/api/v1/live") as take:
            next_state(take, lambda state: state["proxies"])
            next_state(take, lambda state: [each for each in state["proxies"] if each.get("point")])
            sampler.points += 2  # as if the reader had been slow
            whole = next_state(take, lambda state: [each for each in state["proxies"] if each.get("chart")])
            assert "point" not in whole["proxies"][0]


@pytest.mark.usefixtures("quick")
def test_connections_of_a_proxy_are_in_each_state_if_they_are_asked_for() -> None:
    with watched() as panel, a_proxy(panel) as (_, meter), ExitStack() as stack:
        live = come(stack, meter, "192.0.2.1", 1)
        (proxy,) = panel.get("proxies")["proxies"]
        with panel.stream(f"/api/v1/live?proxy={proxy['id']}&limit=1&sort=up&order=desc") as take:
            (shown,) = next_state(take)["connections"]["connections"]
            assert shown["user"] == "192.0.2.1:1"
            live.up.bytes += 5
            more = come(stack, meter, "192.0.2.2", 2)
            state = next_state(take, lambda state: state["connections"]["total"] == 2)
            assert state["connections"]["connections"][0]["bytes_up"] == 5
            more.up.bytes += 50
            next_state(take, lambda state: state["connections"]["connections"][0]["user"] == "192.0.2.2:2")


@pytest.mark.usefixtures("quick")
def test_a_stream_of_connections_alone_holds_nothing_else_and_goes_on_without_the_proxy() -> None:
    with watched() as panel, ExitStack() as stack:
        with a_proxy(panel) as (_, meter):
            come(stack, meter, "192.0.2.1", 1)
            come(stack, meter, "192.0.2.2", 2)
            (proxy,) = panel.get("proxies")["proxies"]
            query = f"/api/v1/live?only=connections&proxy={proxy['id']}&filter=.2:2"
            filtered = stack.enter_context(panel.stream(query))
            everything = stack.enter_context(panel.stream("/api/v1/live?only=connections&limit=1&filter=.1:"))
            state = next_state(filtered)
            assert set(state) == {"server", "connections"}
            assert [each["user"] for each in state["connections"]["connections"]] == ["192.0.2.2:2"]
            state = next_state(everything)["connections"]
            assert (len(state["connections"]), state["matched"], state["total"]) == (1, 1, 2)
        wait_until(lambda: not panel.running.server.control_ingress.clients, "the client has gone")
        del panel.admin._view.registry.proxies[proxy["id"]]
        empty = {"connections": [], "matched": 0, "total": 0}
        next_state(filtered, lambda state: state["connections"] == empty)


@pytest.mark.usefixtures("quick")
def test_states_of_a_reader_say_that_nothing_may_be_changed() -> None:
    with (
        watched(PASSWORD, READ_TOKEN) as panel,
        panel.stream("/api/v1/live", Authorization=f"Bearer {READ_TOKEN}") as take,
    ):
        assert next_state(take)["server"]["may_change"] is False


@pytest.mark.usefixtures("quick")
def test_streams_end_with_the_password_that_opened_them() -> None:
    with watched(PASSWORD) as panel, ExitStack() as stack:
        paths = ("/api/v1/live", "/api/v1/live?only=connections", "/api/v1/events")
        streams = [stack.enter_context(panel.stream(path, Authorization=ADMIN)) for path in paths]
        for take in streams[:2]:
            next_state(take)
        shared = panel.running.server.shared
        shared.config = with_password(shared.config, "another")
        for take in streams[:2]:
            while take() is not None:
                pass
        emit(UserRefused, "blog", "tcp", ("192.0.2.1", 1), "there are too many")
        assert streams[2]() is None


@pytest.mark.usefixtures("quick")
def test_streams_end_with_the_session_that_opened_them() -> None:
    with watched(PASSWORD) as panel:
        cookie = panel.post("/api/v1/login", {"password": PASSWORD}).headers["Set-Cookie"].partition(";")[0]
        with panel.stream("/api/v1/live", Cookie=cookie) as take:
            assert next_state(take)["server"]["logged_in"] is True
            assert panel.post("/api/v1/logout", None, Cookie=cookie).status == 204
            while take() is not None:
                pass
        assert panel.ask("GET", "/api/v1/server", Cookie=cookie).status == 401


def with_password(config: ServerConfig, password: str) -> ServerConfig:
    return replace(config, admin=replace(config.admin, password=Secret(password)))


def test_no_more_streams_of_states_than_the_server_can_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_LIVE", 2)
    with watched() as panel:
        with panel.stream("/api/v1/live") as one, panel.stream("/api/v1/live") as other:
            next_state(one)
            next_state(other)
            answer = panel.ask("GET", "/api/v1/live")
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        wait_until(lambda: panel.ask("HEAD", "/api/v1/live").status == 200, "there is room again")


# ---- events ------------------------------------------------------------------------------------------------


def test_whoever_may_change_things_gets_a_stream_while_readers_have_all_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_module, "MAX_LIVE_OF_READERS", 1)
    reader = f"Bearer {READ_TOKEN}"
    with watched(PASSWORD, READ_TOKEN) as panel:
        with panel.stream("/api/v1/live", Authorization=reader) as take:
            next_state(take)
            for path in ("/api/v1/live", "/api/v1/live?only=connections"):
                assert panel.ask("GET", path, Authorization=reader).status == 503
            with panel.stream("/api/v1/live", Authorization=ADMIN) as take_too:
                next_state(take_too)
        wait_until(lambda: not len(panel.admin._port.crew), "all have gone")
        with panel.stream("/api/v1/live", Authorization=reader) as take:
            next_state(take)


def test_no_more_streams_of_events_than_the_server_can_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_EVENT_STREAMS", 1)
    with watched() as panel, panel.stream("/api/v1/events") as take:
        wait_until(lambda: panel.admin._feed.readers == 1, "the reader is there")
        answer = panel.ask("GET", "/api/v1/events")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        refuse(1)
        assert happened(take).name == "user-refused"


def happened(take: Callable[[], Told | None]) -> Told:
    """Return the next event that is no state."""
    while (told := take()) is not None:
        if told.name != "state":
            return told
    raise AssertionError("the stream has ended")


def refuse(number: int) -> None:
    """Have something happen that everybody is told of."""
    emit(UserRefused, f"proxy {number}", "tcp", ("192.0.2.1", number), "there are too many")


@pytest.mark.usefixtures("quick")
def test_events_are_told_as_they_happen_and_the_last_ones_at_first_with_the_state() -> None:
    with watched() as panel:
        for number in range(120):
            refuse(number)
        with panel.stream("/api/v1/live") as take, panel.stream("/api/v1/events") as told:
            last = [happened(take).data["proxy"] for _ in range(KEPT_OF_TYPE)]
            assert last == [f"proxy {number}" for number in range(120 - KEPT_OF_TYPE, 120)]
            refuse(500)
            one = happened(told)
            assert one.name == one.data["event"] == "user-refused"
            assert one.data["user"] == "192.0.2.1:500"
            assert happened(take).data == one.data


def test_a_reader_who_comes_back_gets_what_was_missed_also_over_a_restart() -> None:
    with watched() as panel:
        with panel.stream("/api/v1/events") as told:
            refuse(1)
            first = happened(told)
        refuse(2)
        refuse(3)
        with panel.stream("/api/v1/events", Last_Event_ID=first.id) as told:
            missed = [happened(told), happened(told)]
            assert [each.data["proxy"] for each in missed] == ["proxy 2", "proxy 3"]
        with panel.stream("/api/v1/events", Last_Event_ID="nonsense") as told:
            refuse(4)
            one = happened(told)
            assert one.data["proxy"] == "proxy 4"
            assert int(one.id) > int(first.id)
    with watched() as panel:
        refuse(5)
        with panel.stream("/api/v1/events", Last_Event_ID=one.id) as told:
            one = happened(told)
            assert one.data["proxy"] == "proxy 5"


def test_a_number_from_the_future_is_no_reason_to_tell_nothing() -> None:
    with watched() as panel, panel.stream("/api/v1/events", Last_Event_ID="9" * 18) as told:
        gevent.sleep(0)
        refuse(1)
        one = happened(told)
        assert one.data["proxy"] == "proxy 1"


def test_events_of_users_are_made_for_whoever_asks_for_them_and_for_nobody_else() -> None:
    with watched() as panel:
        assert events.UserCame not in events._listeners or not events._listeners[events.UserCame]
        with panel.stream("/api/v1/events?only=user-came,user-refused") as told:
            wait_until(lambda: events._listeners.get(events.UserCame), "somebody listens")
            emit(events.ProxyRefused, events.Side.SERVER, "x", "tcp", ("192.0.2.1", 1), "taken")
            emit(events.UserCame, events.Side.SERVER, "blog", ("192.0.2.1", 5))
            refuse(1)
            assert [happened(told).name, happened(told).name] == ["user-came", "user-refused"]
        wait_until(lambda: not events._listeners[events.UserCame], "nobody listens")
        answer = panel.ask("GET", "/api/v1/events?only=user-came,nonsense")
        assert (answer.status, "nonsense" in answer.json["detail"]) == (400, True)


def test_text_of_peers_cannot_make_events_of_its_own() -> None:
    with watched() as panel, panel.stream("/api/v1/events") as told:
        gevent.sleep(0)
        name = 'x"}\n\nevent: forged\r\ndata: {}\n\n\u2028\ud800\x00'
        emit(UserRefused, name, "tcp", ("192.0.2.1", 1), "there are too many")
        refuse(2)
        one, two = happened(told), happened(told)
        assert (one.name, two.name) == ("user-refused", "user-refused")
        assert one.data["proxy"] == name.replace("\ud800", "?")


def test_what_happens_often_leaves_room_for_what_is_rare() -> None:
    with watched() as panel:
        emit(ClientGone, ("192.0.2.1", 1), "it hung up", broke_protocol=False, id="rare")
        for number in range(5 * KEPT_OF_TYPE):
            refuse(number)
        with panel.stream("/api/v1/live") as take:
            assert happened(take).data["event"] == "client-gone"


def test_a_reader_who_is_there_gets_all_that_happens_in_one_turn() -> None:
    with watched() as panel, panel.stream("/api/v1/events?only=client-gone") as told:
        emit(ClientGone, ("192.0.2.1", 1), "it hung up", broke_protocol=False, id="rare")
        for number in range(1000):
            refuse(number)
        assert happened(told).data["id"] == "rare"


def test_peers_who_only_connect_are_told_to_those_who_ask_for_them_alone() -> None:
    with watched() as panel:
        with panel.stream("/api/v1/events?only=login-given-up") as told:
            emit(LoginGivenUp, ("192.0.2.1", 1), "it hung up")
            assert happened(told).data["peer"] == "192.0.2.1:1"
        emit(LoginGivenUp, ("192.0.2.1", 1), "it hung up")
        refuse(1)
        with panel.stream("/api/v1/live") as take:
            assert happened(take).data["event"] == "user-refused"
