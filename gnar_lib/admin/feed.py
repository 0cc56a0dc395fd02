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
from typing import Any

import gevent
import gevent.event

from gnar_lib import events
from gnar_lib.eventdata import to_fields
from gnar_lib.events import BY_NAME, Event, name_of
from gnar_lib.http import Send
from gnar_lib.http.share import share

OF_USERS = frozenset(
    {events.UserCame, events.UserConnected, events.UserAnswered, events.UserLeft, events.UdpUserCame}
)
UNNOTED = OF_USERS | {events.LoginGivenUp}  # too many to be kept, and not made while nobody reads them
NOTEWORTHY = tuple(event_type for event_type in events.ALL if event_type not in UNNOTED)
KEPT = 100  # noteworthy events for those who come later
KEPT_OF_TYPE = 20  # of them, so that what happens often leaves room for what is rare
RECENT = 5000  # events for readers who are there: a client that goes may close thousands of proxies
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
        self._kept = {each: deque[Happened](maxlen=KEPT_OF_TYPE) for each in NOTEWORTHY}
        self._recent: deque[Happened] = deque(maxlen=RECENT)  # noteworthy ones
        self._unnoted: deque[Happened] = deque(maxlen=RECENT)
        # Of the last event. Numbers of this process are above those of the process before it, so that a
        # reader who comes back after a restart gets all events of this process.
        self._number = time.time_ns() // 1000
        self.readers = 0  # of `send_all`
        self._readers_of_unnoted = 0
        self._news: gevent.event.Event = gevent.event.Event()
        self._subscribed: list[tuple[type[Event], Callable[[Any], None]]] = []

    def start(self) -> None:
        """Take in noteworthy events from now on."""
        self._subscribe(NOTEWORTHY, self._take_in)

    def close(self) -> None:
        """Take in no more events."""
        self._unsubscribe(NOTEWORTHY)

    def restore(self, happened: list[Happened]) -> None:
        """Take in noteworthy events of an earlier process, in their order."""
        kept = [each for of_type in self._kept.values() for each in of_type]
        present = sorted({id(each): each for each in [*kept, *self._recent]}.values(), key=_number_of)
        first = present[0].number if present else self._number + 1
        shift = max(happened[-1].number + 1 - first, 0) if happened else 0  # the clock was ahead then
        self._number += shift
        for each in present:
            each.number += shift
        self._recent = deque([*happened, *self._recent], RECENT)
        for of_type in self._kept.values():
            of_type.clear()
        for each in [*happened, *present]:
            if each.type in self._kept:
                self._kept[each.type].append(each)

    def _subscribe(self, types: Iterable[type[Event]], listener: Callable[[Any], None]) -> None:
        for event_type in types:
            self._subscribed.append((event_type, listener))
            events.subscribe(event_type, listener)

    def _unsubscribe(self, types: Iterable[type[Event]]) -> None:
        gone = set(types)
        for event_type, listener in [each for each in self._subscribed if each[0] in gone]:
            events.unsubscribe(event_type, listener)
        self._subscribed = [each for each in self._subscribed if each[0] not in gone]

    def _take_in(self, event: Event) -> None:
        happened = self._next(event)
        self._recent.append(happened)
        self._kept[type(event)].append(happened)

    def _take_in_unnoted(self, event: Event) -> None:
        self._unnoted.append(self._next(event))

    def _next(self, event: Event) -> Happened:
        self._number += 1
        self._news.set()
        return Happened(event, self._number)

    @property
    def number(self) -> int:
        """The number of the last event."""
        return self._number

    def last(self) -> list[Happened]:
        """Return the last noteworthy events, those of each type that are the last of it."""
        kept = sorted((each for of_type in self._kept.values() for each in of_type), key=_number_of)
        return kept[-KEPT:]

    def since(self, number: int) -> list[Happened]:
        """Return the noteworthy events behind that of this number, as far as they are recent."""
        return _behind(self._recent, number)

    def send_all(self, send: Send, wanted: frozenset[type[Event]], number: int) -> None:
        """Send the events of the `wanted` types, behind that of this number, until the reader has gone."""
        number = min(number, self._number)
        with self._reading(), self._reading_unnoted(not wanted.isdisjoint(UNNOTED)):
            while True:
                share.give_way()
                fresh = [*_behind(self._recent, number), *_behind(self._unnoted, number)]
                for each in sorted(fresh, key=_number_of):
                    if each.type in wanted:
                        send(each.name, each.text, str(each.number))
                number = self._number if not fresh else max(each.number for each in fresh)
                self._news.clear()
                if number == self._number:
                    self._news.wait()
                gevent.sleep(PAUSE_S)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1

    @contextmanager
    def _reading_unnoted(self, reads: bool) -> Iterator[None]:
        """Take in events that are not noteworthy during the block, if somebody `reads` them."""
        self._readers_of_unnoted += reads
        if reads and self._readers_of_unnoted == 1:
            self._subscribe(UNNOTED, self._take_in_unnoted)
        try:
            yield
        finally:
            self._readers_of_unnoted -= reads
            if reads and not self._readers_of_unnoted:
                self._unsubscribe(UNNOTED)
                self._unnoted.clear()


def _number_of(happened: Happened) -> int:
    return happened.number


def _behind(kept: deque[Happened], number: int) -> list[Happened]:
    """Return what has a higher number; the last ones are looked at first."""
    found = []
    for each in reversed(kept):
        if each.number <= number:
            break
        found.append(each)
    return found[::-1]
