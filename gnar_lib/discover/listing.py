"""Shows the services that were found as a table, for a terminal of any width; reads nothing that is typed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gnar_lib.config import Address
from gnar_lib.discover.asking import Kind, Service
from gnar_lib.discover.listening import Listening
from gnar_lib.terminal.table import Column, Table, lines_of
from gnar_lib.terminal.text import BOLD, DIM, Span, clean, fit, plain, render

_COLUMNS = (
    Column("#", rank=0, is_right=True),
    Column("port", rank=1, is_right=True),
    Column("service", rank=2, least=8),
    Column("program", rank=3, least=6),
    Column("folder", rank=4, least=8),
)
_MOST_HIDDEN = 6  # ports that are named; the others are counted
_UNNAMED = {Kind.WEB: "HTTP", Kind.OTHER: "no HTTP", Kind.SILENT: "does not answer"}


def table(services: Sequence[Service], room: int, *, in_colour: bool, is_plain: bool) -> str:
    """Return the table of services, one line for each; `is_plain` is for terminals that know no escapes."""
    rows = tuple(_row(number, service) for number, service in enumerate(services, 1))
    lines = lines_of(Table(_COLUMNS, rows), room)
    if is_plain:
        return "".join(f"{plain([*fit(line, room)])}\n" for line in lines)
    return "".join(f"{render(line, room, colour=in_colour)}\n" for line in lines)


def _row(number: int, service: Service) -> tuple[Span, ...]:
    process = service.listening.process
    return (
        Span(str(number), BOLD),
        Span(port_of(service.listening)),
        Span(service.name or _UNNAMED[service.kind], "" if service.name else DIM),
        Span(clean(process.program)),
        Span(clean(short_folder(process.folder, os.path.expanduser("~"))), DIM),
    )


def port_of(listening: Listening) -> str:
    """Return where a service listens, for people: the port alone if that is on loopback."""
    return str(Address(listening.host, listening.port)) if listening.host else str(listening.port)


def short_folder(folder: str, home: str) -> str:
    """Return the folder in which a program works, with ~ for the home of this user."""
    return f"~{folder.removeprefix(home)}" if f"{folder}/".startswith(f"{home}/") else folder


def hidden(ports: Sequence[tuple[Listening, str]]) -> str:
    """Return a line that names the ports which are left out, each with what it is."""
    named = ", ".join(f"{port_of(listening)} ({what})" for listening, what in ports[:_MOST_HIDDEN])
    more = f" and {len(ports) - _MOST_HIDDEN} more" if len(ports) > _MOST_HIDDEN else ""
    return f"Left out: {named}{more}.\n" if named else ""
