"""Draws the bar chart as SVG, one panel per metric, in colours for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from bench.metrics import Metric
from bench.report import sections
from bench.results import Results, Row, show

WIDTH, MARGIN = 760, 16
NAMES_WIDTH, FIGURES_WIDTH = 150, 110  # beside the bars
BAR, GAP = 16, 6
HEAD = 34  # above each panel's bars
TEXT, QUIET, OURS, OTHERS = "#7a7f87", "#8a8f98", "#2f8fd8", "#9aa0a8"
FONT = "font-family='system-ui, sans-serif'"


def draw(results: Results) -> str:
    """Return the chart."""
    parts, y = [], MARGIN
    for section, columns in sections(results):
        parts.append(_text(MARGIN, y + 16, section, font_size=17, font_weight="bold"))
        y += 24
        for metric in columns:
            rows = [(name, row) for name, row in results.rows.items() if _is_tried(row, metric)]
            parts += _panel(metric, rows, y)
            y += HEAD + len(rows) * (BAR + GAP) + GAP
        y += MARGIN
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y}' viewBox='0 0 {WIDTH} {y}'"
        f" role='img' {FONT}>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _is_tried(row: Row, metric: Metric) -> bool:
    """Tell whether a contestant has a figure of this metric, or failed."""
    return metric.key in row.values or metric.key in row.failures


def _panel(metric: Metric, rows: Sequence[tuple[str, Row]], y: int) -> Iterator[str]:
    """Yield the elements of one metric's panel, whose top is at `y`."""
    unit = f", {metric.unit}" if metric.unit else ""
    yield _text(MARGIN, y + 20, f"{metric.title}{unit}", font_size=14, font_weight="bold")
    yield _text(WIDTH - MARGIN, y + 20, metric.best_first, font_size=12, fill=QUIET, text_anchor="end")
    top = max((max(row.values.get(metric.key, [0])) for _, row in rows), default=0)
    room = WIDTH - 2 * MARGIN - NAMES_WIDTH - FIGURES_WIDTH
    for number, (name, row) in enumerate(rows):
        yield from _bar(metric, name, row, y + HEAD + number * (BAR + GAP), room / top if top > 0 else 0)


def _bar(metric: Metric, name: str, row: Row, y: int, scale: float) -> Iterator[str]:
    """Yield the elements of one contestant: a bar for the figure, and a line for the range of the rounds."""
    x, middle = MARGIN + NAMES_WIDTH, y + BAR / 2
    ours = name.startswith("gnar")
    yield _text(x - 8, y + 13, name, text_anchor="end", font_weight="bold" if ours else "normal")
    figure, values = row.figure(metric.key), row.values.get(metric.key, [])
    if figure is None:
        yield _text(x + 4, y + 13, "failed", fill=QUIET, font_style="italic")
        return
    width, low, high = (max(0.0, number) * scale for number in (figure, min(values), max(values)))
    colour = OURS if ours else OTHERS
    yield f"<rect x='{x}' y='{y}' width='{width:.1f}' height='{BAR}' rx='2' fill='{colour}'/>"
    if high > low:
        yield f"<path d='M{x + low:.1f} {middle}H{x + high:.1f}' stroke='{TEXT}' stroke-width='2'/>"
    yield _text(x + max(width, high) + 6, y + 13, show(figure))


def _text(x: float, y: float, words: str, **attributes: object) -> str:
    """Return a text element; the attributes are SVG's, with underscores for hyphens."""
    merged = {"font_size": 13, "fill": TEXT, **attributes}
    written = " ".join(f"{key.replace('_', '-')}='{value}'" for key, value in merged.items())
    return f"<text x='{x:.1f}' y='{y:.1f}' {written}>{escape(words)}</text>"
