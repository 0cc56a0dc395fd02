"""The local services behind the contestants: a web server, an iperf3 server, an echo server for datagrams."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.procs import BenchError, Crew, Host, Proc, compile_c, free_port

ANSWER = "ok\n"  # tiny: what is measured is the way, not the copy
DOWNLOAD_BYTES = 1 << 36  # sparse; more than any measurement reads
WEB_CONNECTIONS = 30_000
SOURCE = Path(__file__).with_name("udpecho.c")


class Service(Protocol):
    """What contestants lead to."""

    proto: str
    port: int

    def restart(self) -> None:
        """Make it fit for use again after a measurement that broke off."""


@dataclass
class Web:
    """nginx: one worker, no log, connections that stay open for as long as anyone likes."""

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
        config = folder / "nginx.conf"
        config.write_text(self._config(folder))
        argv = ["nginx", "-e", folder / "error.log", "-p", folder, "-c", config]
        self.crew.start(self.host, argv, role="nginx").wait_listening(self.port)

    def _config(self, folder: Path) -> str:
        temporary = "\n".join(
            f"  {kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # Without a master process there is one worker, and it keeps the user who may read the folder.
        return f"""
daemon off;
master_process off;
pid {folder}/pid;
events {{ worker_connections {WEB_CONNECTIONS}; }}
http {{
{temporary}
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_header_timeout 1h;
  send_timeout 1h;
  server {{ listen {self.host.bind}:{self.port} backlog=4096; root {folder}; }}
}}
"""

    def restart(self) -> None:
        """A web server outlives its users."""


@dataclass
class Iperf:
    """iperf3's server; it serves one test at a time."""

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
        """A test that broke off keeps it busy until a time-out of minutes."""
        self.crew.stop([self._proc])
        self._proc = self._start()


@dataclass
class Echo:
    """Sends every datagram back; `program` is the load generator too."""

    crew: Crew
    host: Host
    proto: str = "udp"

    def __post_init__(self) -> None:
        self.port = free_port()
        self.program = compile_c(SOURCE, self.crew.folder)
        argv = [self.program, "serve", self.host.bind, self.port]
        self._proc = self.crew.start(self.host, argv, role="echo server")

    def restart(self) -> None:
        """It keeps nothing between datagrams."""
        self._proc.check_alive()


def check_programs(*programs: str) -> None:
    """Raise BenchError, naming Debian's packages, unless all of these are on the PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise BenchError(f"not on the PATH: {', '.join(missing)}; Debian's packages have the same names")
