"""Events as data for programs: the name of a type of events, and the fields of an event."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import Enum
from typing import Any

from gnar_lib import events
from gnar_lib.events import Event
from gnar_lib.net.address import format_address

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def name_of(event_type: type[Event]) -> str:
    """Return what a type of events is called outside: `client-gone` for `ClientGone`."""
    return _CAPITAL.sub("-", event_type.__name__).lower()


BY_NAME: dict[str, type[Event]] = {name_of(event_type): event_type for event_type in events.ALL}
"""The types of all events by their names."""


def to_fields(event: Event) -> dict[str, Any]:
    """Return the fields of an event as what JSON can hold; addresses and words of an `Enum` become text."""
    return {field.name: _plain(getattr(event, field.name), field.type) for field in fields(event)}


def _plain(value: Any, annotation: Any) -> Any:
    if annotation == "Address":
        return format_address(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return value
