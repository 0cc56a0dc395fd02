"""The port of the inspector: who may ask, what is told as it happens, and requests that are sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from gnar_lib.client.inspector import port as port_module
from gnar_lib.client.inspector.serve import ClientInspector
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.errors import PortTakenError
from gnar_lib.inspect import Exchange, Origin, State
from gnar_lib.net import deadline, listen
from gnar_lib.pio.meter import Meter
from tests.helpers.admin import Answer, Page
from tests.helpers.loop import wait_until
from tests.helpers.web import serving

LOOPBACK = "127.0.0.1"
WAIT_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Watched(Page):
    """An inspector with its page, and one proxy."""

    inspector: ClientInspector

    def get(self, path: str) -> Any:
        """Return what a path of the API tells."""
        answer = self.ask("GET", f"/api/{path}")
        assert answer.status == 200, answer
        return answer.json

    def record(self, request: bytes, answer: bytes = OK) -> int:
        """Have a user exchange something; return the id of that."""
        conversation = self.inspector.inspector.conversation(Origin("web", "192.0.2.1:4000"))
        conversation.requested(request)
        conversation.answered(answer)
        assert conversation.last is not None
        return conversation.last.id

    def exchange(self, number: int) -> Exchange:
        """Return a recorded exchange."""
        found = self.inspector.inspector.store.get(number)
        assert found is not None
        return found

    def replay(self, number: int, changes: object) -> Answer:
        """Have a request sent again."""
        return self.post(f"/api/exchanges/{number}/replay", changes)

    def replayed(self, number: int, **changes: object) -> Exchange:
        """Have a request sent again, and return the new exchange once it has ended."""
        answer = self.replay(number, changes)
        assert answer.status == 202, answer
        found = self.exchange(answer.json["id"])
        wait_until(lambda: found.state is not State.OPEN, "the answer is there")
        return found


@contextmanager
def watching(local_port: int = 1, body_bytes: int = 1000) -> Iterator[Watched]:
    """Run an inspector whose proxy leads to a port of this machine."""
    proxy = ClientProxy(ProxyConfig(proxy_name="web", local_port=local_port, local_host=LOOPBACK), Meter())
    config = ClientConfig(
        server=Address("localhost", 1), proxies=(), inspect=Address(LOOPBACK, 0), inspect_bodies=body_bytes
    )
    inspector = ClientInspector(config, {"web": proxy}.get)
    try:
        with deadline(WAIT_S, "the test"):
            yield Watched(int(inspector.url.rstrip("/").rpartition(":")[2]), inspector)
    finally:
        inspector.close()


@pytest.fixture(autouse=True)
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the inspector take any port: its own belong to whoever uses this machine."""
    monkeypatch.setattr(port_module, "FIRST_PORT", 0)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with watching() as made:
        yield made


# ---- who may ask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:PORT"}, 200),
        ({"Host": "[::1]:PORT"}, 200),
        ({"Host": "localhost:PORT", "Origin": "http://localhost:PORT", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example:PORT"}, 403),  # a name of somebody else that leads here (DNS rebinding)
        ({"Host": "localhost.evil.example:PORT"}, 403),
        ({"Host": "127.0.0.1.evil.example:PORT"}, 403),
        ({"Host": "localhost:1"}, 403),
        ({"Host": "localhost"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_the_page_itself_and_programs_of_this_machine_get_answers(
    watched: Watched, fields: dict[str, str], status: int
) -> None:
    filled = {name: value.replace("PORT", str(watched.port)) for name, value in fields.items()}
    assert watched.ask("GET", "/api/exchanges", **filled).status == status
    body = {**filled, "Content-Type": "application/json"}
    assert watched.ask("POST", "/api/clear", b"{}", **body).status == (204 if status == 200 else 403)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_of_a_foreign_page_changes_nothing(watched: Watched, kind: str) -> None:
    watched.record(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for path in ("/api/clear", "/api/exchanges/1/replay"):
        assert watched.ask("POST", path, b"{}", Content_Type=kind).status == 415
    assert len(watched.get("exchanges")["exchanges"]) == 1
    assert watched.ask("GET", "/api/clear").status == 405


def test_the_page_and_its_parts_are_there_and_may_load_nothing_from_elsewhere(watched: Watched) -> None:
    page = watched.ask("GET", "/")
    assert b"static/inspector.js" in page.body
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for name in ("inspector.js", "inspector.css", "panel.css", "listing.js", "icon.svg"):
        assert watched.ask("GET", f"/static/{name}").status == 200
    assert watched.ask("GET", "/static/panel.js").status == 404


def test_the_next_free_port_is_taken_unless_one_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = listen(LOOPBACK, 0)
    monkeypatch.setattr(port_module, "FIRST_PORT", taken.port)
    monkeypatch.setattr(port_module, "LAST_PORT", taken.port + 9)
    with watching() as watched:
        assert taken.port < watched.port <= taken.port + 9
    with pytest.raises(PortTakenError, match="choose another port, or `on`"):
        port_module._listen(Address(LOOPBACK, taken.port))
    taken.close()


# ---- looking -----------------------------------------------------------------------------------------------


def test_an_exchange_is_told_with_all_that_is_kept(watched: Watched) -> None:
    form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n\r\na=b&c=d"
    number = watched.record(b"POST /a?x=%20 HTTP/1.1\r\nHost: x\r\n" + form)
    found = watched.get(f"exchanges/{number}")
    assert (found["method"], found["target"], found["url"]) == ("POST", "/a?x=%20", "http://x/a?x=%20")
    assert (found["status"], found["state"], found["user"], found["proxy"]) == (
        200,
        "done",
        "192.0.2.1:4000",
        "web",
    )
    assert found["query"] == [["x", " "]]
    assert found["request"]["body"]["form"] == [["a", "b"], ["c", "d"]]
    assert found["response"]["body"]["text"] == "{}"
    assert watched.get(f"exchanges/{number}/curl")["command"].startswith("curl ")
    for path in ("har", f"exchanges/{number}/har"):
        assert len(watched.get(path)["log"]["entries"]) == 1
    for unknown in ("2", "x", "0", "²"):
        path = f"/api/exchanges/{unknown}".replace("²", "%C2%B2")
        assert watched.ask("GET", path).status == 404


def test_what_happens_is_told_as_it_happens(watched: Watched) -> None:
    watched.record(b"GET /first HTTP/1.1\r\n\r\n")
    with watched.stream("/api/live") as next_event:

        def targets() -> list[tuple[str, str]]:
            told = next_event()
            assert told is not None
            return [(each["target"], each["state"]) for each in told.data["exchanges"]]

        assert targets() == [("/first", "done")]
        conversation = watched.inspector.inspector.conversation(Origin("web", ""))
        conversation.requested(b"GET /second HTTP/1.1\r\n\r\n")
        assert targets() == [("/second", "open")]
        conversation.answered(OK)
        assert targets() == [("/second", "done")]
        assert watched.post("/api/clear", {}).status == 204
        told = next_event()
        assert told is not None
        assert (told.data["exchanges"], told.data["first"]) == ([], 3)


# ---- sending again -----------------------------------------------------------------------------------------


def test_a_request_is_sent_again_as_it_was_or_edited_and_recorded_as_a_replay() -> None:
    with serving() as service, watching(service.port) as watched:
        posted = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        number = watched.record(posted)
        same = watched.replayed(number)
        assert (same.status, bytes(same.response_body.data), same.replay_of, same.user) == (
            200,
            b"abc",
            number,
            "replay",
        )
        other = watched.replayed(number, body="ä" * 20)
        assert bytes(other.response_body.data).decode() == "ä" * 20
        changes = {
            "method": "GET",
            "target": "/show/it?a=b",
            "headers": [["Host", "y"], ["X-A", " b "]],
            "body": "",
        }
        shown = json.loads(watched.replayed(number, **changes).response_body.data)
        assert (shown["method"], shown["path"], shown["query"]) == ("GET", "/show/it", {"a": "b"})
        assert shown["headers"] == {"host": "y", "x-a": "b", "connection": "close"}
        assert watched.replayed(number, base64="AAEC").response_body.data == b"\0\1\2"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ([], 400),
        ({"other": 1}, 400),
        ({"method": "GET /x HTTP/1.1\r\nA:"}, 400),
        ({"method": "CONNECT"}, 400),
        ({"target": "/a b"}, 400),
        ({"target": "/a\r\nX: y"}, 400),
        ({"target": ""}, 400),
        ({"headers": {"a": "b"}}, 400),
        ({"headers": [["a b", "c"]]}, 400),
        ({"headers": [["a", "b\r\nc: d"]]}, 400),
        ({"headers": [["a", "b" * 40_000]]}, 400),
        ({"headers": [["a", 1]]}, 400),
        ({"body": 1}, 400),
        ({"base64": "?"}, 400),
        ({}, 502),  # nobody listens
    ],
)
def test_what_cannot_be_sent_is_refused(watched: Watched, changes: object, status: int) -> None:
    number = watched.record(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = watched.replay(number, changes)
    assert answer.status == status, answer
    assert answer.json["detail"]
    assert len(watched.get("exchanges")["exchanges"]) == 1


def test_half_a_body_is_not_sent_again(watched: Watched) -> None:
    number = watched.record(b"POST / HTTP/1.1\r\nContent-Length: 2000\r\n\r\n" + bytes(2000))
    answer = watched.replay(number, {})
    assert (answer.status, "--inspect-bodies" in answer.json["detail"]) == (409, True)


def test_a_websocket_is_not_sent_again(watched: Watched) -> None:
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    number = watched.record(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", switched)
    assert watched.replay(number, {}).status == 409
