"""Lays a table out for as many columns as a terminal has; knows nothing of what the table says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gnar_lib.terminal.text import BOLD, DIM, PLAIN, REVERSE, Span, cut, width_of

GAP = 2  # columns between two columns of the table
MARK, NO_MARK = "> ", "  "  # in front of the selected row, which is told from the others without colours, too


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Where there is too little room, those with the highest `rank` are left out first.

    A column takes at least `steady` columns of the terminal, so that moving figures do not move the table. It
    can be cut down to `least`; 0: not at all.
    """

    title: str
    rank: int
    is_right: bool = False  # at the right end of its column, as figures are
    steady: int = 0
    least: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table that there may be room for, with a cell for each column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Span, ...], ...]
    selected: int | None = None  # the number of a row


def lay_out(table: Table, room: int) -> list[int]:
    """Return how wide each column is; 0 for those that are left out."""
    wished = [
        max([column.steady, width_of(column.title), *(width_of(row[number].text) for row in table.rows)])
        for number, column in enumerate(table.columns)
    ]
    least = [
        min(wish, column.least) if column.least else wish
        for wish, column in zip(wished, table.columns, strict=True)
    ]
    kept = sorted(range(len(wished)), key=lambda number: table.columns[number].rank)
    while len(kept) > 1 and sum(least[number] + GAP for number in kept) - GAP > room:
        kept.pop()
    widths = [wish if number in kept else 0 for number, wish in enumerate(wished)]
    while (excess := sum(width + GAP for width in widths if width) - GAP - room) > 0:
        widest = max(kept, key=lambda number: (widths[number] - least[number], widths[number]))
        if widths[widest] <= least[widest]:  # a single column that is still too wide
            widths[widest] = max(1, widths[widest] - excess)
            break
        widths[widest] -= 1
    return widths


def lines_of(table: Table, room: int, *, has_title: bool = True) -> list[list[Span]]:
    """Return the lines of a table: titles, then one line for each row."""
    if table.selected is not None:
        room -= len(MARK)
    widths = lay_out(table, room)
    lines = []
    if has_title:
        titles = [Span(column.title, DIM) for column in table.columns]
        lines.append(_marked(_line(table.columns, titles, widths), table.selected, None))
    for number, row in enumerate(table.rows):
        lines.append(_marked(_line(table.columns, row, widths), table.selected, number))
    return lines


def _marked(line: list[Span], selected: int | None, number: int | None) -> list[Span]:
    """Put the mark in front of the selected row, and room for it in front of the others."""
    if selected is None:
        return line
    if selected != number:
        return [Span(NO_MARK), *line]
    styles = [f"{span.style};{REVERSE}" if span.style else REVERSE for span in line]
    shown = (Span(span.text, style, span.link) for span, style in zip(line, styles, strict=True))
    return [Span(MARK, BOLD), *shown]


def _line(columns: Sequence[Column], cells: Sequence[Span], widths: Sequence[int]) -> list[Span]:
    line: list[Span] = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        if not width:
            continue
        text = cut(cell.text, width)
        blank = Span(" " * (width - width_of(text)), PLAIN)
        shown = Span(text, cell.style, cell.link)
        line += [Span(" " * GAP)] if line else []
        line += [blank, shown] if column.is_right else [shown, blank]
    return line
