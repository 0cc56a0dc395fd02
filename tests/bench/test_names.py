"""The parts of the works by host name: the reverse proxies, and the server and user of bodies."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from bench.contestants import all_contestants
from bench.launch import NAME
from bench.procs import LOOPBACK, BenchError, Crew, Host
from bench.rounds import Site, start_contestant
from bench.services import BODIES_PROGRAM, Bodies
from bench.usage import Usage
from bench.work import WORKS, Route, bodies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LONG = 3_000_000  # bytes: several reads, and more than the buffers on the way


@pytest.mark.parametrize("name", ["haproxy http x2", "nginx x2"])
def test_reverse_proxies_carry_whole_bodies_for_one_name_alone(name: str, tmp_path: Path) -> None:
    (contestant,) = [each for each in all_contestants("gnar", []) if each.name == name]
    with Crew(tmp_path) as crew:
        site = Site(crew, LOOPBACK, LOOPBACK, Bodies(crew, LOOPBACK))
        route = start_contestant(contestant, site).route
        for what, path_or_size in (("put", LONG), ("get", f"/{LONG}")):
            assert bodies(route, what, path_or_size, 0)[1] == LONG
        other = [sys.executable, BODIES_PROGRAM, "get", route.ip, route.port, "other.test", "/1", 0]
        with pytest.raises(BenchError, match=r"200: HTTP/1\.1 404"):
            LOOPBACK.run(other)


@dataclass(frozen=True)
class _ToldWrk(Host):
    """A host on which every program reports what wrk does for 2000 requests; keeps the command lines."""

    ran: list[Sequence[object]] = field(default_factory=list)

    def run(
        self, argv: Sequence[object], *, timeout: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        del timeout, check
        self.ran.append(argv)
        text = "  50%  40us\n  2000 requests in 1.00s\nRequests/sec: 1999.0\n"
        return subprocess.CompletedProcess([], 0, text, "")


class _HalfASecond(Usage):
    """Tells half a second of processor time, most of it user time, and 30 MiB, whatever was used."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(None, None, None)
        self.user_seconds, self.system_seconds, self.peak_mib = 0.375, 0.125, 30


def test_requests_name_their_host_and_tell_processor_time_of_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.work.Usage", _HalfASecond)
    host = _ToldWrk("told", "127.0.0.1", "127.0.0.1")
    with Crew(tmp_path) as crew:
        service = Bodies(crew, LOOPBACK)
        route = Route(host, host.ip, service.port, [crew.start(LOOPBACK, ["sleep", 60])], service)
        found = [WORKS[name].measure(route, 1) for name in ("hka32", "hka1", "hshort")]
    assert found == [
        {"hka32": 1999, "user_hka32": 187.5, "system_hka32": 62.5, "cpu_hka32": 250, "hpeak": 30},
        {"hka1": 40, "cpu_hka1": 250, "hpeak": 30},
        {"hshort": 1999, "user_hshort": 187.5, "system_hshort": 62.5, "cpu_hshort": 250, "hpeak": 30},
    ]
    assert all(f"Host: {NAME}" in argv for argv in host.ran)


@contextlib.contextmanager
def _answering(answer: bytes) -> Iterator[int]:
    """Give the first connection an answer whatever it asks, and then its end; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                conn.recv(4096)
                conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Not 200\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 503 Not 200"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxxxx", "5 of 9 bytes missing"),
        (b"HTTP/1.1 200 OK\r\n\r\nx", "not a body of known length"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed within a head"),
        (b"", "closed without an answer"),
    ],
    ids=["refused", "cut", "of unknown length", "cut head", "none"],
)
def test_incomplete_or_refused_body_is_a_failure(answer: bytes, said: str) -> None:
    with _answering(answer) as port, pytest.raises(BenchError, match=said):
        LOOPBACK.run([sys.executable, BODIES_PROGRAM, "get", "127.0.0.1", port, NAME, "/9", 0])
