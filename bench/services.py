"""Starts the local services: a web server, two servers for bulk, and an echo server for datagrams."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.configs import nginx_command
from bench.procs import BenchError, Crew, Host, Proc, compile_c, free_port

ANSWER = "ok\n"  # small, so that a measurement shows the cost of requests, not of copying
DOWNLOAD_BYTES = 1 << 36  # size of a sparse file; no measurement reads all of it
SOURCE = Path(__file__).with_name("udpecho.c")
TCP_SOURCE = Path(__file__).with_name("tcpecho.c")
BODIES_PROGRAM = Path(__file__).with_name("bodies.py")


class Service(Protocol):
    """A local service, to which contestants carry users' bytes."""

    proto: str  # "tcp", "udp" or "http"
    port: int

    def restart(self) -> None:
        """Make the service usable again after a measurement that failed; raises BenchError."""


@dataclass
class Web:
    """An nginx with one worker and no log, which never closes idle connections."""

    crew: Crew
    host: Host
    proto: str = "tcp"

    def __post_init__(self) -> None:
        self.port = free_port()
        folder = self.crew.folder / f"web-{self.port}"
        folder.mkdir()
        (folder / "index.html").write_text(ANSWER)
        with (folder / "big").open("wb") as big:
            big.truncate(DOWNLOAD_BYTES)
        server = f"  server {{ listen {self.host.bind}:{self.port} backlog=4096; root {folder}; }}"
        argv = nginx_command(folder, server)
        self.crew.start(self.host, argv, role="nginx").wait_listening(self.port)

    def restart(self) -> None:
        """Do nothing: a failed measurement leaves the web server usable."""


@dataclass
class NamedWeb(Web):
    """The same web server, for users who ask for it by host name."""

    proto: str = "http"


@dataclass
class Bodies:
    """A server of long bodies, for users who ask for it by host name."""

    crew: Crew
    host: Host
    proto: str = "http"

    def __post_init__(self) -> None:
        self.port = free_port()
        argv = [sys.executable, BODIES_PROGRAM, "serve", self.host.bind, self.port]
        self.crew.start(self.host, argv, role="server of bodies").wait_listening(self.port)

    def restart(self) -> None:
        """Do nothing: a connection that breaks off ends nothing but itself."""


@dataclass
class Iperf:
    """An iperf3 server, which serves one test at a time."""

    crew: Crew
    host: Host
    proto: str = "tcp"

    def __post_init__(self) -> None:
        self.port = free_port()
        self._proc = self._start()

    def _start(self) -> Proc:
        argv = ["iperf3", "-s", "-B", self.host.bind, "-p", self.port]
        proc = self.crew.start(self.host, argv, role="iperf3 server")
        proc.wait_listening(self.port)
        return proc

    def restart(self) -> None:
        """Start a new server: a test that broke off keeps the old one busy for minutes."""
        self.crew.stop([self._proc])
        self._proc = self._start()


@dataclass
class Echo:
    """A server that sends every datagram back.

    `program` is the path of a program that is also the load generator.
    """

    crew: Crew
    host: Host
    proto: str = "udp"

    def __post_init__(self) -> None:
        self.port = free_port()
        self.program = compile_c(SOURCE, self.crew.folder)
        argv = [self.program, "serve", self.host.bind, self.port]
        self._proc = self.crew.start(self.host, argv, role="echo server")

    def restart(self) -> None:
        """Check that the server runs; it has no state."""
        self._proc.check_alive()


@dataclass
class TcpEcho:
    """A server that sends back what comes on every connection.

    `program` is the path of a program that is also a crowd of users.
    """

    crew: Crew
    host: Host
    proto: str = "tcp"

    def __post_init__(self) -> None:
        self.port = free_port()
        self.program = compile_c(TCP_SOURCE, self.crew.folder)
        self._proc = self.crew.start(
            self.host, [self.program, "serve", self.host.bind, self.port], role="echo server"
        )
        self._proc.wait_listening(self.port)

    def restart(self) -> None:
        """Check that the server runs; it has no state."""
        self._proc.check_alive()


def check_programs(*programs: str) -> None:
    """Raise BenchError with the names of Debian's packages unless all programs are on the PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise BenchError(f"not on the PATH: {', '.join(missing)}; Debian's packages have the same names")
