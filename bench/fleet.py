"""Measures a server of gnar's with thousands of idle clients; knows no table."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.contestants import start_gnar_server
from bench.launch import TLS, Command, Contestant, Launch
from bench.procs import KILL_WAIT_S, LOOPBACK, BenchError, Crew, Proc, answer_of
from bench.rounds import Scoreboard, allow_files, run_anew
from bench.work import Figures

ROOT = Path(__file__).resolve().parent.parent  # where the program that plays clients finds gnar
FILES_EACH = 8  # of each client at one end: with --no-multiplex, data connections wait besides
FILES_SPARE = 1000
LOG_IN_S_EACH = 0.05  # how long each client's login may take, if one comes after the other
LOG_IN_SPARE_S = 30.0
SETTLE_S = 6.0  # after which nothing is left to do but heartbeats
LEAST_IDLE_S = 10.0  # two heartbeats of each client
SERVICE_PORT = 9  # of the service that nobody uses
METRICS = ("fleet_rate", "fleet_per_cpu", "fleet_share", "fleet_each", "fleet_lost")


def run_clients(board: Scoreboard, contestants: Sequence[Contestant], count: int) -> None:
    """Measure the server of each tunnel of gnar's with `count` clients, who have a proxy each."""
    allow_files(board, count * FILES_EACH + FILES_SPARE, f"{count} clients")
    tunnels = [contestant for contestant in contestants if contestant.gnar is not None]
    run_anew(board, tunnels, METRICS, f"{count} clients", functools.partial(_measure, board, count))


def _measure(board: Scoreboard, count: int, contestant: Contestant) -> Figures:
    """Start a server and its clients, and measure the server; raises BenchError."""
    gnar = contestant.gnar
    lack = contestant.lacks()
    if gnar is None or lack:
        raise BenchError(lack or "no tunnel of gnar's")
    with Crew(board.folder) as crew:
        launch = Launch(crew, LOOPBACK, LOOPBACK, "tcp", SERVICE_PORT)
        control = start_gnar_server(launch, gnar)
        (server,) = launch.procs
        before_s, before_kib = sum(server.cpu_seconds()), server.pss_kib()
        clear = () if gnar.encrypted else (TLS, "off")  # which this gnar's own code knows
        with clients_of(control, count, (*gnar.flags, *clear)) as (players, seconds):
            figures = {
                "fleet_rate": count / seconds,
                "fleet_per_cpu": count / (sum(server.cpu_seconds()) - before_s),
            }
            time.sleep(SETTLE_S)
            figures["fleet_each"] = (server.pss_kib() - before_kib) / count
            figures["fleet_share"] = 100 * _share_of_a_core(server, max(board.seconds, LEAST_IDLE_S))
            if players.stdin:
                players.stdin.close()
            return figures | {"fleet_lost": answer_of(players, KILL_WAIT_S)["lost"]}


def _share_of_a_core(program: Proc, seconds: float) -> float:
    """Return the share of a core that a program takes in the next seconds."""
    before_s, start_s = sum(program.cpu_seconds()), time.monotonic()
    time.sleep(seconds)
    return (sum(program.cpu_seconds()) - before_s) / (time.monotonic() - start_s)


@contextmanager
def clients_of(control: int, count: int, flags: Command) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Play `count` clients of the server at a control port, each with a proxy; raises BenchError.

    Yields the program that plays them, and the seconds that all logins have taken.
    """
    client = ["-s", f"127.0.0.1:{control}", "-l", SERVICE_PORT, *flags]
    argv = [sys.executable, "-m", "bench.players", count, *client]
    pipe = subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GNAR_LOG_LEVEL": "error"}
    with LOOPBACK.popen(
        argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
    ) as players:
        try:
            opened = answer_of(players, count * LOG_IN_S_EACH + LOG_IN_SPARE_S)
            yield players, opened["seconds"]
        finally:
            players.kill()
