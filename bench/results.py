"""Keeps the figures of all rounds, and shows the progress of a run; starts no contestant."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.launch import Kind
from bench.metrics import METRICS


@dataclass(slots=True)
class Row:
    """The figures of one contestant."""

    kind: Kind
    values: dict[str, list[float]] = field(default_factory=dict)  # by metric, a figure for each round
    failures: dict[str, list[str]] = field(default_factory=dict)  # by metric, reasons why rounds failed

    def figure(self, metric: str) -> float | None:
        """Return the figure for the report: the median, or the worst round if the metric says so."""
        values = self.values.get(metric)
        if not values:
            return None
        return max(values) if METRICS[metric].worst_counts else statistics.median(values)

    def spread(self, metric: str) -> float | None:
        """Return half of the range as a share of the median; None for a single round."""
        values, median = self.values.get(metric, []), self.figure(metric)
        if len(values) < 2 or not median or METRICS[metric].worst_counts:
            return None
        return (max(values) - min(values)) / 2 / abs(median)


@dataclass(slots=True)
class Results:
    """The figures of a run."""

    rows: dict[str, Row] = field(default_factory=dict)  # by contestant, in the order of the tables
    notes: list[str] = field(default_factory=list)  # remarks for the reader of the report

    def expect(self, name: str, kind: Kind) -> None:
        """Add an empty row, which gives the contestant its place in the tables."""
        self.rows.setdefault(name, Row(kind))

    def add(self, name: str, kind: Kind, figures: Mapping[str, float]) -> None:
        """Add the figures of one round, by metric."""
        row = self.rows.setdefault(name, Row(kind))
        for metric, value in figures.items():
            row.values.setdefault(metric, []).append(value)

    def fail(self, name: str, kind: Kind, metrics: Sequence[str], reason: str) -> None:
        """Add the reason why a round has no figures for these metrics."""
        row = self.rows.setdefault(name, Row(kind))
        for metric in metrics:
            row.failures.setdefault(metric, []).append(reason)


@dataclass(slots=True)
class Progress:
    """Writes one line to standard error for each step of a run."""

    total: int = 0  # steps that were announced by `expect`
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def expect(self, steps: int) -> None:
        """Begin to count anew: `steps` steps of about the same duration will follow."""
        self.total, self.done, self.started = steps, 0, time.monotonic()

    def step(self, text: str, figures: Mapping[str, float] | None = None, reason: str = "") -> None:
        """Show the name of a step, its figures or the reason of its failure, and the time that is left."""
        self.done += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * (self.total - self.done)
        where = f"[{self.done}/{self.total}, {left / 60:.0f} min left] " if self.done <= self.total else ""
        shown = ", ".join(with_title_and_unit(metric, value) for metric, value in (figures or {}).items())
        outcome = f"FAILED: {reason}" if reason else shown
        self.say(f"{where}{text}: {outcome}")

    def say(self, text: str) -> None:
        """Write one line."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def with_title_and_unit(metric: str, value: float) -> str:
    """Return a figure as text with the metric's title and unit."""
    return f"{METRICS[metric].title} {show(value)} {METRICS[metric].unit}".rstrip()


def show(value: float) -> str:
    """Return a number as text with about three significant digits."""
    if value and abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"
