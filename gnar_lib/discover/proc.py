"""Reads from Linux's /proc which TCP ports the processes of this user listen on; knows no other system."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from gnar_lib.discover.listening import Listening, Process, name_of, one_for_each_port
from gnar_lib.errors import DiscoveryError

_PROC = Path("/proc")
_LISTENING = "0A"  # TCP_LISTEN of the kernel's enum (include/net/tcp_states.h)
_STATE, _OWNER, _INODE = 3, 7, 9  # columns of /proc/net/tcp, see proc(5)
_MOST_LINES = 100_000  # of /proc/net/tcp; sockets that listen come first
_MOST_WORDS_BYTES = 4096  # of a command line
_WORD_BYTES = 4  # of an address, each in the byte order of the machine


def find(owner: int, timeout_s: float, proc: Path = _PROC) -> list[Listening]:
    """Return the ports on which processes of a user listen, each with its process if that is found in time.

    Raises `DiscoveryError` if there is no /proc to read.
    """
    sockets = [*_sockets(owner, proc)]
    processes = _processes({inode for _, _, inode in sockets}, owner, time.monotonic() + timeout_s, proc)
    return one_for_each_port(sockets, processes)


def _sockets(owner: int, proc: Path) -> Iterator[tuple[str, int, int]]:
    """Yield address, port and inode of each socket of a user that listens."""
    is_read = False
    for name in ("tcp", "tcp6"):
        with suppress(OSError), (proc / "net" / name).open(encoding="ascii", errors="replace") as file:
            for line in islice(file, 1, _MOST_LINES):
                fields = line.split()
                if fields[_STATE] == _LISTENING and int(fields[_OWNER]) == owner:
                    yield (*_address(fields[1]), int(fields[_INODE]))
            is_read = True
    if not is_read:
        raise DiscoveryError("/proc/net/tcp cannot be read, so nobody can tell which ports are open")


def _address(text: str) -> tuple[str, int]:
    """Return IP address and port of such as `0100007F:1F90`."""
    import socket
    import sys

    digits, _, port = text.partition(":")
    words = (int(digits[at : at + 2 * _WORD_BYTES], 16) for at in range(0, len(digits), 2 * _WORD_BYTES))
    packed = b"".join(word.to_bytes(_WORD_BYTES, sys.byteorder) for word in words)
    family = socket.AF_INET if len(packed) == _WORD_BYTES else socket.AF_INET6
    return socket.inet_ntop(family, packed), int(port, 16)


def _processes(inodes: set[int], owner: int, until_s: float, proc: Path) -> dict[int, Process]:
    """Return the process that has each of these sockets, as far as there is time to find it."""
    found: dict[int, Process] = {}
    for number in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        if len(found) == len(inodes) or time.monotonic() > until_s:
            break
        folder = proc / str(number)
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            if folder.stat().st_uid == owner:
                own = inodes.intersection(_inodes(folder)) - found.keys()
                if own:
                    found |= dict.fromkeys(own, _process(folder))
    return found


def _inodes(folder: Path) -> Iterator[int]:
    """Yield the sockets that a process has open."""
    for name in os.listdir(folder / "fd"):
        with suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(folder / "fd" / name))
            if match:
                yield int(match[1])


def _process(folder: Path) -> Process:
    """Return what is known of a process; what may not be read is left out."""
    words: tuple[str, ...] = ()
    name = at = ""
    with suppress(OSError), (folder / "cmdline").open("rb") as file:
        line = file.read(_MOST_WORDS_BYTES).decode(errors="replace")
        words = tuple(line.rstrip("\0").split("\0")) if line else ()
    with suppress(OSError):
        name = (folder / "comm").read_text(errors="replace").strip()
    with suppress(OSError):
        at = os.readlink(folder / "cwd")
    return Process(name_of(words, name), words, at)
