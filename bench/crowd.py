"""Measures contestants with thousands of users who come at the same moment; knows no table."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from bench.launch import Contestant
from bench.procs import LOOPBACK, Crew
from bench.rounds import Scoreboard, Site, allow_files, run_anew, start_contestant
from bench.services import TcpEcho
from bench.work import Figures, crowd

FILES_EACH = 2  # of each user in one program: the user, and the way on
FILES_SPARE = 1000
CROWD_WAIT_S = 60.0  # for all users to be served
METRICS = ("crowd_refused", "crowd_silent", "crowd_p50", "crowd_longest", "crowd_cpu")


def run_crowd(board: Scoreboard, contestants: Sequence[Contestant], count: int) -> None:
    """Measure each contestant for TCP with `count` users at once; raises BenchError."""
    allow_files(board, count * FILES_EACH + FILES_SPARE, f"{count} users")
    entrants = [contestant for contestant in contestants if "tcp" in contestant.protos]
    run_anew(board, entrants, METRICS, f"{count} users at once", functools.partial(_measure, board, count))


def _measure(board: Scoreboard, count: int, contestant: Contestant) -> Figures:
    """Start one contestant, and let the crowd come."""
    with Crew(board.folder) as crew:
        site = Site(crew, LOOPBACK, LOOPBACK, TcpEcho(crew, LOOPBACK))
        route = start_contestant(contestant, site).route
        with route.usage() as usage:
            told = crowd(route, count, CROWD_WAIT_S)
        route.check_alive()
    figures = {
        "crowd_refused": told["refused"] + told["wrong"],
        "crowd_silent": told["silent"],
        "crowd_p50": told["p50_ms"],
        "crowd_longest": told["longest_ms"],
    }
    return figures | ({"crowd_cpu": usage.cpu_seconds * 1e6 / count} if route.procs else {})
