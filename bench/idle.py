"""Measures tunnels with thousands of idle connections: memory of both ends, and the delay of a user."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.launch import Contestant, Kind
from bench.procs import KILL_WAIT_S, LOOPBACK, MIB_KIB, Crew, answer_of
from bench.rounds import Entrant, Scoreboard, Site, allow_files, run_anew, start_contestant
from bench.services import Service, Web, check_programs
from bench.work import USER_PROGRAM, Figures, Route, wrk

FILES_EACH = 3  # of each connection in one program: two sockets, and a share of the pipes
FILES_SPARE = 1000
HOLD_WAIT_S = 120.0  # for all connections to be opened
SETTLE_S = 6.0  # after which the contestants treat unused connections as idle
TUNNELS = {Kind.TUNNEL, Kind.ENCRYPTED}
METRICS = (
    "rest_server",
    "rest_client",
    "idle_server",
    "idle_client",
    "idle_lost",
    "p50_empty",
    "p50_idle",
    "p50_ratio",
)


def run_idle(board: Scoreboard, contestants: Sequence[Contestant], count: int) -> None:
    """Measure each tunnel in turn with `count` idle connections; raises BenchError."""
    check_programs("nginx", "wrk")
    allow_files(board, count * FILES_EACH + FILES_SPARE, f"{count} idle connections")
    tunnels = [contestant for contestant in contestants if contestant.kind in TUNNELS]
    measure = functools.partial(_measure, board, count)
    run_anew(board, tunnels, METRICS, f"{count} idle connections", measure)


def _measure(board: Scoreboard, count: int, contestant: Contestant) -> Figures:
    """Start one contestant and measure it."""
    with Crew(board.folder) as crew:
        service: Service = Web(crew, LOOPBACK)
        entrant = start_contestant(contestant, Site(crew, LOOPBACK, LOOPBACK, service))
        rest = _memory_kib(entrant)
        p50_empty = wrk(entrant.route, board.seconds, 1).median_us
        before = _memory_kib(entrant)
        with _idle_users(entrant.route, count) as holder:
            time.sleep(SETTLE_S)
            after = _memory_kib(entrant)
            p50_idle = wrk(entrant.route, board.seconds, 1).median_us
            lost = _close_users(holder)
    figures = {f"rest_{role}": kib / MIB_KIB for role, kib in rest.items()}
    figures |= {f"idle_{role}": (after[role] - before[role]) / count for role in rest}
    return figures | {
        "idle_lost": lost,
        "p50_empty": p50_empty,
        "p50_idle": p50_idle,
        "p50_ratio": p50_idle / p50_empty,
    }


def _memory_kib(entrant: Entrant) -> dict[str, int]:
    """Return the memory of server and client; raises BenchError if one of them has ended."""
    entrant.route.check_alive()
    kib = {"server": 0, "client": 0}
    for proc in entrant.launch.procs:
        kib[proc.role] += proc.pss_kib()
    return kib


@contextmanager
def _idle_users(route: Route, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """Hold `count` idle users; the block begins when all are connected. Raises BenchError."""
    argv = [sys.executable, USER_PROGRAM, "hold", route.ip, route.port, count]
    pipe = subprocess.PIPE
    with route.host.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as holder:
        try:
            answer_of(holder, HOLD_WAIT_S)
            yield holder
        finally:
            holder.kill()


def _close_users(holder: subprocess.Popen[bytes]) -> float:
    """Close the users' connections; return how many had been closed by the other side."""
    if holder.stdin:
        holder.stdin.close()
    return answer_of(holder, KILL_WAIT_S)["lost"]
