"""What goes through each proxy in a minute: counts the difference since the last look; knows no file."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

from gnar_lib.pio.meter import Meter, Totals
from gnar_lib.server.admin.registry import GONE_S, ProxyEntry
from gnar_lib.server.admin.rows import MINUTE_S, MinuteRow

MAX_COURSES = 200  # of which a minute is kept: those with most bytes
MAX_WAITING = 20_000  # rows that could not be written; older ones are lost

_NOTHING = MinuteRow(0, 0, 0, 0, 0)


class _Counted(NamedTuple):
    """What of a proxy is in the minutes."""

    meter: Meter
    course: int
    up: int
    down: int


class Minutes:
    """The minutes that have yet to be written. Proxies of one name, kind and port are one course."""

    def __init__(self) -> None:
        self._counted: dict[str, _Counted] = {}  # by the id of the proxy
        self._moved: dict[int, tuple[int, int, int]] = {}  # bytes up and down, and users, by course
        self._rows: dict[tuple[int, int], MinuteRow] = {}  # by course and minute
        self._minute = 0
        self._in_minute: set[int] = set()  # courses that have a row of that minute

    def skip(self, entry: ProxyEntry) -> None:
        """Leave out what a proxy has moved until now."""
        self._count(entry.id, entry.meter, course_of(entry), entry.meter.totals(), is_counted=False)

    def count(self, entry: ProxyEntry, totals: Totals) -> None:
        """Add what a proxy has moved since the last call; `totals` are those of its meter."""
        before = self._counted.get(entry.id)
        self._count(entry.id, entry.meter, before.course if before else course_of(entry), totals)

    def _count(
        self, entry_id: str, meter: Meter, course: int, totals: Totals, *, is_counted: bool = True
    ) -> None:
        before = self._counted.get(entry_id)
        self._counted[entry_id] = _Counted(meter, course, totals.up, totals.down)
        up = totals.up - (before.up if before else 0)
        down = totals.down - (before.down if before else 0)
        if is_counted and (up or down or totals.users):
            moved = self._moved.get(course, (0, 0, 0))
            self._moved[course] = moved[0] + up, moved[1] + down, moved[2] + totals.users

    def take(self, at: float, there: Iterable[str]) -> list[MinuteRow]:
        """Return what has been counted, as rows of the minute in which `at` is; forget it.

        Proxies whose ids are not `there` any more are counted for the last time.
        """
        for entry_id in self._counted.keys() - {*there}:
            left = self._counted[entry_id]
            self._count(entry_id, left.meter, left.course, left.meter.totals())
            del self._counted[entry_id]
        minute = int(at) // MINUTE_S
        if minute != self._minute:
            self._minute, self._in_minute = minute, set()
        for course, moved in sorted(self._moved.items(), key=lambda item: -(item[1][0] + item[1][1])):
            if course in self._in_minute or len(self._in_minute) < MAX_COURSES:
                self._in_minute.add(course)
                self._add(MinuteRow(course, minute, *moved))
        rows, self._moved, self._rows = [*self._rows.values()], {}, {}
        return rows

    def put_back(self, rows: list[MinuteRow]) -> None:
        """Have `take` return rows once more, which could not be written."""
        for row in rows[-MAX_WAITING:]:
            self._add(row)

    def _add(self, row: MinuteRow) -> None:
        key = row.course, row.minute
        if before := self._rows.get(key):
            users = max(before.users, row.users)
            row = MinuteRow(*key, before.up + row.up, before.down + row.down, users)
        self._rows[key] = row


def course_of(entry: ProxyEntry) -> int:
    """Return the number by which the minutes of a proxy are found, also after a restart."""
    text = f"{entry.kind} {entry.port} {entry.name}".encode("utf-8", "replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big", signed=True)


def chart_of(rows: list[MinuteRow], now: float) -> dict[str, Any]:
    """Return the whole minutes of the last day, from the first one of which there is a row."""
    until = int(now) // MINUTE_S
    by_minute = {row.minute: row for row in rows}
    first = max(min(by_minute, default=until), until - int(GONE_S) // MINUTE_S)
    shown = [by_minute.get(minute, _NOTHING) for minute in range(first, until)]
    return {
        "step_s": MINUTE_S,
        "until": until * MINUTE_S,
        "up": [round(row.up / MINUTE_S) for row in shown],
        "down": [round(row.down / MINUTE_S) for row in shown],
        "users": [row.users for row in shown],
    }
