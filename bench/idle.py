"""Measures tunnels with thousands of idle connections: memory of both ends, and the delay of a user."""

from __future__ import annotations

import functools
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.launch import Contestant, Kind
from bench.procs import KILL_WAIT_S, LOOPBACK, MIB_KIB, BenchError, Crew, raise_file_limit
from bench.rounds import Entrant, Scoreboard, Site, start_contestant
from bench.services import Service, Web, check_programs
from bench.work import USER_PROGRAM, Figures, Route, wrk

FILES_EACH = 3  # of each connection in one program: two sockets, and a share of the pipes
FILES_SPARE = 1000
HOLD_WAIT_S = 120.0  # for all connections to be opened
SETTLE_S = 6.0  # after which the contestants treat unused connections as idle
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
    needed = count * FILES_EACH + FILES_SPARE
    allowed = raise_file_limit(needed)
    if allowed < needed:
        note = f"only {allowed} open files are allowed, and {count} idle connections want {needed}: ulimit -n"
        board.results.notes.append(note)
        board.progress.say(note)
    tunnels = [contestant for contestant in contestants if contestant.kind is Kind.TUNNEL]
    board.progress.expect(board.rounds * len(tunnels))
    for number in range(board.rounds):
        for contestant in tunnels:
            label = f"round {number + 1}/{board.rounds}, {count} idle connections"
            board.attempt(contestant, METRICS, label, functools.partial(_measure, board, contestant, count))


def _measure(board: Scoreboard, contestant: Contestant, count: int) -> Figures:
    """Start one contestant and measure it.

    A contestant is started for each round, since a program keeps memory from earlier loads.
    """
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
            _answer(holder, HOLD_WAIT_S)
            yield holder
        finally:
            holder.kill()


def _close_users(holder: subprocess.Popen[bytes]) -> float:
    """Close the users' connections; return how many had been closed by the other side."""
    if holder.stdin:
        holder.stdin.close()
    return float(_answer(holder, KILL_WAIT_S)["lost"])


def _answer(holder: subprocess.Popen[bytes], timeout_s: float) -> dict[str, float]:
    """Return the next line of user.py; raises BenchError with user.py's error, or after `timeout_s`."""
    if not holder.stdout or not holder.stderr:
        raise BenchError("user.py was started without pipes")
    with selectors.DefaultSelector() as selector:
        selector.register(holder.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise BenchError(f"the idle connections took longer than {timeout_s:.0f} s")
    line = holder.stdout.readline()
    if not line:
        raise BenchError(f"idle connections: {holder.stderr.read().decode().strip()}")
    answer = json.loads(line)
    return {key: float(value) for key, value in answer.items()}
