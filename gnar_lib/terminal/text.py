"""How much room text takes on a terminal, and short texts for sizes and times; knows no view.

A line is a row of spans. `render` makes of it what is written to a terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gnar_lib import logger

PLAIN, BOLD, DIM, REVERSE = "", "1", "2", "7"  # parameters of SGR (ECMA-48, 8.3.117)
RED, GREEN, YELLOW = "31", "32", "33"

CUT = "…"  # in place of what did not fit
_NO_WIDTH = {"Mn", "Me", "Cf"}  # categories of characters that are drawn onto the one before
_VARIATIONS = dict.fromkeys(range(0xFE00, 0xFE10))  # about whose effect on the width terminals disagree
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP, _SHOWN_WHOLE = 1024, 100  # from how many units on no decimal is shown
_WHOLE_SECOND_MS = 999.5  # from here on, three digits would be those of a second
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line: its text, how it looks (SGR), and the URL to which it leads, if any."""

    text: str
    style: str = PLAIN
    link: str = ""


def clean(text: str) -> str:
    """Return text of a peer or a person, without anything that moves the cursor or has no sure width."""
    return logger.printable(text).replace("\t", " ").translate(_VARIATIONS)


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """Return a text that takes at most `room` columns; the end is marked if some of it is missing."""
    if width_of(text) <= room:
        return text
    if room < 1:
        return ""
    kept, taken = [], 0
    for character in text:
        taken += _width(character)
        if taken > room - 1:
            break
        kept.append(character)
    return "".join(kept) + CUT


# ---- lines -------------------------------------------------------------------------------------------------


def length(line: Iterable[Span]) -> int:
    """Return how many columns a line takes."""
    return sum(width_of(span.text) for span in line)


def fit(line: Iterable[Span], room: int) -> Iterator[Span]:
    """Yield the spans of a line as far as there is room for them."""
    for span in line:
        text = cut(span.text, room)
        if text:
            yield replace(span, text=text)
        if text != span.text:
            return
        room -= width_of(text)


def plain(line: Iterable[Span]) -> str:
    """Return a line for what is no terminal, whole."""
    return "".join(span.text for span in line).rstrip()


def render(line: Iterable[Span], room: int, *, colour: bool = True) -> str:
    """Return a line as it is written to a terminal that has `room` columns.

    Where terminals may disagree about the width of a text, the next span is sent to its column.
    """
    parts, column = [], 1
    line = [*fit(line, room)]
    for number, span in enumerate(line, 1):
        text = span.text
        if span.link:
            text = f"\033]8;;{span.link}\033\\{text}\033]8;;\033\\"
        if span.style and colour:
            text = f"\033[{span.style}m{text}\033[0m"
        parts.append(text)
        column += width_of(span.text)
        if not span.text.removesuffix(CUT).isascii() and number < len(line):
            parts.append(f"\033[{column}G")
    return "".join(parts)


# ---- figures -----------------------------------------------------------------------------------------------


def size(count: float) -> str:
    """Return a number of bytes for people, such as `1.5 MiB`."""
    number = 0
    while count >= _STEP - 0.5 and number < len(_SIZES) - 1:
        count, number = count / _STEP, number + 1
    digits = 0 if not number or count >= _SHOWN_WHOLE else 1
    return f"{count:.{digits}f} {_SIZES[number]}"


def rate(bytes_per_s: float) -> str:
    """Return a rate for people; a bare 0 when nothing moves."""
    return size(bytes_per_s) if bytes_per_s >= 1 else "0"


def lasted(seconds: float) -> str:
    """Return how long something has lasted, for people, such as `3 h 12 min`."""
    whole = max(0, int(seconds))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def milliseconds(seconds: float | None) -> str:
    """Return a short time for people, such as `0.42 ms` or `1.2 s`; a dash if nobody knows it."""
    if seconds is None:
        return "-"
    ms = seconds * 1000
    return f"{ms:.3g} ms" if ms < _WHOLE_SECOND_MS else f"{seconds:.1f} s"
