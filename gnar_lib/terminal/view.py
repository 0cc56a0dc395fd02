"""What a person is shown of a client or a server, and the lines that show it: a pure function of the two.

Knows neither client nor server nor the terminal.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gnar_lib.logger import Entry
from gnar_lib.terminal.table import Column, Table, lines_of
from gnar_lib.terminal.text import (
    BOLD,
    DIM,
    GREEN,
    PLAIN,
    RED,
    YELLOW,
    Span,
    clean,
    fit,
    lasted,
    length,
    plain,
    rate,
    render,
    size,
)

MIN_EVENTS_ROOM = 6  # lines of the terminal for each line of events that a long table leaves, at least
ROOMY = 12  # lines of a terminal from which on empty lines are set between the parts
TINY = 8  # lines of a terminal below which the titles of the table are left out
FACTS_ROOM = 4  # lines of the terminal for each line of facts, at most
BETWEEN_FACTS = 3  # columns

_LEVELS = {logging.DEBUG: DIM, logging.WARNING: YELLOW, logging.ERROR: RED, logging.CRITICAL: RED}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something about the whole, such as for how long the server is connected."""

    label: str
    text: str
    style: str = PLAIN


@dataclass(frozen=True, slots=True)
class ProxyRow:
    """A proxy, as it is shown."""

    name: str
    kind: str  # "tcp" or "udp"
    where: str  # where users find it, or what is the matter if they do not
    url: str = ""  # to open at a click
    is_open: bool = True
    partner: str = ""  # at a client the local service, at a server the client
    partner_answers: bool | None = None  # None: nobody knows
    users: int = 0
    users_total: int = 0
    up: int = 0  # bytes
    down: int = 0
    rate_up: float = 0.0  # bytes per second
    rate_down: float = 0.0
    dropped: int = 0  # datagrams


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A user's connection, as it is shown."""

    user: str
    age_s: float
    idle_s: float
    up: int
    down: int
    rate_up: float
    rate_down: float


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is shown at one moment."""

    title: str
    hint: str  # what a person may press
    facts: tuple[Fact, ...]
    rows: tuple[ProxyRow, ...] | tuple[ConnectionRow, ...]  # from `first` on, as many as may fit
    rows_title: str = ""  # of the first column of the table; empty for the usual one
    partner_title: str = "LOCAL SERVICE"
    first: int = 0  # the number of the first of `rows`
    count: int = 0  # of all rows
    selected: int | None = None  # the number of the selected row among all
    events: tuple[Entry, ...] = ()  # the latest at the end


def draw(view: View, width: int, height: int, *, colour: bool = True) -> list[str]:
    """Return the lines for a terminal of `width` columns and `height` lines; no more than `height`."""
    head, room = _head(view, width, height), rows_room(view, width, height)
    rows = view.rows[:room]
    gap: list[list[Span]] = [[]] if height >= ROOMY else []
    table = lines_of(_table(view, rows), width, has_title=height >= TINY)
    if len(rows) < view.count and height >= TINY:
        place = f"{view.first + 1}-{view.first + len(rows)} of {view.count}" if rows else f"{view.count}"
        table[0] = _both_ends(table[0], [Span(place, BOLD)], width)
    lines = [*head, *gap, *table]
    left = height - len(lines) - len(gap)
    if view.events and left > 0:
        lines += [*gap, *(_event(entry) for entry in view.events[-left:])]
    return [render(line, width, colour=colour) for line in lines[:height]]


def text_of(view: View) -> str:
    """Return everything there is as text, for what is no terminal: lines of whatever length."""
    facts = [f"{fact.label} {clean(fact.text)}".strip() for fact in view.facts]
    table = lines_of(_table(view, view.rows), sys.maxsize)
    return "\n".join([clean(view.title), *facts, "", *map(plain, table), ""])


def rows_room(view: View, width: int, height: int) -> int:
    """Return for how many rows of the table there is room."""
    gaps = 2 if height >= ROOMY else 0
    titles = 1 if height >= TINY else 0
    for_events = min(len(view.events), height // MIN_EVENTS_ROOM)
    return max(1, height - len(_head(view, width, height)) - gaps - titles - for_events)


# ---- the head ----------------------------------------------------------------------------------------------


def _head(view: View, width: int, height: int) -> list[list[Span]]:
    """Return the title, and the facts in as few lines as they fit in."""
    title = _both_ends([Span(clean(view.title), BOLD)], [Span(view.hint, DIM)], width)
    return [title, *_packed(view.facts, width)[: max(1, height // FACTS_ROOM)]]


def _both_ends(left: Sequence[Span], right: Sequence[Span], width: int) -> list[Span]:
    """Return a line with something at either end; without the right one if there is no room."""
    between = width - length(left) - length(right)
    if between < 1:
        rest = width - length(right) - 1
        keeps = any(span.style == BOLD for span in right) and rest > 0
        return [*fit(left, rest), Span(" "), *right] if keeps else [*left]
    return [*left, Span(" " * between), *right]


def _packed(facts: Sequence[Fact], width: int) -> list[list[Span]]:
    lines: list[list[Span]] = []
    for fact in facts:
        label = [Span(f"{fact.label} ", DIM)] if fact.label else []
        spans = [*label, Span(clean(fact.text), fact.style)]
        if lines and length(lines[-1]) + BETWEEN_FACTS + length(spans) <= width:
            lines[-1] += [Span(" " * BETWEEN_FACTS), *spans]
        else:
            lines.append(spans)
    return lines


# ---- the table ---------------------------------------------------------------------------------------------

_FIGURES = (
    Column("UP/s", 6, is_right=True, steady=9),
    Column("DOWN/s", 5, is_right=True, steady=9),
    Column("UP", 8, is_right=True, steady=9),
    Column("DOWN", 7, is_right=True, steady=9),
)
_CONNECTION = (
    Column("USER", 0, least=21),
    Column("AGE", 2, is_right=True, steady=6),
    Column("IDLE", 3, is_right=True, steady=6),
    *_FIGURES,
)


def _table(view: View, rows: Sequence[ProxyRow | ConnectionRow]) -> Table:
    selected = None if view.selected is None else view.selected - view.first
    if any(isinstance(row, ConnectionRow) for row in rows) or view.rows_title == "USER":
        cells = tuple(_connection(row) for row in rows if isinstance(row, ConnectionRow))
        return Table(_CONNECTION, cells, selected)
    columns = (
        Column(view.rows_title or "PROXY", 1, least=14),
        Column("", 3),
        Column("LINK", 0),
        Column(view.partner_title, 4, least=32),
        Column("USERS", 2, is_right=True),
        Column("TOTAL", 9, is_right=True),
        *_FIGURES,
        Column("DROPPED", 10, is_right=True),
    )
    return Table(columns, tuple(_proxy(row) for row in rows if isinstance(row, ProxyRow)), selected)


def _proxy(row: ProxyRow) -> tuple[Span, ...]:
    answers = {None: PLAIN, True: GREEN, False: RED}[row.partner_answers]
    partner = clean(row.partner) + (" no answer" if row.partner_answers is False else "")
    return (
        Span(clean(row.name), BOLD if row.is_open else DIM),
        Span("" if row.kind == "tcp" else clean(row.kind), DIM),
        Span(clean(row.where), PLAIN if row.is_open else YELLOW, _safe(row.url)),
        Span(partner, answers),
        Span(str(row.users), GREEN if row.users else PLAIN),
        Span(str(row.users_total)),
        *_figures(row),
        Span(str(row.dropped) if row.dropped else "", YELLOW),
    )


def _connection(row: ConnectionRow) -> tuple[Span, ...]:
    return (Span(clean(row.user)), Span(lasted(row.age_s)), Span(lasted(row.idle_s)), *_figures(row))


def _figures(row: ProxyRow | ConnectionRow) -> tuple[Span, ...]:
    rates = [Span(rate(each), GREEN if each >= 1 else PLAIN) for each in (row.rate_up, row.rate_down)]
    return (*rates, Span(size(row.up)), Span(size(row.down)))


def _safe(url: str) -> str:
    """Return a URL that cannot end the sequence which it is part of; empty for one that could."""
    return url if url.isascii() and url.isprintable() and " " not in url else ""


# ---- events ------------------------------------------------------------------------------------------------


def _event(entry: Entry) -> list[Span]:
    when = time.strftime("%H:%M:%S", time.localtime(entry.at))
    return [Span(f"{when} ", DIM), Span(clean(entry.text), _LEVELS.get(entry.level, PLAIN))]
