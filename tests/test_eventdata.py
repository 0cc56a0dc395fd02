"""Events become data that programs can read."""

from __future__ import annotations

import json

import pytest

from gnar_lib import eventdata, events
from gnar_lib.events import Side
from tests.test_events import EXAMPLES


@pytest.mark.parametrize(
    ("event_type", "name"),
    [
        (events.ClientGone, "client-gone"),
        (events.DataConnsFail, "data-conns-fail"),
        (events.Stopping, "stopping"),
    ],
)
def test_name_of_an_event_is_in_small_letters(event_type: type[events.Event], name: str) -> None:
    assert events.name_of(event_type) == name
    assert events.BY_NAME[name] is event_type


def test_every_event_has_a_name_of_its_own() -> None:
    assert set(events.BY_NAME.values()) == set(events.ALL)


def test_fields_are_text_and_numbers() -> None:
    event = events.ClientGone(
        ("::ffff:192.0.2.2", 50), "it hung up", broke_protocol=False, proxies=("a", "b")
    )
    assert eventdata.to_fields(event) == {
        "client": "192.0.2.2:50",
        "reason": "it hung up",
        "broke_protocol": False,
        "id": "",
        "proxies": ["a", "b"],
        "lasted_s": 0.0,
        "ports": [],
    }


def test_a_word_of_a_list_is_the_word() -> None:
    event = events.ProxyClosed(Side.SERVER, "blog", "tcp", 9000, "", events.CloseReason.CLIENT_LEFT)
    assert eventdata.to_fields(event)["reason"] == "the client left"
    assert eventdata.to_fields(event)["side"] == "server"


@pytest.mark.parametrize("event", [event for event, _ in EXAMPLES], ids=lambda event: type(event).__name__)
def test_every_event_fits_into_json(event: events.Event) -> None:
    fields = eventdata.to_fields(event)
    assert json.loads(json.dumps(fields)) == fields
