"""The rounds: starts the contestants side by side and lets them take turns; knows no table."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.contestants import Contestant, Job, Kind
from bench.procs import LOOPBACK, BenchError, Crew, Host
from bench.results import Progress, Results
from bench.services import Service, check_programs
from bench.work import Figures, Lane, Work, wait_ready

MAX_FAILURES = 2  # of one kind of work; the rest of a contestant's rounds would fail as well


@dataclass(slots=True)
class Board:
    """Where rounds are written down as they happen, and what the command line says about all of them."""

    rounds: int
    seconds: float  # of each measurement
    folder: Path
    results: Results = field(default_factory=Results)
    progress: Progress = field(default_factory=Progress)

    def attempt(
        self, contestant: Contestant, metrics: Sequence[str], label: str, measure: Callable[[], Figures]
    ) -> bool:
        """Measure once; a failure is written down with its reason, and the run goes on."""
        text = f"{contestant.name}, {label}"
        if self.has_failed(contestant, metrics):
            self.progress.step(text, reason="as before, so left out")
            return True
        try:
            figures = measure()
        except BenchError as exc:
            self.fail(contestant, metrics, label, str(exc))
            return False
        self.results.add(contestant.name, contestant.kind, figures)
        self.progress.step(text, figures)
        return True

    def has_failed(self, contestant: Contestant, metrics: Sequence[str]) -> bool:
        """Whether more rounds of this are a waste of time."""
        row = self.results.rows.get(contestant.name)
        return row is not None and any(len(row.failures.get(key, ())) >= MAX_FAILURES for key in metrics)

    def fail(self, contestant: Contestant, metrics: Sequence[str], label: str, reason: str) -> None:
        """Write down why there are no figures."""
        self.results.fail(contestant.name, contestant.kind, metrics, reason)
        self.progress.step(f"{contestant.name}, {label}", reason=reason)

    def turns(self, entrants: Sequence[Entrant]) -> Iterator[tuple[str, Entrant]]:
        """Every round's label and contestant; nobody always follows the same one."""
        for number in range(self.rounds):
            for turn in range(len(entrants)):
                yield f"round {number + 1}/{self.rounds}", entrants[(number + turn) % len(entrants)]


@dataclass(slots=True)
class Entrant:
    """A contestant that is running, with what it had to start."""

    contestant: Contestant
    job: Job
    lane: Lane


@dataclass(frozen=True, slots=True)
class Scene:
    """Where contestants are started: the two hosts, and the local service on the far one."""

    crew: Crew
    near: Host
    far: Host
    service: Service


def start_contestant(contestant: Contestant, scene: Scene) -> Entrant:
    """Start one and wait until the service answers through it. Raises BenchError, and leaves nothing then."""
    missing = contestant.missing()
    if missing:
        raise BenchError(f"no such program: {', '.join(missing)}")
    service = scene.service
    job = Job(scene.crew, scene.near, scene.far, service.proto, service.port)
    try:
        contestant.start(job)
        lane = Lane(scene.near, job.near.ip, job.port, job.procs, service)
        wait_ready(lane)
    except BenchError:
        scene.crew.stop(job.procs)
        raise
    return Entrant(contestant, job, lane)


def start_all(
    board: Board, scene: Scene, contestants: Sequence[Contestant], metrics: Sequence[str]
) -> list[Entrant]:
    """Start those that can be started; for the others these metrics fail."""
    entrants = []
    for contestant in contestants:
        if scene.service.proto not in contestant.protos:
            continue
        try:
            entrants.append(start_contestant(contestant, scene))
        except BenchError as exc:
            board.fail(contestant, metrics, "start", str(exc))
            scene.service.restart()
    return entrants


def run_loopback(board: Board, contestants: Sequence[Contestant], works: Sequence[Work]) -> None:
    """Do all works with all contestants, one local service after the other.

    Raises BenchError for what is wrong with the machine rather than with a contestant.
    """
    check_programs(*dict.fromkeys(itertools.chain.from_iterable(work.programs for work in works)))
    for _, group in itertools.groupby(works, key=lambda work: work.service):
        _run_stage(board, contestants, list(group))


def _run_stage(board: Board, contestants: Sequence[Contestant], works: Sequence[Work]) -> None:
    with Crew(board.folder) as crew:
        service = works[0].service(crew, LOOPBACK)
        metrics = [metric for work in works for metric in work.metrics]
        board.progress.say(f"starting the contestants of {', '.join(work.name for work in works)}")
        entrants = start_all(board, Scene(crew, LOOPBACK, LOOPBACK, service), contestants, metrics)
        board.progress.expect(board.rounds * len(entrants) * len(works))
        for label, entrant in board.turns(entrants):
            for work in works:
                measure = functools.partial(_measure, entrant.lane, work, board.seconds)
                if not board.attempt(entrant.contestant, work.metrics, f"{label}, {work.name}", measure):
                    service.restart()


def _measure(lane: Lane, work: Work, seconds: float) -> Figures:
    lane.check_alive()
    return work.measure(lane, seconds)


def run_start(board: Board, gnar: Sequence[str]) -> None:
    """How much longer `gnar --version` takes than a Python that does nothing, warm."""
    contestant = Contestant("gnar", Kind.DIRECT, lambda _: None)
    board.progress.expect(board.rounds)
    for number in range(board.rounds):
        label = f"round {number + 1}/{board.rounds}, start"
        board.attempt(contestant, ("start",), label, lambda: {"start": _start_seconds(gnar)})


def _start_seconds(gnar: Sequence[str]) -> float:
    return _seconds_of([*gnar, "--version"]) - _seconds_of(["python3", "-c", "pass"])


def _seconds_of(argv: Sequence[str]) -> float:
    LOOPBACK.run(argv)  # warm
    start = time.perf_counter()
    LOOPBACK.run(argv)
    return time.perf_counter() - start
