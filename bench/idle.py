"""Idle connections: holds thousands through each tunnel, weighs both ends, and lets one more user work."""

from __future__ import annotations

import functools
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.contestants import Contestant, Kind
from bench.procs import KILL_WAIT_S, LOOPBACK, MIB_KIB, BenchError, Crew, raise_file_limit
from bench.rounds import Board, Entrant, Scene, start_contestant
from bench.services import Service, Web, check_programs
from bench.work import USER, Figures, Lane, wrk

FILES_EACH = 3  # a user's socket and its way on, and one for a pipe
FILES_SPARE = 1000
HOLD_WAIT_S = 120.0  # to open them all
SETTLE_S = 6.0  # idle is what nobody has used for a while
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


def run_idle(board: Board, contestants: Sequence[Contestant], count: int) -> None:
    """Hold that many idle connections through every tunnel in turn. Raises BenchError."""
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


def _measure(board: Board, contestant: Contestant, count: int) -> Figures:
    """One contestant, started afresh: memory of a program that has seen load before says little."""
    with Crew(board.folder) as crew:
        service: Service = Web(crew, LOOPBACK)
        entrant = start_contestant(contestant, Scene(crew, LOOPBACK, LOOPBACK, service))
        rest = _memory_kib(entrant)
        _, p50_empty = wrk(entrant.lane, board.seconds, 1)
        before = _memory_kib(entrant)
        with _held(entrant.lane, count) as holder:
            time.sleep(SETTLE_S)
            after = _memory_kib(entrant)
            _, p50_idle = wrk(entrant.lane, board.seconds, 1)
            lost = _let_go(holder)
    figures = {f"rest_{role}": kib / MIB_KIB for role, kib in rest.items()}
    figures |= {f"idle_{role}": (after[role] - before[role]) / count for role in rest}
    return figures | {
        "idle_lost": lost,
        "p50_empty": p50_empty,
        "p50_idle": p50_idle,
        "p50_ratio": p50_idle / p50_empty,
    }


def _memory_kib(entrant: Entrant) -> dict[str, int]:
    entrant.lane.check_alive()
    kib = {"server": 0, "client": 0}
    for proc in entrant.job.procs:
        kib[proc.role] += proc.pss_kib()
    return kib


@contextmanager
def _held(lane: Lane, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """Idle users, from when all of them are connected until `_let_go`. Raises BenchError."""
    argv = [sys.executable, USER, "hold", lane.ip, lane.port, count]
    pipe = subprocess.PIPE
    with lane.host.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as holder:
        try:
            _answer(holder, HOLD_WAIT_S)
            yield holder
        finally:
            holder.kill()


def _let_go(holder: subprocess.Popen[bytes]) -> float:
    """Close the users' connections; how many were closed before."""
    if holder.stdin:
        holder.stdin.close()
    return float(_answer(holder, KILL_WAIT_S)["lost"])


def _answer(holder: subprocess.Popen[bytes], timeout_s: float) -> dict[str, float]:
    """One line of user.py's. Raises BenchError with its error, or when it takes too long."""
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
