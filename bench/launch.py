"""A contestant, one start of it, and the host name that users ask for; knows no program but gnar by name."""

from __future__ import annotations

import functools
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from bench.procs import LOOPBACK, Crew, Host, Proc, free_port

LABEL, DOMAIN = "bench", "example.test"
NAME = f"{LABEL}.{DOMAIN}"  # host name in the requests of the works by host name

NO_MULTIPLEX = "--no-multiplex"  # has a connection of its own for each user; older files do not know the flag
TLS = "--tls"  # whether bytes travel encrypted, which they do without the flag; older files do not know it

Command = tuple[str, ...]


class Kind(Enum):
    """What a contestant does; contestants are compared with others of the same kind."""

    DIRECT = "direct"
    RELAY = "relay"
    TUNNEL = "tunnel"  # carries bytes as they are
    ENCRYPTED = "encrypted"  # a tunnel between whose two ends the bytes are encrypted
    NAMES = "names"  # carries HTTP requests to the service that their host names


@dataclass(slots=True)
class Launch:
    """One start of a contestant: where its programs run, and which ports they use."""

    crew: Crew  # owns the programs that are started
    near: Host  # where users and the server are
    far: Host  # where the client and the local service are
    proto: str  # "tcp", "udp" or "http"
    target: int  # port of the local service on `far`
    port: int = field(default_factory=free_port)  # port on `near` to which users connect
    procs: list[Proc] = field(default_factory=list)  # the programs that were started

    def server(self, *argv: object, env: Mapping[str, str] | None = None) -> Proc:
        """Start the server, or a relay; raises BenchError."""
        return self._start(self.near, argv, "server", env)

    def client(self, *argv: object, env: Mapping[str, str] | None = None) -> Proc:
        """Start the client, beside the local service; raises BenchError."""
        return self._start(self.far, argv, "client", env)

    def _start(self, host: Host, argv: Sequence[object], role: str, env: Mapping[str, str] | None) -> Proc:
        proc = self.crew.start(host, argv, role=role, env=env)
        self.procs.append(proc)
        return proc

    def file(self, name: str, text: str) -> Path:
        """Write a configuration file for this start and return its path."""
        path = self.crew.folder / f"{secrets.token_hex(6)}-{name}"
        path.write_text(text)
        return path

    def new_folder(self, name: str) -> Path:
        """Make a folder for a program of this start and return its path."""
        path = self.crew.folder / f"{secrets.token_hex(6)}-{name}"
        path.mkdir()
        return path


Starter = Callable[[Launch], None]


@dataclass(frozen=True, slots=True)
class Gnar:
    """The two ends of a tunnel of gnar's."""

    server: Command
    client: Command
    flags: Command = ()  # of the client: how data gets from the server to the client
    encrypted: bool = False  # whether the bytes travel encrypted between the two ends
    go: bool = False  # whether the two ends may be Go programs: their server has no --bind, and wants -m

    def lacks(self) -> str:
        """Return why the tunnel cannot run, for people; empty if it can. Raises BenchError."""
        if NO_MULTIPLEX in self.flags and NO_MULTIPLEX not in _help_of(self.client, "client"):
            return f"{' '.join(self.client)} client does not know {NO_MULTIPLEX}"
        if self.encrypted:
            for command, role in ((self.server, "server"), (self.client, "client")):
                if TLS not in _help_of(command, role):
                    return f"{' '.join(command)} {role} does not know {TLS}"
        return ""

    def client_flags(self) -> Command:
        """Return all flags of the client; raises BenchError.

        A client that knows TLS is told not to use it, unless the tunnel is encrypted.
        """
        return self.flags if self.encrypted else (*self.flags, *in_the_clear(self.client))


def in_the_clear(client: Command) -> Command:
    """Return the flags with which a `gnar client` sends bytes as they are; raises BenchError."""
    return (TLS, "off") if TLS in _help_of(client, "client") else ()


@functools.cache
def _help_of(gnar: Command, role: str) -> str:
    """Return what a `gnar server` or `gnar client` says of its flags; raises BenchError."""
    return LOOPBACK.run([*gnar, role, "--help"], check=False).stdout


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program, or several together, that carry users' bytes to a local service."""

    name: str  # in tables
    kind: Kind
    start: Starter
    programs: Command = ()  # programs that have to be on the PATH
    protos: Command = ("tcp",)  # of "tcp", "udp" and "http": TCP that is used by host name
    optional: bool = False  # whether the contestant is left out, and has not failed, if it lacks something
    extra: bool = False  # whether the contestant takes part only if it is named
    gnar: Gnar | None = None  # of a tunnel of gnar's

    def lacks(self) -> str:
        """Return why the contestant cannot run here, for people; empty if it can."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        if absent:
            return f"not on the PATH: {', '.join(absent)}"
        return self.gnar.lacks() if self.gnar is not None else ""
