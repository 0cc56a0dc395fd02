"""The long path: the contestants between two hosts, and what a user there waits for; knows no table."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.contestants import Contestant, Kind
from bench.procs import BenchError, Crew, Host
from bench.rounds import Board, Scene, start_all
from bench.services import Iperf, Service, Web, check_programs
from bench.wan import wan
from bench.work import SLACK_S, Figures, Lane, ask_user, iperf3, whole

FULL_LINK_MBIT = 50
BULK_S = 5.0  # at least: a stream takes a second or two to find its rate
TARGETS_MS = 50  # the round trip that gnar's targets are for
FIRST_USERS = 5  # one after the other, in each round
TOGETHER_USERS = 20
WAITS_S = 30.0  # what user.py may take in all


def run_long_path(board: Board, contestants: Sequence[Contestant], round_trip_ms: float) -> None:
    """Measure every tunnel over a link with that round trip. Raises BenchError where there can be none."""
    check_programs("nginx", "iperf3")
    if round_trip_ms != TARGETS_MS:
        board.results.notes.append(f"gnar's targets for a long path are for one of {TARGETS_MS} ms")
    tunnels = [contestant for contestant in contestants if contestant.kind is not Kind.RELAY]
    for stage in STAGES:
        with wan(round_trip_ms / 2, rate_mbit=stage.rate_mbit) as (near, far):
            _run_stage(board, tunnels, stage, (near, far))


@dataclass(frozen=True, slots=True)
class Stage:
    """What is measured with one local service on one link."""

    title: str
    service: Callable[[Crew, Host], Service]
    rate_mbit: float
    works: tuple[tuple[tuple[str, ...], Callable[[Lane, float], Figures]], ...]


def _run_stage(
    board: Board, contestants: Sequence[Contestant], stage: Stage, hosts: tuple[Host, Host]
) -> None:
    with Crew(board.folder) as crew:
        board.progress.say(f"long path: starting the contestants of {stage.title}")
        service = stage.service(crew, hosts[1])
        metrics = [metric for keys, _ in stage.works for metric in keys]
        entrants = start_all(board, Scene(crew, *hosts, service), contestants, metrics)
        board.progress.expect(board.rounds * len(entrants) * len(stage.works))
        for label, entrant in board.turns(entrants):
            for keys, work in stage.works:
                measure = functools.partial(work, entrant.lane, board.seconds)
                if not board.attempt(entrant.contestant, keys, f"{label}, {stage.title}", measure):
                    service.restart()


def _times(lane: Lane, what: str) -> float:
    times = ask_user(lane, what, FIRST_USERS, timeout=WAITS_S)["ms"]
    if not isinstance(times, list):
        raise BenchError(f"user.py {what} gave no list of times")
    return statistics.median(map(float, times))


def first(lane: Lane, _: float) -> Figures:
    """Users who come alone."""
    return {"first": _times(lane, "first")}


def together(lane: Lane, _: float) -> Figures:
    """Users who come in the same moment."""
    answer = ask_user(lane, "together", TOGETHER_USERS, timeout=WAITS_S)
    return {"together": float(str(answer["ms"]))}


def busy(lane: Lane, _: float) -> Figures:
    """Users who come while another one downloads."""
    return {"busy": _times(lane, "busy")}


def full(lane: Lane, _: float) -> Figures:
    """The same on a link that the download fills."""
    return {"full": _times(lane, "busy")}


def bulk(lane: Lane, seconds: float) -> Figures:
    """One stream each way."""
    seconds = max(seconds, BULK_S)
    figures = {}
    for direction, flags in (("long_up", ()), ("long_down", ("-R",))):
        bits_per_s, _ = iperf3(lane, "-t", whole(seconds), *flags, timeout=seconds + SLACK_S)
        figures[direction] = bits_per_s / 1e6
    return figures


STAGES = (
    Stage("first bytes", Web, 0, ((("first",), first), (("together",), together), (("busy",), busy))),
    Stage("a full link", Web, FULL_LINK_MBIT, ((("full",), full),)),
    Stage("bulk", Iperf, 0, ((("long_up", "long_down"), bulk),)),
)
