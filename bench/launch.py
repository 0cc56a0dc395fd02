"""A contestant, one start of it, and the host name that users ask for; knows no program by name."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from bench.procs import Crew, Host, Proc, free_port

LABEL, DOMAIN = "bench", "example.test"
NAME = f"{LABEL}.{DOMAIN}"  # host name in the requests of the works by host name

Command = tuple[str, ...]


class Kind(Enum):
    """What a contestant does; contestants are compared with others of the same kind."""

    DIRECT = "direct"
    RELAY = "relay"
    TUNNEL = "tunnel"
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
class Contestant:
    """A program, or several together, that carry users' bytes to a local service."""

    name: str  # in tables
    kind: Kind
    start: Starter
    programs: Command = ()  # programs that have to be on the PATH
    protos: Command = ("tcp",)  # of "tcp", "udp" and "http": TCP that is used by host name
    optional: bool = False  # whether the contestant is left out, and has not failed, if programs are missing
    extra: bool = False  # whether the contestant takes part only if it is named

    def missing(self) -> list[str]:
        """Return the programs that are not on the PATH."""
        return [program for program in self.programs if shutil.which(program) is None]
