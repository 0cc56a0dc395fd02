"""The events of this process, for those who read them as they happen and for those who come later.

An event is kept as it is, and becomes text when the first reader wants it. Events of users are many: they are
not even made while nobody reads them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gevent
import gevent.event

from gnar_lib import events
from gnar_lib.eventdata import BY_NAME, name_of, to_fields
from gnar_lib.events import Event
from gnar_lib.http import Send

OF_USERS = frozenset(
    {events.UserCame, events.UserConnected, events.UserAnswered, events.UserLeft, events.UdpUserCame}
)
NOTEWORTHY = tuple(event_type for event_type in events.ALL if event_type not in OF_USERS)
KEPT = 100  # noteworthy events for those who come later
KEPT_OF_USERS = 2000  # for readers who are slow
PAUSE_S = 0.1  # between two looks: many events are sent together


class Happened:
    """An event that has happened, and its text once somebody wants it."""

    __slots__ = ("_event", "_text", "at", "number", "type")

    def __init__(self, event: Event, number: int) -> None:
        self.at = time.time()
        self.number = number
        self.type = type(event)
        self._event: Event | None = event  # None: the text is there
        self._text = ""

    @property
    def name(self) -> str:
        """The name of its type."""
        return name_of(self.type)

    @classmethod
    def before(cls, number: int, at: float, text: str) -> Happened:
        """Return an event of an earlier process, as its `text` has it. Raises `ValueError`."""
        event = json.loads(text)
        if not isinstance(event, dict) or event.get("event") not in BY_NAME:
            raise ValueError("no event that this version knows")
        made = cls.__new__(cls)
        made.number, made.at, made.type, made._event = number, at, BY_NAME[event["event"]], None
        made._text = _json(event)
        return made

    @property
    def text(self) -> str:
        """The event in JSON."""
        if self._event is not None:
            self._text = _json({"event": self.name, "at": round(self.at, 3), **to_fields(self._event)})
            self._event = None
        return self._text


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Feed:
    """The events from `start` to `close`."""

    def __init__(self) -> None:
        self._kept: deque[Happened] = deque(maxlen=KEPT)  # noteworthy ones
        self._users: deque[Happened] = deque(maxlen=KEPT_OF_USERS)
        # Of the last event. Numbers of this process are above those of the process before it, so that a
        # reader who comes back after a restart gets all events of this process.
        self._number = time.time_ns() // 1000
        self._readers_of_users = 0
        self._news: gevent.event.Event = gevent.event.Event()
        self._subscribed: list[tuple[type[Event], Callable[[Any], None]]] = []

    def start(self) -> None:
        """Take in noteworthy events from now on."""
        self._subscribe(NOTEWORTHY, self._kept)

    def close(self) -> None:
        """Take in no more events."""
        self._unsubscribe(NOTEWORTHY)

    def restore(self, happened: list[Happened]) -> None:
        """Take in noteworthy events of an earlier process, in their order."""
        present = [*self._kept]
        first = present[0].number if present else self._number + 1
        shift = max(happened[-1].number + 1 - first, 0) if happened else 0  # the clock was ahead then
        self._number += shift
        for each in present:
            each.number += shift
        self._kept.clear()
        self._kept.extend([*happened, *present])

    def _subscribe(self, types: Iterable[type[Event]], kept: deque[Happened]) -> None:
        for event_type in types:
            listener = partial(self._take_in, kept)
            self._subscribed.append((event_type, listener))
            events.subscribe(event_type, listener)

    def _unsubscribe(self, types: Iterable[type[Event]]) -> None:
        gone = set(types)
        for event_type, listener in [each for each in self._subscribed if each[0] in gone]:
            events.unsubscribe(event_type, listener)
        self._subscribed = [each for each in self._subscribed if each[0] not in gone]

    def _take_in(self, kept: deque[Happened], event: Event) -> None:
        self._number += 1
        kept.append(Happened(event, self._number))
        self._news.set()

    @property
    def number(self) -> int:
        """The number of the last event."""
        return self._number

    def since(self, number: int) -> list[Happened]:
        """Return the noteworthy events behind that of this number."""
        return _behind(self._kept, number)

    def send_all(self, send: Send, wanted: frozenset[type[Event]], number: int) -> None:
        """Send the events of the `wanted` types, behind that of this number, until the reader has gone."""
        number = min(number, self._number)
        with self._reading_of_users(not wanted.isdisjoint(OF_USERS)):
            while True:
                fresh = [*_behind(self._kept, number), *_behind(self._users, number)]
                for each in sorted(fresh, key=lambda happened: happened.number):
                    if each.type in wanted:
                        send(each.name, each.text, str(each.number))
                number = self._number if not fresh else max(each.number for each in fresh)
                self._news.clear()
                if number == self._number:
                    self._news.wait()
                gevent.sleep(PAUSE_S)

    @contextmanager
    def _reading_of_users(self, reads: bool) -> Iterator[None]:
        """Take in events of users during the block, if somebody `reads` them."""
        self._readers_of_users += reads
        if reads and self._readers_of_users == 1:
            self._subscribe(OF_USERS, self._users)
        try:
            yield
        finally:
            self._readers_of_users -= reads
            if reads and not self._readers_of_users:
                self._unsubscribe(OF_USERS)
                self._users.clear()


def _behind(kept: deque[Happened], number: int) -> list[Happened]:
    """Return what has a higher number; the last ones are looked at first."""
    found = []
    for each in reversed(kept):
        if each.number <= number:
            break
        found.append(each)
    return found[::-1]
