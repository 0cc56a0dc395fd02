"""Makes the report of tables, ratios and targets, as text and as JSON; measures nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.metrics import COMPARISONS, METRICS, TARGETS, Metric, Target
from bench.results import Results, Row, show

JSON_FORMAT = 1
VERSION_ARGUMENTS = {
    "haproxy": "-v",
    "socat": "-V",
    "nginx": "-v",
    "iperf3": "--version",
    "wrk": "-v",
    "rathole": "--version",
    "bore": "--version",
    "frps": "--version",
    "chisel": "--version",
}


def sections(results: Results) -> Iterator[tuple[str, list[Metric]]]:
    """Yield title and columns of each table that has figures or failures."""
    tried = {key for row in results.rows.values() for key in (*row.values, *row.failures)}
    for section in dict.fromkeys(metric.section for metric in METRICS.values()):
        columns = [metric for key, metric in METRICS.items() if metric.section == section and key in tried]
        if columns:
            yield section, columns


def cell(row: Row, metric: Metric) -> str:
    """Return figure and spread as text; "failed" for no figure, and "!" behind a figure that lacks rounds."""
    figure, spread = row.figure(metric.key), row.spread(metric.key)
    if figure is None:
        return "failed" if metric.key in row.failures else ""
    mark = "!" if metric.key in row.failures else ""
    return show(figure) + (f" ±{spread:.0%}" if spread is not None else "") + mark


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns; the first line is the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def figures_table(results: Results, columns: Sequence[Metric]) -> str:
    """Return the table of one section's figures."""
    head = [f"{metric.title}{', ' + metric.unit if metric.unit else ''}" for metric in columns]
    lines = [["", *head]]
    for name, row in results.rows.items():
        cells = [cell(row, metric) for metric in columns]
        if any(cells):
            lines.append([name, *cells])
    return table(lines)


def best(results: Results, names: Sequence[str], metric: Metric) -> float | None:
    """Return the best figure of several contestants; None if none of them has one."""
    rows = [results.rows[name] for name in names if name in results.rows]
    figures = [figure for row in rows if (figure := row.figure(metric.key)) is not None]
    if not figures:
        return None
    return max(figures) if metric.more_is_better else min(figures)


def ratio(results: Results, name: str, against: Sequence[str], metric: Metric) -> float | None:
    """Return a contestant's figure divided by the best of the others; None if one of the two is missing."""
    own = results.rows[name].figure(metric.key) if name in results.rows else None
    other = best(results, against, metric)
    return own / other if own is not None and other else None


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """A row of the table of ratios."""

    name: str  # of the contestant
    against: tuple[str, ...]  # the yardsticks
    figures: dict[str, float]  # ratio by metric


def ratios(results: Results, section: str, columns: Sequence[Metric]) -> list[Ratio]:
    """Return the ratios of every contestant of a section to the yardsticks of its kind."""
    found = []
    for name, row in results.rows.items():
        for against in COMPARISONS.get(section, {}).get(row.kind, ()):
            pairs = {metric.key: ratio(results, name, against, metric) for metric in columns}
            figures = {key: figure for key, figure in pairs.items() if figure is not None}
            if figures and name not in against:
                found.append(Ratio(name, against, figures))
    return found


def ratios_table(rows: Sequence[Ratio], columns: Sequence[Metric]) -> str:
    """Return the table of ratios."""
    lines = [["ratio", *(metric.title for metric in columns)]]
    for row in rows:
        cells = [f"{row.figures[metric.key]:.2f}" if metric.key in row.figures else "" for metric in columns]
        lines.append([f"{row.name} / {versus(row.against)}", *cells])
    return table(lines)


def versus(against: Sequence[str]) -> str:
    """Return the names of a ratio's yardsticks as text."""
    return against[0] if len(against) == 1 else f"the better of {' and '.join(against)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """A target, and what the contestant reached."""

    target: Target
    figure: float | None  # None if the contestant failed

    @property
    def is_met(self) -> bool:
        """Whether the contestant has reached the target."""
        return self.figure is not None and self.target.is_met(self.figure)

    def __str__(self) -> str:
        metric, target = METRICS[self.target.metric], self.target
        subject = f"{target.contestant} / {versus(target.against)}" if target.against else target.contestant
        unit = "" if target.against else f" {metric.unit}".rstrip()
        limit = f"{'at least' if metric.more_is_better else 'at most'} {target.bound:g}{unit}"
        figure = "failed"
        if self.figure is not None:
            figure = f"{self.figure:.2f}" if target.against else show(self.figure) + unit
        return f"{'met   ' if self.is_met else 'MISSED'} {subject}: {metric.title} {figure}, {limit}"


def verdicts(results: Results) -> list[Verdict]:
    """Return a verdict for every target of which this run has figures or failures."""
    found = []
    for target in TARGETS:
        metric, row = METRICS[target.metric], results.rows.get(target.contestant)
        if row is None:
            continue
        own = row.figure(target.metric)
        figure = ratio(results, target.contestant, target.against, metric) if target.against else own
        if figure is not None:
            found.append(Verdict(target, figure))
        elif own is None and target.metric in row.failures:
            found.append(Verdict(target, None))
    return found


def failures(results: Results) -> list[str]:
    """Return one line for each reason why figures or rounds are missing."""
    found = []
    for name, row in results.rows.items():
        reasons: dict[str, list[str]] = {}
        for key, said in row.failures.items():
            reasons.setdefault(said[-1], []).append(METRICS[key].title)
        found += [f"{name}: {', '.join(titles)}: {reason}" for reason, titles in reasons.items()]
    return found


def text(results: Results) -> str:
    """Return the report for people."""
    parts = []
    for section, columns in sections(results):
        parts += [f"## {section}", figures_table(results, columns)]
        rows = ratios(results, section, columns)
        if rows:
            parts.append(ratios_table(rows, columns))
    for title, lines in (
        ("Targets", [str(verdict) for verdict in verdicts(results)]),
        ("Failed", failures(results)),
        ("Notes", results.notes),
    ):
        if lines:
            parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def as_json(results: Results, settings: Mapping[str, object]) -> str:
    """Return the report for programs, with the figures of every round."""
    whole = {
        "format": JSON_FORMAT,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "settings": settings,
        "metrics": {key: dataclasses.asdict(metric) for key, metric in METRICS.items()},
        "contestants": {name: _row_json(row) for name, row in results.rows.items()},
        "ratios": [
            {"section": section, **dataclasses.asdict(row)}
            for section, columns in sections(results)
            for row in ratios(results, section, columns)
        ],
        "targets": [
            {**dataclasses.asdict(verdict.target), "figure": verdict.figure, "met": verdict.is_met}
            for verdict in verdicts(results)
        ],
        "notes": results.notes,
    }
    return json.dumps(whole, indent=1) + "\n"


def _row_json(row: Row) -> dict[str, object]:
    return {
        "kind": row.kind.value,
        "figures": {
            key: {"figure": row.figure(key), "spread": row.spread(key), "rounds": values}
            for key, values in row.values.items()
        },
        "failures": row.failures,
    }


def machine() -> dict[str, object]:
    """Return facts about the machine on which figures depend, without the machine's name."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _first_match(r"model name\s*: (.*)", Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": platform.release(),
        "congestion_control": _first_match(r"(\w+)", Path("/proc/sys/net/ipv4/tcp_congestion_control")),
        "python": platform.python_version(),
        "programs": dict(_versions()),
    }


def _first_match(pattern: str, path: Path) -> str:
    """Return the first group of a pattern's first match in a file; empty if there is none."""
    found = re.search(pattern, path.read_text()) if path.exists() else None
    return found[1] if found else ""


def _versions() -> Iterator[tuple[str, str]]:
    """Yield name and version of each program that is on the PATH."""
    for program, argument in VERSION_ARGUMENTS.items():
        if shutil.which(program):
            done = subprocess.run(
                [program, argument], capture_output=True, text=True, timeout=10, check=False
            )
            found = re.search(r"(?<![:\d.])\d+\.\d[\w.+~-]*", done.stdout + done.stderr)
            yield program, found[0] if found else ""
