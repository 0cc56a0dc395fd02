"""Events as data for programs: the fields of an event."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any

from gnar_lib.events import Event
from gnar_lib.net.address import format_address


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
