"""The events of this process, as a test hears them."""

from __future__ import annotations

from typing import TypeVar

import pytest

from gnar_lib import events

_Event = TypeVar("_Event", bound=events.Event)


def hear(monkeypatch: pytest.MonkeyPatch, *kinds: type[_Event]) -> list[_Event]:
    """Return the list of the events of some kinds that come from now on; nobody else hears of any event."""
    monkeypatch.setattr(events, "_listeners", {})
    heard: list[_Event] = []
    for kind in kinds:
        events.subscribe(kind, heard.append)
    return heard
