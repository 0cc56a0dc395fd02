"""What is known of a server, and the views of it, whatever the server sends."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gnar_lib.terminal.view import ConnectionRow, ProxyRow, draw, text_of
from gnar_lib.top.state import CONNECTION_SORTS, LATEST, MAX_CONNECTIONS, MAX_TEXT, SORTS, Looks, State
from tests.top.stand_in import client_object, connection_object, proxy_object, server_object

URL = "http://127.0.0.1:8911"


def state_of(**data: Any) -> State:
    state = State(URL)
    proxies = [proxy_object(), proxy_object(id="p6", name="api", link="", port=9001, users=9, client="")]
    state.take("state", {"server": server_object(), "clients": [client_object()], "proxies": proxies, **data})
    return state


def names(state: State, sort: str = "name") -> list[str]:
    return [row.name for row in state.view(Looks(sort=sort)).rows if isinstance(row, ProxyRow)]


def test_facts_are_those_of_the_server() -> None:
    view = state_of().view(Looks())
    assert view.title == "gnar server 0.9.0"
    assert [f"{fact.label} {fact.text}" for fact in view.facts] == [
        f"Server {URL}",
        "Up since 2 h 03 min",
        "Clients 1",
        "Proxies 2",
        "Users 3 now, 120 in all",
        "Up 2.0 KiB/s, 1.0 MiB in all",
        "Down 3.0 MiB/s, 5.0 GiB in all",
        "Dropped 7",
        "Lag 2 ms",
    ]


def test_proxies_have_their_links_and_clients() -> None:
    api, web = state_of().view(Looks()).rows
    assert isinstance(api, ProxyRow)
    assert isinstance(web, ProxyRow)
    assert (web.where, web.url, web.partner) == (
        "example.com:9000",
        "http://example.com:9000",
        "192.0.2.7:5123",
    )
    assert (api.where, api.url, api.partner) == ("port 9001", "", "")


def test_later_states_change_what_they_name() -> None:
    state = state_of()
    state.take("state", {"server": server_object(users=5), "proxies": [{"id": "p5", "users": 5}]})
    web = state.view(Looks()).rows[1]
    assert isinstance(web, ProxyRow)
    assert (web.users, web.name, web.partner) == (5, "web", "192.0.2.7:5123")
    assert "Users 5 now, 120 in all" in [f"{fact.label} {fact.text}" for fact in state.view(Looks()).facts]
    state.take("state", {"removed": ["p5", "c12", "unknown", 7]})
    assert names(state) == ["api"]


def test_a_new_stream_begins_anew() -> None:
    state = state_of()
    state.begin()
    state.take("state", {"server": server_object(), "proxies": [proxy_object(name="other")]})
    assert names(state) == ["other"]


def test_proxies_that_are_not_open_say_so_and_those_that_have_gone_are_last() -> None:
    gone = proxy_object(id="p1", name="a", state="gone", gone_at=1.0)
    waiting = proxy_object(id="p2", name="b", state="waiting")
    state = state_of(proxies=[gone, waiting, proxy_object()])
    assert names(state) == ["b", "web", "a"]
    first, _, last = state.view(Looks()).rows
    assert isinstance(first, ProxyRow)
    assert isinstance(last, ProxyRow)
    assert (first.where, first.is_open) == ("example.com:9000 waiting", False)
    assert last.where.startswith("gone for ")


@pytest.mark.parametrize("sort", SORTS)
def test_rows_can_be_sorted(sort: str) -> None:
    state = state_of()
    assert sorted(names(state, sort)) == ["api", "web"]
    if sort == "users":
        assert names(state, sort) == ["api", "web"]


def test_connections_of_a_proxy_are_shown_with_what_is_missing() -> None:
    found = {"connections": [connection_object()], "matched": 9, "total": 9}
    view = state_of(connections=found).view(Looks(proxy="p5"))
    assert view.rows == (ConnectionRow("198.51.100.2:4242", 50.0, 3.0, 100, 2 << 20, 0.0, 1024.0),)
    facts = [f"{fact.label} {fact.text}".strip() for fact in view.facts]
    assert facts[2:5] == ["Proxy web", "example.com:9000", "Client 192.0.2.7:5123"]
    assert facts[-1] == "the first 1 of 9 connections"


def test_events_are_told_with_their_fields() -> None:
    state = state_of()
    event: dict[str, Any] = {
        "event": "client-gone",
        "at": 5.0,
        "client": "192.0.2.7:1",
        "reason": "",
        "id": "x",
    }
    event |= {"broke_protocol": False, "proxies": ["web", "api"], "lasted_s": 12.3456}
    for _ in range(2):  # another stream tells of it again
        state.take("happened", event)
    (entry,) = state.view(Looks()).events
    assert (entry.at, entry.text) == (5.0, "client-gone client=192.0.2.7:1 proxies=web,api lasted_s=12.3")


def test_the_selection_is_on_a_row_that_is_there() -> None:
    state = state_of()
    view = state.view(Looks(selected=99, first=99), 10)
    assert (view.selected, view.first, view.count, len(view.rows)) == (1, 1, 2, 1)
    assert state.id_of(Looks(selected=1)) == "p5"
    assert state.id_of(Looks(selected=99)) == ""
    assert State(URL).view(Looks()).selected is None


def test_a_view_as_text_is_whole() -> None:
    text = text_of(state_of().view(Looks()))
    assert "\033" not in text
    assert text.splitlines()[:2] == ["gnar server 0.9.0", f"Server {URL}"]
    assert "example.com:9000" in text
    assert "DROPPED" in text


ODD: list[Any] = [
    None,
    7,
    "x",
    [],
    [7],
    {},
    [{}],
    [{"id": 7}],
    [{"id": "p5", "name": 7, "users": "x"}],
    1e300,
    1e17,
    -1e17,
    -1,
    float("nan"),
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("key", ["server", "clients", "proxies", "connections", "removed"])
def test_whatever_a_server_sends_can_be_drawn(key: str, odd: Any) -> None:
    state = state_of()
    state.take("state", {key: odd})
    state.take("state", {"server": {"now": odd, "version": odd, "users": odd, "loop_lag_s": odd}})
    state.take("state", {"proxies": [{"id": "p5", "name": odd, "bytes_up": odd, "state": odd, "link": odd}]})
    state.take("happened", {"event": odd, "at": odd, "x": odd})
    for proxy in ("", "p5", "p6", "unknown"):
        for sort in CONNECTION_SORTS:
            assert draw(state.view(Looks(proxy=proxy, connection_sort=sort), 10), 80, 24)


def test_times_that_no_system_can_show_are_no_times() -> None:
    state = state_of(proxies=[proxy_object(state="gone", gone_at=-1e17)])
    for at in (LATEST, LATEST * 1.1, -1e17, 1e17, -1):
        state.take("happened", {"event": f"{at}", "at": at})
    assert [entry.at for entry in state.view(Looks()).events] == [LATEST, 0, 0, 0, 0]
    assert f"gone for {int(time.time()) // 86400} d" in text_of(state.view(Looks()))


def test_event_with_a_value_of_any_depth_is_told() -> None:
    state, value = state_of(), json.loads("[" * 900 + "]" * 900)
    state.take("happened", {"event": "odd", "at": 1.0, "list": [value], "object": {"x": value}})
    assert state.view(Looks()).events[0].text == "odd list=… object=…"


def test_text_of_a_server_moves_no_cursor() -> None:
    state = state_of(proxies=[proxy_object(name="\033[2J", link="http://x\033\\")])
    state.take("happened", {"event": "\033[2J", "at": 1.0})
    assert "\033[2J" not in "".join(draw(state.view(Looks()), 80, 24))
    assert "\033" not in text_of(state.view(Looks()))


def test_what_a_server_sends_takes_bounded_memory() -> None:
    state = State("x")
    long = "x" * 100_000
    for number in range(50):
        more = {f"{number}-{key}": long for key in range(10)}
        one = {"id": "p1", "name": long, "address": long, "link": [long], **more}
        state.take(
            "state", {"server": {"version": long, **more}, "clients": [one], "proxies": [one, {"id": long}]}
        )
        state.take("state", {"connections": {"connections": [{"user": long, **more}] * 2000, **more}})
        state.take("happened", {"event": long, "at": number, **more})
    assert len(state._server) == len(state._clients["p1"]) == len(state._proxies["p1"]) == 1
    assert len(state._proxies) == 1
    assert state._connections is not None
    assert state._connections.keys() == {"connections"}
    assert len(state._connections["connections"]) == MAX_CONNECTIONS
    assert len(state._server["version"]) == len(state._connections["connections"][0]["user"]) == MAX_TEXT
    assert max(len(entry.text) for entry in state._events) <= MAX_TEXT + 3
