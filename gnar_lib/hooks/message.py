"""What hooks say of an event: as JSON, as a line of text, and as variables; knows no way to deliver it."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gnar_lib import logger
from gnar_lib.config import HookConfig, Secret
from gnar_lib.config.hooks import COMMON_FIELDS, PLACEHOLDER
from gnar_lib.eventdata import to_fields
from gnar_lib.events import Event, name_of

MAX_TEXT = 1000  # characters of one text: peers choose names and reasons
MAX_ITEMS = 100  # of one list
MAX_VARIABLE = 2000  # characters of a variable: Windows takes 32,767 of all together

# What has a meaning of its own in Slack's texts, such as <!channel>.
_SLACK = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What makes mentions, links, images and the like in texts of Slack, Mattermost and Discord. With a space of
# no width behind it, people see the same text. Addresses such as 192.0.2.7:5123 stay as they are.
_FORMS = re.compile(r"[@#/*_~`|\[\]()]|[.:](?!\d|\s|$)")
_NO_WIDTH = "\u200b"


@dataclass(frozen=True, slots=True)
class Message:
    """An event that a hook delivers, at its first try and at all others."""

    id: str  # the same at each try
    fields: dict[str, Any]

    @classmethod
    def of(cls, event: Event, at: float, delivery: str, side: str, host: str) -> Message:
        """Return what is said of an event that happened `at` a time, to one end of gnar on this host."""
        common = dict(zip(COMMON_FIELDS, (name_of(type(event)), at, delivery, host, side), strict=True))
        return cls(delivery, {**common, **{key: _bounded(value) for key, value in to_fields(event).items()}})

    @property
    def event(self) -> str:
        """The name of the event."""
        return str(self.fields["event"])

    def json(self) -> bytes:
        """Return the fields as a JSON object."""
        return json.dumps(self.fields).encode()

    def text(self, template: str, escape: Callable[[str], str] = str) -> str:
        """Return a line for people: `template` with its {fields}, or all fields that say something.

        `escape` is applied to what peers choose.
        """

        def shown(key: str) -> str:
            return self._shown(key) if key in COMMON_FIELDS else escape(self._shown(key))

        if template:
            return PLACEHOLDER.sub(lambda found: shown(found[1]), template)
        others = [key for key in self.fields if key not in COMMON_FIELDS and self._shown(key)]
        told = ", ".join(f"{key} {shown(key)}" for key in others)
        return f"{self.event} on {shown('host')}{': ' if told else ''}{told}"

    def body(self, config: HookConfig) -> tuple[str, bytes]:
        """Return the type and the bytes of the body that a hook posts."""
        if config.format == "text":
            return "text/plain; charset=utf-8", self.text(config.text).encode()
        if config.format == "slack":
            text = "".join(_SLACK.get(each, each) for each in self.text(config.text, _without_forms))
            return "application/json", json.dumps({"text": text}).encode()
        return "application/json", self.json()

    def variables(self) -> dict[str, str]:
        """Return the fields as variables of the environment."""
        shown = {key: _cut(self._shown(key), MAX_VARIABLE) for key in self.fields if key != "event"}
        return {"GNAR_EVENT": self.event, **{f"GNAR_EVENT_{key.upper()}": shown[key] for key in shown}}

    def _shown(self, key: str) -> str:
        """Return a field as one line; empty if the event has no such field."""
        value = self.fields.get(key)
        if key == "at":
            return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self.fields["at"]))
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return f"{value:.3f}".rstrip("0").rstrip(".")
        if isinstance(value, list):
            return logger.printable(",".join(map(str, value)))
        return "" if value is None else logger.printable(str(value))


def _bounded(value: Any) -> Any:
    """Return a value without what is too much of a text or of a list."""
    if isinstance(value, str):
        return _cut(value, MAX_TEXT)
    if isinstance(value, list):
        return [_bounded(each) for each in value[:MAX_ITEMS]]
    return value


def _without_forms(text: str) -> str:
    """Return a text of which no chat makes a mention, a link or an image."""
    return _FORMS.sub(lambda found: found[0] + _NO_WIDTH, text)


def _cut(text: str, most: int) -> str:
    """Return a text, shortened to `most` characters and three dots."""
    return text if len(text) <= most else text[:most] + "..."


def signature(secret: Secret, timestamp: str, body: bytes) -> str:
    """Return what shows a receiver that whoever has posted `body` at that time knows the secret.

    That is the HMAC-SHA256 (RFC 2104) of the timestamp as it is in its header, a dot, and the body.
    """
    mac = hmac.new(secret.reveal().encode(), f"{timestamp}.".encode() + body, "sha256")
    return f"sha256={mac.hexdigest()}"
