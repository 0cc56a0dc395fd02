"""Which proxies have series of their own, and what each has counted; knows no format.

Clients choose the names of proxies. However many names they use, there are at most `MAX_ROWS` rows, and a
name that has a row keeps it for `KEEP_S` behind the end of its proxies: so a Prometheus that asks for years
gets no more new series than that allows. A proxy without a row of its own counts in the row `OTHER`.

No count goes backwards when proxies close and open again. A row adds up all proxies that have had its name,
and `OTHER` is what is left of the counts of all proxies. What a proxy has counted in one row never moves to
another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import add, sub
from typing import NamedTuple

from gnar_lib.metrics.state import OpenProxy
from gnar_lib.pio.meter import Meter, Totals

MAX_ROWS = 1000  # with six series each at most
KEEP_S = 3600.0
MAX_NAME = 64  # characters
OTHER = "(other)"  # the row of all proxies that have none of their own
UNNAMED = "(unnamed)"


class Counts(NamedTuple):
    """What never becomes less."""

    up: int = 0
    down: int = 0
    connections: int = 0
    sessions: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, totals: Totals) -> Counts:
        """Return those of a meter."""
        connections = totals.users_total - totals.sessions_total
        return cls(totals.up, totals.down, connections, totals.sessions_total, totals.dropped)

    @classmethod
    def sum(cls, counts: Iterable[Counts]) -> Counts:
        """Add them up."""
        return cls(*map(sum, zip(ZERO, *counts, strict=True)))

    def plus(self, other: Counts) -> Counts:
        """Return the sum of both."""
        return Counts(*map(add, self, other))

    def minus(self, other: Counts) -> Counts:
        """Return the difference."""
        return Counts(*map(sub, self, other))

    def at_least(self, other: Counts) -> Counts:
        """Return the larger one of each count."""
        return Counts(*map(max, self, other))


ZERO = Counts()


@dataclass(frozen=True, slots=True)
class Figures:
    """One row as it is at the moment."""

    label: str
    has_tcp: bool
    has_udp: bool
    counts: Counts
    connections: int  # that are open
    sessions: int


def label_of(name: str) -> str:
    """Return a proxy's name as a label: of bounded length, and with printable characters alone."""
    return "".join(each if each.isprintable() else "?" for each in name[:MAX_NAME]) or UNNAMED


class _Row:
    """All proxies that have had one name."""

    __slots__ = ("closed_s", "kinds", "meters", "past")

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.past = ZERO  # of proxies whose last user has left
        self.meters: dict[Meter, Counts] = {}  # with what each had counted before it came to this row
        self.closed_s: float | None = None  # since when no proxy of this name is open

    def settle(self) -> None:
        """Keep no more than the counts of proxies that are over."""
        for meter in [meter for meter in self.meters if meter.is_over]:
            counted = Counts.of(meter.totals()).minus(self.meters.pop(meter))
            self.past = self.past.plus(counted)

    def figures(self, label: str) -> Figures:
        """Return what there is at the moment."""
        counts, connections, sessions = self.past, 0, 0
        for meter, before in self.meters.items():
            totals = meter.totals()
            counted = Counts.of(totals)
            if before is not ZERO:
                counted = counted.minus(before)
            counts = counted if counts is ZERO else counts.plus(counted)
            connections += totals.users - totals.sessions
            sessions += totals.sessions
        return Figures(label, "tcp" in self.kinds, "udp" in self.kinds, counts, connections, sessions)


class Rows:
    """The rows of one side, as they were when somebody last looked."""

    def __init__(
        self, limit: int = MAX_ROWS, keep_s: float = KEEP_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._keep_s = keep_s
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._unlisted: set[Meter] = set()  # of proxies that were open at the last look, and have no row
        self._gone = ZERO  # what rows had counted that are there no more
        self._other = ZERO  # at the last look

    def __len__(self) -> int:
        return len(self._rows)

    def look(self, total: Meter, proxies: Iterable[OpenProxy]) -> list[Figures]:
        """Return all rows, the last of which is `OTHER`; `total` has counted everything."""
        by_label: dict[str, list[OpenProxy]] = {}
        for proxy in proxies:
            by_label.setdefault(label_of(proxy.name), []).append(proxy)
        self._tidy(by_label.keys())
        unlisted: set[Meter] = set()
        for label, theirs in by_label.items():
            row = self._row_for(label)
            for proxy in theirs:
                if row is None:
                    unlisted.add(proxy.meter)
                elif proxy.meter not in row.meters:
                    row.kinds.add(proxy.kind)
                    is_new = proxy.meter not in self._unlisted  # else `OTHER` has shown its counts
                    row.meters[proxy.meter] = ZERO if is_new else Counts.of(proxy.meter.totals())
        self._unlisted = unlisted
        listed = [row.figures(label) for label, row in self._rows.items()]
        return [*listed, self._rest(total.totals(), listed)]

    def _row_for(self, label: str) -> _Row | None:
        """Return the row of an open proxy; None if there are too many."""
        row = self._rows.get(label)
        if row is None and label != OTHER and len(self._rows) < self._limit:
            row = self._rows[label] = _Row()
        if row is not None:
            row.closed_s = None
        return row

    def _tidy(self, labels: Iterable[str]) -> None:
        """Let go of proxies that are over, and of rows without an open proxy for long."""
        now_s = self._clock()
        for row in self._rows.values():
            row.settle()
        for label in self._rows.keys() - labels:
            row = self._rows[label]
            if row.closed_s is None:
                row.closed_s = now_s
            elif now_s - row.closed_s > self._keep_s:
                self._gone = self._gone.plus(row.figures(label).counts)
                del self._rows[label]

    def _rest(self, total: Totals, listed: list[Figures]) -> Figures:
        counted = Counts.sum([self._gone, *(each.counts for each in listed)])
        self._other = Counts.of(total).minus(counted).at_least(self._other)
        connections = total.users - total.sessions - sum(each.connections for each in listed)
        sessions = total.sessions - sum(each.sessions for each in listed)
        return Figures(OTHER, True, True, self._other, connections, sessions)
