"""What came of the measurements, and the lines that show how far they are; knows no contestant."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.contestants import Kind
from bench.metrics import METRICS


@dataclass(slots=True)
class Row:
    """One contestant's figures, round by round, and why a round has none."""

    kind: Kind
    values: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def figure(self, metric: str) -> float | None:
        """The figure that is quoted: the median, or the worst where the metric says so."""
        values = self.values.get(metric)
        if not values:
            return None
        return max(values) if METRICS[metric].worst_counts else statistics.median(values)

    def spread(self, metric: str) -> float | None:
        """Half of the range, as a share of the median; none from a single round."""
        values, median = self.values.get(metric, []), self.figure(metric)
        if len(values) < 2 or not median or METRICS[metric].worst_counts:
            return None
        return (max(values) - min(values)) / 2 / abs(median)


@dataclass(slots=True)
class Results:
    """Every contestant's row, in the order of the tables."""

    rows: dict[str, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def expect(self, name: str, kind: Kind) -> None:
        """Give a contestant its place in the tables before it has any figures."""
        self.rows.setdefault(name, Row(kind))

    def add(self, name: str, kind: Kind, figures: Mapping[str, float]) -> None:
        """Keep one round's figures."""
        row = self.rows.setdefault(name, Row(kind))
        for metric, value in figures.items():
            row.values.setdefault(metric, []).append(value)

    def fail(self, name: str, kind: Kind, metrics: Sequence[str], reason: str) -> None:
        """Keep why a round has no figures for these metrics."""
        row = self.rows.setdefault(name, Row(kind))
        for metric in metrics:
            row.failures.setdefault(metric, []).append(reason)


@dataclass(slots=True)
class Progress:
    """One line on standard error for each step."""

    total: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def expect(self, steps: int) -> None:
        """Count from here: that many steps of about the same length are to come."""
        self.total, self.done, self.started = steps, 0, time.monotonic()

    def step(self, text: str, figures: Mapping[str, float] | None = None, reason: str = "") -> None:
        """Say what was done and what came of it, and how long the rest will take."""
        self.done += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * (self.total - self.done)
        where = f"[{self.done}/{self.total}, {left / 60:.0f} min left] " if self.done <= self.total else ""
        shown = ", ".join(named(metric, value) for metric, value in (figures or {}).items())
        outcome = f"FAILED: {reason}" if reason else shown
        self.say(f"{where}{text}: {outcome}")

    def say(self, text: str) -> None:
        """One line."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def named(metric: str, value: float) -> str:
    """A figure with its title and unit."""
    return f"{METRICS[metric].title} {show(value)} {METRICS[metric].unit}".rstrip()


def show(value: float) -> str:
    """A number with about three digits that count."""
    if value and abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"
