"""Starts the contestants side by side and measures them in turns, round by round; knows no table."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.launch import Contestant, Kind, Launch
from bench.procs import LOOPBACK, BenchError, Crew, Host, raise_file_limit
from bench.results import Progress, Results
from bench.services import Service, check_programs
from bench.work import Figures, Route, Work, wait_ready

MAX_FAILURES = 2  # of one work of a contestant; afterwards its other rounds are left out


@dataclass(slots=True)
class Scoreboard:
    """The settings of a run, and the results so far."""

    rounds: int
    seconds: float  # duration of each measurement
    folder: Path  # for files of the run
    results: Results = field(default_factory=Results)
    progress: Progress = field(default_factory=Progress)

    def attempt(
        self, contestant: Contestant, metrics: Sequence[str], label: str, measure: Callable[[], Figures]
    ) -> bool:
        """Measure once and keep the figures, or the reason of a failure.

        Returns False if the measurement failed; the local service may then be in a bad state.
        """
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
        """Tell whether one of the metrics has failed so often that no more rounds are measured."""
        row = self.results.rows.get(contestant.name)
        return row is not None and any(len(row.failures.get(key, ())) >= MAX_FAILURES for key in metrics)

    def fail(self, contestant: Contestant, metrics: Sequence[str], label: str, reason: str) -> None:
        """Keep and show the reason why there are no figures for these metrics."""
        self.results.fail(contestant.name, contestant.kind, metrics, reason)
        self.progress.step(f"{contestant.name}, {label}", reason=reason)

    def turns(self, entrants: Sequence[Entrant]) -> Iterator[tuple[str, Entrant]]:
        """Yield label and contestant of every turn; each round begins with another contestant."""
        for number in range(self.rounds):
            for turn in range(len(entrants)):
                yield f"round {number + 1}/{self.rounds}", entrants[(number + turn) % len(entrants)]


@dataclass(slots=True)
class Entrant:
    """A contestant that is running."""

    contestant: Contestant
    launch: Launch  # knows the programs
    route: Route  # for users


@dataclass(frozen=True, slots=True)
class Site:
    """Where contestants are started."""

    crew: Crew  # owns the programs
    near: Host  # of users and servers
    far: Host  # of clients and the local service
    service: Service


def start_contestant(contestant: Contestant, site: Site) -> Entrant:
    """Start a contestant and wait until the local service answers through it.

    Raises BenchError; then the programs of the contestant are ended.
    """
    if lack := contestant.lacks():
        raise BenchError(lack)
    service = site.service
    launch = Launch(site.crew, site.near, site.far, service.proto, service.port)
    try:
        contestant.start(launch)
        route = Route(site.near, launch.near.ip, launch.port, launch.procs, service)
        wait_ready(route)
    except BenchError:
        site.crew.stop(launch.procs)
        raise
    return Entrant(contestant, launch, route)


def start_all(
    board: Scoreboard, site: Site, contestants: Sequence[Contestant], metrics: Sequence[str]
) -> list[Entrant]:
    """Start the contestants that know the service's protocol; for one that does not start, `metrics` fail."""
    entrants = []
    for contestant in contestants:
        if site.service.proto not in contestant.protos:
            continue
        try:
            entrants.append(start_contestant(contestant, site))
        except BenchError as exc:
            board.fail(contestant, metrics, "start", str(exc))
            site.service.restart()
    return entrants


def allow_files(board: Scoreboard, needed: int, what: str) -> None:
    """Allow the programs that will be started so many open files; the report says if that is not possible."""
    allowed = raise_file_limit(needed)
    if allowed < needed:
        note = f"only {allowed} open files are allowed, and {what} want {needed}: ulimit -n"
        board.results.notes.append(note)
        board.progress.say(note)


def run_anew(
    board: Scoreboard,
    contestants: Sequence[Contestant],
    metrics: Sequence[str],
    label: str,
    measure: Callable[[Contestant], Figures],
) -> None:
    """Measure contestants in turns, each of which `measure` starts, since programs keep memory."""
    board.progress.expect(board.rounds * len(contestants))
    for number in range(board.rounds):
        for contestant in contestants:
            of_round = f"round {number + 1}/{board.rounds}, {label}"
            board.attempt(contestant, metrics, of_round, functools.partial(measure, contestant))


def run_loopback(board: Scoreboard, contestants: Sequence[Contestant], works: Sequence[Work]) -> None:
    """Measure all works with all contestants, one local service after the other.

    Raises BenchError when the machine lacks something; a contestant that fails does not end the run.
    """
    check_programs(*dict.fromkeys(itertools.chain.from_iterable(work.programs for work in works)))
    for _, group in itertools.groupby(works, key=lambda work: work.service):
        _run_stage(board, contestants, list(group))


def _run_stage(board: Scoreboard, contestants: Sequence[Contestant], works: Sequence[Work]) -> None:
    """Start one local service and the contestants, and measure the works in turns."""
    with Crew(board.folder) as crew:
        service = works[0].service(crew, LOOPBACK)
        metrics = [metric for work in works for metric in work.metrics]
        board.progress.say(f"starting the contestants of {', '.join(work.name for work in works)}")
        entrants = start_all(board, Site(crew, LOOPBACK, LOOPBACK, service), contestants, metrics)
        board.progress.expect(board.rounds * len(entrants) * len(works))
        for label, entrant in board.turns(entrants):
            for work in works:
                measure = functools.partial(_measure, entrant.route, work, board.seconds)
                if not board.attempt(entrant.contestant, work.metrics, f"{label}, {work.name}", measure):
                    service.restart()


def _measure(route: Route, work: Work, seconds: float) -> Figures:
    route.check_alive()
    return work.measure(route, seconds)


def run_start(board: Scoreboard, gnar: Sequence[str]) -> None:
    """Measure how much longer `gnar --version` takes than a Python that does nothing, with warm caches."""
    contestant = Contestant("gnar", Kind.DIRECT, lambda _: None)
    board.progress.expect(board.rounds)
    for number in range(board.rounds):
        label = f"round {number + 1}/{board.rounds}, start"
        board.attempt(contestant, ("start",), label, lambda: {"start": _start_seconds(gnar)})


def _start_seconds(gnar: Sequence[str]) -> float:
    return _seconds_of([*gnar, "--version"]) - _seconds_of(["python3", "-c", "pass"])


def _seconds_of(argv: Sequence[str]) -> float:
    """Return how long a program runs, once the system has its files in memory."""
    LOOPBACK.run(argv)
    start = time.perf_counter()
    LOOPBACK.run(argv)
    return time.perf_counter() - start
