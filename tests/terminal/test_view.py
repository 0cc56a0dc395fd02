"""The live view as a picture: what is where on terminals of any size."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace

import pytest

from gnar_lib.logger import Entry
from gnar_lib.terminal.text import width_of
from gnar_lib.terminal.view import ConnectionRow, Fact, ProxyRow, View, draw, rows_room

AT = time.mktime((2026, 1, 2, 15, 4, 5, 0, 0, -1))
WEB = ProxyRow(
    name="web",
    kind="tcp",
    where="example.com:9000",
    url="http://example.com:9000",
    partner="127.0.0.1:3000",
    partner_answers=True,
    users=3,
    users_total=120,
    up=1 << 20,
    down=5 << 30,
    rate_up=2048.0,
    rate_down=3 << 20,
)
DNS = ProxyRow(name="dns", kind="udp", where="example.com:9053", partner="127.0.0.1:5353", dropped=7)
FACTS = (
    Fact("Server", "example.com:8910"),
    Fact("", "connected for 5 min"),
    Fact("Round trip", "12.3 ms"),
    Fact("Users", "3 now, 120 in all"),
)
TITLES = "USERS  TOTAL       UP/s     DOWN/s         UP       DOWN"
WEB_FIGURES = "    3    120    2.0 KiB    3.0 MiB    1.0 MiB    5.0 GiB"
DNS_FIGURES = "    0      0          0          0        0 B        0 B"
VIEW = View(
    title="gnar client",
    hint="^C stops it",
    facts=FACTS,
    rows=(WEB, DNS),
    count=2,
    events=(
        Entry(AT, logging.INFO, "client connected to example.com:8910"),
        Entry(AT, logging.WARNING, "TCP [web] the local service does not answer"),
    ),
)


def plain(lines: list[str]) -> list[str]:
    """Return lines without links and without blanks at their ends."""
    return [re.sub(r"\033\]8;;[^\033]*\033\\", "", line).rstrip() for line in lines]


def shown(view: View, width: int, height: int) -> list[str]:
    return plain(draw(view, width, height, colour=False))


def test_a_wide_terminal_shows_everything() -> None:
    assert shown(VIEW, 116, 24) == [
        "gnar client" + " " * 94 + "^C stops it",
        "Server example.com:8910   connected for 5 min   Round trip 12.3 ms   Users 3 now, 120 in all",
        "",
        f"PROXY       LINK              LOCAL SERVICE   {TITLES}  DROPPED",
        f"web         example.com:9000  127.0.0.1:3000  {WEB_FIGURES}",
        f"dns    udp  example.com:9053  127.0.0.1:5353  {DNS_FIGURES}        7",
        "",
        "15:04:05 client connected to example.com:8910",
        "15:04:05 TCP [web] the local service does not answer",
    ]


def test_a_usual_terminal_leaves_out_what_matters_least() -> None:
    assert shown(VIEW, 80, 24)[1:8] == [
        "Server example.com:8910   connected for 5 min   Round trip 12.3 ms",
        "Users 3 now, 120 in all",
        "",
        "PROXY       LINK              LOCAL SERVICE   USERS       UP/s     DOWN/s",
        "web         example.com:9000  127.0.0.1:3000      3    2.0 KiB    3.0 MiB",
        "dns    udp  example.com:9053  127.0.0.1:5353      0          0          0",
        "",
    ]


def test_forty_columns_keep_name_link_and_users() -> None:
    assert shown(VIEW, 40, 10) == [
        "gnar client" + " " * 18 + "^C stops it",
        "Server example.com:8910",
        "connected for 5 min   Round trip 12.3 ms",
        "PROXY       LINK              USERS",
        "web         example.com:9000      3",
        "dns    udp  example.com:9053      0",
        "15:04:05 client connected to example.co…",
        "15:04:05 TCP [web] the local service do…",
    ]


def test_twenty_columns_keep_the_link() -> None:
    assert shown(VIEW, 20, 5) == [
        "gnar client",
        "Server example.com:…",
        "example.com:9000",
        "example.com:9053",
        "15:04:05 TCP [web] …",
    ]


@pytest.mark.parametrize("width", [1, 2, 7, 20, 33, 57, 80, 133, 300])
@pytest.mark.parametrize("height", [1, 2, 5, 8, 12, 13, 50])
def test_no_line_is_too_long_and_there_are_not_too_many(width: int, height: int) -> None:
    wide = replace(WEB, name="日本の🚀サイト" * 20, partner="x" * 300, partner_answers=False)
    rows = (wide, *[DNS] * 60)
    for view in (
        replace(VIEW, rows=rows, count=len(rows)),
        replace(VIEW, rows=rows, count=len(rows), selected=0, facts=FACTS * 9, title="t" * 400),
        replace(VIEW, rows=(), count=0, facts=(), events=()),
    ):
        lines = draw(view, width, height, colour=False)
        assert len(lines) <= height
        positions = r"\033\[\d+G"
        assert all(width_of(re.sub(positions, "", line)) <= width for line in plain(lines))


def test_rows_beyond_the_terminal_are_counted() -> None:
    many = tuple(replace(WEB, name=f"web-{number}") for number in range(100))
    view = replace(VIEW, rows=many[40:], first=40, count=100)
    lines = shown(view, 80, 24)
    room = rows_room(view, 80, 24)
    assert lines[4].endswith(f"41-{40 + room} of 100")
    assert [line.split()[0] for line in lines if line.startswith("web-")] == [
        f"web-{number}" for number in range(40, 40 + room)
    ]
    assert lines[-1].startswith("15:04:05")
    assert len(lines) == 24


def test_the_selected_row_is_marked_without_colours_too() -> None:
    lines = shown(replace(VIEW, selected=1), 80, 24)
    assert [line[:5] for line in lines[4:7]] == ["  PRO", "  web", "> dns"]


def test_a_proxy_that_is_not_open_says_so_in_the_place_of_its_link() -> None:
    row = replace(WEB, where="asked for", url="", is_open=False)
    assert "\033[33masked for" in "\n".join(draw(replace(VIEW, rows=(row,), count=1), 80, 24))


def test_a_service_that_does_not_answer_is_red_and_says_so() -> None:
    row = replace(WEB, partner_answers=False)
    line = draw(replace(VIEW, rows=(row,), count=1), 132, 24)[4]
    assert "\033[31m127.0.0.1:3000 no answer\033[0m" in line


def test_a_link_leads_to_the_proxy_and_can_be_no_other_sequence() -> None:
    assert "\033]8;;http://example.com:9000\033\\example.com:9000\033]8;;\033\\" in draw(VIEW, 80, 24)[5]
    evil = replace(WEB, url="http://x\033\\\033[2J", name="\033[2J\nx")
    lines = draw(replace(VIEW, rows=(evil,), count=1), 80, 24, colour=False)
    assert "\033[2J" not in "".join(lines)
    assert "8;;" not in "".join(lines)


def test_colours_of_events_are_those_of_their_level() -> None:
    lines = draw(VIEW, 80, 24)
    assert lines[-2].endswith("client connected to example.com:8910")
    assert "\033[33mTCP [web]" in lines[-1]


def test_connections_have_a_table_of_their_own() -> None:
    row = ConnectionRow("198.51.100.2:4242", 7384, 3, 1 << 20, 5 << 20, 0.0, 2048.0)
    view = replace(VIEW, rows=(row,), count=1, rows_title="USER", selected=0)
    assert shown(view, 80, 24)[4:6] == [
        "  USER                      AGE    IDLE       UP/s     DOWN/s       DOWN",
        "> 198.51.100.2:4242  2 h 03 min     3 s          0    2.0 KiB    5.0 MiB",
    ]
