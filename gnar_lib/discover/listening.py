"""What is known of a TCP port on which somebody listens, before anybody has asked there; knows no system."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# A program of gnar's own: the command, its source, or the one file, also with a version in its name.
_GNAR = re.compile(r"gnar(?:\.py|\.exe)?|gnar[-\d.]*\.pyz", re.IGNORECASE)
_FIRST_WORDS = 4  # of a command line, among which the name of a script is: `python3 -X dev gnar.pyz`
_BEHIND_NAME = re.compile(r"(?:: | -).*", re.DOTALL)  # what a program that renames itself adds: "sshd: x [y]"


@dataclass(frozen=True, slots=True)
class Process:
    """A program that runs, as far as this process may know."""

    program: str = ""  # its name
    words: tuple[str, ...] = ()  # its command line
    folder: str = ""  # where it works

    @property
    def is_gnar(self) -> bool:
        """Whether this is a process of gnar."""
        return any(_GNAR.fullmatch(base_name(word)) for word in self.words[:_FIRST_WORDS])


UNKNOWN = Process()


@dataclass(frozen=True, slots=True)
class Listening:
    """A TCP port of this machine on which somebody listens."""

    port: int
    host: str = ""  # at which to dial; empty for loopback
    process: Process = UNKNOWN


def base_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[/\\]", path)[-1]


def name_of(words: tuple[str, ...], otherwise: str) -> str:
    """Return the name of a program by its command line; some programs write what they do into that."""
    return base_name(_BEHIND_NAME.sub("", words[0] if words else "")) or otherwise


def one_for_each_port(
    found: Iterable[tuple[str, int, int]], processes: Mapping[int, Process]
) -> list[Listening]:
    """Return ports in order, each once, made of addresses, ports and numbers of processes.

    Where several programs listen on one port, that on loopback counts, since gnar dials there.
    """
    chosen: dict[int, tuple[str, int]] = {}
    for address, port, number in found:
        host = _host_to_dial(address)
        if host is None:
            continue
        if port not in chosen or (chosen[port][0] and not host):
            chosen[port] = (host, number)
    return [
        Listening(port, host, processes.get(number, UNKNOWN))
        for port, (host, number) in sorted(chosen.items())
    ]


def _host_to_dial(address: str) -> str | None:
    """Return where to dial what listens at an IP address: empty for loopback; None if nobody can tell."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_link_local:  # needs the name of an interface, too
            return None
        ip = ip.ipv4_mapped or ip
    return "" if ip.is_unspecified or str(ip) in ("127.0.0.1", "::1") else str(ip)
