"""Asks programs of macOS, other Unixes and Windows which TCP ports this user's processes listen on."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Iterator, Sequence

from gnar_lib.discover.listening import Listening, Process, name_of, one_for_each_port
from gnar_lib.errors import DiscoveryError

_MOST_PROCESSES = 100  # of which more than the name is asked


def find_by_lsof(owner: int, timeout_s: float) -> list[Listening]:
    """Return the ports of a user's processes, as lsof(8) tells them; each program has `timeout_s` to answer.

    Raises `DiscoveryError` if there is no lsof, or no answer.
    """
    # -n, -P: no look-ups. -F: a field on each line, p for the process, c for the program, n for the address.
    output = _output(["lsof", "-nP", "-a", "-u", str(owner), "-iTCP", "-sTCP:LISTEN", "-Fpcn"], timeout_s)
    sockets, programs = lsof_sockets(output)
    numbers = ",".join(map(str, [*programs][:_MOST_PROCESSES]))
    lines: dict[int, tuple[str, ...]] = {}
    folders: dict[int, str] = {}
    if numbers:
        lines = ps_lines(
            _output(["ps", "-ww", "-o", "pid=,command=", "-p", numbers], timeout_s, is_needed=False)
        )
        command = ["lsof", "-a", "-p", numbers, "-d", "cwd", "-Fpn"]
        folders = lsof_folders(_output(command, timeout_s, is_needed=False))
    return one_for_each_port(
        sockets,
        {
            number: Process(
                name_of(lines.get(number, ()), program), lines.get(number, ()), folders.get(number, "")
            )
            for number, program in programs.items()
        },
    )


def lsof_sockets(output: str) -> tuple[list[tuple[str, int, int]], dict[int, str]]:
    """Return address, port and process of each socket, and the names of the processes."""
    sockets: list[tuple[str, int, int]] = []
    programs: dict[int, str] = {}
    for number, kind, value in _fields(output):
        if kind == "c":
            programs[number] = value
        elif match := re.fullmatch(r"(.*):(\d+)", value) if kind == "n" else None:
            address = "0.0.0.0" if match[1] == "*" else match[1].strip("[]")
            sockets.append((address, int(match[2]), number))
    return sockets, programs


def lsof_folders(output: str) -> dict[int, str]:
    """Return the working folder of each process."""
    return {number: value for number, kind, value in _fields(output) if kind == "n"}


def _fields(output: str) -> Iterator[tuple[int, str, str]]:
    """Yield the fields that lsof writes, each with the number of its process, its letter and its value."""
    number: int | None = None
    for line in output.splitlines():
        kind, value = line[:1], line[1:]
        if kind == "p":
            number = int(value) if value.isdecimal() else None
        elif number is not None:
            yield number, kind, value


def ps_lines(output: str) -> dict[int, tuple[str, ...]]:
    """Return the words of each process's command line; ps(1) does not say where a word with a space ends."""
    lines = (line.split(maxsplit=1) for line in output.splitlines())
    return {int(line[0]): tuple(line[1].split()) for line in lines if len(line) > 1 and line[0].isdecimal()}


def find_by_netstat(timeout_s: float) -> list[Listening]:
    """Return the ports of this user's processes, as Windows' netstat and tasklist tell them.

    Raises `DiscoveryError` if one of them does not answer within `timeout_s`.
    """
    output = _output(["netstat", "-ano", "-p", "TCP"], timeout_s)
    output += _output(["netstat", "-ano", "-p", "TCPv6"], timeout_s, is_needed=False)
    own = ["/FI", f"USERNAME eq {os.environ.get('USERNAME', '')}"]
    processes = tasklist_processes(_output(["tasklist", *own, "/FO", "CSV", "/NH"], timeout_s))
    return one_for_each_port((each for each in netstat_sockets(output) if each[2] in processes), processes)


def netstat_sockets(output: str) -> list[tuple[str, int, int]]:
    """Return address, port and process of each socket that listens.

    The word for the state is in the language of the system. What listens has no peer.
    """
    line = r"\s*TCP\s+\[?([^\s\]]+?)\]?:(\d+)\s+(?:0\.0\.0\.0|\[::\]):0\s+\S+\s+(\d+)\s*"
    return [
        (match[1].partition("%")[0], int(match[2]), int(match[3]))
        for match in (re.fullmatch(line, each) for each in output.splitlines())
        if match
    ]


def tasklist_processes(output: str) -> dict[int, Process]:
    """Return the processes in a list of comma-separated values: name, number, and what is not read."""
    rows = csv.reader(output.splitlines())
    return {int(row[1]): Process(row[0], (row[0],)) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _output(command: Sequence[str], timeout_s: float, *, is_needed: bool = True) -> str:
    """Return what a program writes to standard output; empty if it fails and is not needed.

    The exit status says nothing: that of lsof is 1 if there is nothing to tell. Raises `DiscoveryError`.
    """
    try:
        done = subprocess.run(  # noqa: S603  (the commands are those above)
            [*command], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        if not is_needed:
            return ""
        reason = "does not answer" if isinstance(exc, subprocess.TimeoutExpired) else exc.strerror or exc
        raise DiscoveryError(
            f"{command[0]}, which tells what ports are open, cannot be run: {reason}"
        ) from exc
    return done.stdout.decode(errors="replace")
