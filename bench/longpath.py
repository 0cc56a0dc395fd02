"""Measures what users notice of a long path between two hosts; knows no table."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.launch import Contestant, Kind
from bench.procs import BenchError, Crew, Host
from bench.rounds import Scoreboard, Site, start_all
from bench.services import Iperf, Service, Web, check_programs
from bench.wan import wan
from bench.work import SLACK_S, Figures, Route, ask_user, iperf3, whole_seconds

FULL_LINK_MBIT = 50
BULK_S = 5.0  # least duration: TCP takes a second or two to reach its rate
TARGETS_MS = 50  # the round trip for which gnar has targets
FIRST_USERS = 5  # users one after the other, in each round
TOGETHER_USERS = 20  # users at the same time
KEPT_USERS, SHORT_USERS = 32, 4  # side by side on a path that loses packets
LOSSY_S = 10.0  # least duration: a few hundred short connections, of which one in a hundred counts
WAITS_S = 30.0  # deadline of user.py


def run_long_path(
    board: Scoreboard, contestants: Sequence[Contestant], stages: Sequence[Stage], round_trip_ms: float
) -> None:
    """Measure every tunnel over links with that round trip; raises BenchError if no link can be made."""
    check_programs("nginx", "iperf3")
    if round_trip_ms != TARGETS_MS:
        board.results.notes.append(f"gnar's targets for a long path are for one of {TARGETS_MS} ms")
    tunnels = [contestant for contestant in contestants if contestant.kind is not Kind.RELAY]
    for stage in stages:
        with wan(round_trip_ms / 2, stage.loss_percent, stage.rate_mbit) as (near, far):
            _run_stage(board, tunnels, stage, (near, far))


@dataclass(frozen=True, slots=True)
class Stage:
    """The measurements with one local service on one link."""

    title: str
    service: Callable[[Crew, Host], Service]
    rate_mbit: float  # of the link; 0 is no limit
    works: tuple[tuple[tuple[str, ...], Callable[[Route, float], Figures]], ...]  # metrics, and what measures
    loss_percent: float = 0  # of the packets, each way


def _run_stage(
    board: Scoreboard, contestants: Sequence[Contestant], stage: Stage, hosts: tuple[Host, Host]
) -> None:
    """Start the contestants between two hosts, and measure them in turns."""
    with Crew(board.folder) as crew:
        board.progress.say(f"long path: starting the contestants of {stage.title}")
        service = stage.service(crew, hosts[1])
        metrics = [metric for keys, _ in stage.works for metric in keys]
        entrants = start_all(board, Site(crew, *hosts, service), contestants, metrics)
        board.progress.expect(board.rounds * len(entrants) * len(stage.works))
        for label, entrant in board.turns(entrants):
            for keys, work in stage.works:
                measure = functools.partial(work, entrant.route, board.seconds)
                if not board.attempt(entrant.contestant, keys, f"{label}, {stage.title}", measure):
                    service.restart()


def _median_ms(route: Route, what: str) -> float:
    """Return the median of the times that user.py measures; raises BenchError."""
    times = ask_user(route, what, FIRST_USERS, timeout=WAITS_S)["ms"]
    if not isinstance(times, list):
        raise BenchError(f"user.py {what} gave no list of times")
    return statistics.median(map(float, times))


def first(route: Route, _: float) -> Figures:
    """Measure the first byte of users who come one after the other."""
    return {"first": _median_ms(route, "first")}


def together(route: Route, _: float) -> Figures:
    """Measure the first bytes of users who come at the same time."""
    answer = ask_user(route, "together", TOGETHER_USERS, timeout=WAITS_S)
    return {"together": float(str(answer["ms"]))}


def busy(route: Route, _: float) -> Figures:
    """Measure the first byte of users who come while another user downloads."""
    return {"busy": _median_ms(route, "busy")}


def full(route: Route, _: float) -> Figures:
    """Measure as `busy` does, on a link that the download fills."""
    return {"full": _median_ms(route, "busy")}


def bulk(route: Route, seconds: float) -> Figures:
    """Measure one bulk transfer in each direction."""
    seconds = max(seconds, BULK_S)
    figures = {}
    for direction, flags in (("long_up", ()), ("long_down", ("-R",))):
        bits_per_s, _ = iperf3(route, "-t", whole_seconds(seconds), *flags, timeout=seconds + SLACK_S)
        figures[direction] = bits_per_s / 1e6
    return figures


def lossy(percent: int) -> Stage:
    """Return the stage with users of both kinds, side by side, on a link that loses packets."""

    def work(route: Route, seconds: float) -> Figures:
        seconds = max(seconds, LOSSY_S)
        times = ask_user(route, "mixed", KEPT_USERS, SHORT_USERS, seconds, timeout=seconds + WAITS_S)
        figures = {}
        for users, of_users in times.items():
            if not isinstance(of_users, list) or not of_users:
                raise BenchError(f"user.py mixed gave no times of {users} users")
            hundredths = statistics.quantiles(of_users, n=100, method="inclusive")
            for part in (50, 99):
                figures[f"loss{percent}_{users}_p{part}"] = hundredths[part - 1]
        return figures

    metrics = tuple(f"loss{percent}_{users}_p{part}" for users in ("kept", "short") for part in (50, 99))
    return Stage(f"{percent} % loss", Web, 0, ((metrics, work),), percent)


STAGES = (
    Stage("first bytes", Web, 0, ((("first",), first), (("together",), together), (("busy",), busy))),
    Stage("a full link", Web, FULL_LINK_MBIT, ((("full",), full),)),
    Stage("bulk", Iperf, 0, ((("long_up", "long_down"), bulk),)),
)
