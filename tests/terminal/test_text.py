"""Text on a terminal: how much room it takes, how it is cut, and what peers cannot do with it."""

from __future__ import annotations

import pytest

from gnar_lib.terminal import text
from gnar_lib.terminal.text import Span


@pytest.mark.parametrize(
    ("given", "width"),
    [
        ("", 0),
        ("web", 3),
        ("naïve", 5),
        ("nai\u0308ve", 5),
        ("日本", 4),
        ("🚀 up", 5),
        ("\uff57\uff45\uff42", 6),
    ],
)
def test_width_is_that_of_a_terminal(given: str, width: int) -> None:
    assert text.width_of(given) == width


@pytest.mark.parametrize(
    ("given", "room", "kept"),
    [
        ("web", 3, "web"),
        ("website", 4, "web…"),
        ("website", 1, "…"),
        ("website", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("nai\u0308ve", 4, "nai\u0308…"),
    ],
)
def test_text_is_cut_by_columns(given: str, room: int, kept: str) -> None:
    assert text.cut(given, room) == kept
    assert text.width_of(text.cut(given, room)) <= room


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\033[2J\a", r"\x1b[2J\x07"),
        ("a\nb\tc", r"a\nb c"),
        ("\u202eevil\u200d", r"\u202eevil\u200d"),
        ("\u2764\ufe0f", "\u2764"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_text_of_a_peer_moves_no_cursor(given: str, shown: str) -> None:
    assert text.clean(given) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1023.7, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (150 << 10, "150 KiB"),
        (1 << 20, "1.0 MiB"),
        (3 << 40, "3.0 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes_are_short(count: float, shown: str) -> None:
    assert text.size(count) == shown


def test_a_rate_is_a_size_or_nothing() -> None:
    assert (text.rate(0.4), text.rate(2048)) == ("0", "2.0 KiB")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (7384, "2 h 03 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert text.lasted(seconds) == shown


def test_short_times_are_in_milliseconds() -> None:
    expected = {
        None: "-",
        0.000123: "0.123 ms",
        0.0123: "12.3 ms",
        0.25: "250 ms",
        0.9994: "999 ms",
        0.9996: "1.0 s",
        1.26: "1.3 s",
    }
    assert {each: text.milliseconds(each) for each in expected} == expected


def test_a_line_has_colours_and_links_or_none() -> None:
    line = [Span("web", text.BOLD), Span("  "), Span("example.com", link="http://example.com")]
    link = "\033]8;;http://example.com\033\\example.com\033]8;;\033\\"
    assert text.render(line, 80) == f"\033[1mweb\033[0m  {link}"
    assert text.render(line, 80, colour=False) == f"web  {link}"


def test_a_line_is_cut_to_its_room_and_the_link_stays_whole() -> None:
    line = [Span("web "), Span("example.com", link="http://example.com"), Span("more")]
    assert text.render(line, 10) == "web \033]8;;http://example.com\033\\examp…\033]8;;\033\\"


def test_what_follows_text_of_unsure_width_is_sent_to_its_column() -> None:
    assert text.render([Span("日本"), Span("x")], 80) == "日本\033[5Gx"
