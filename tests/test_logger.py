"""Log lines: both formats, colours, and how warnings that many users cause are limited."""

from __future__ import annotations

import io
import json
import logging
import time
from typing import TYPE_CHECKING

import pytest

from gnar_lib import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT_S = 60.0


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _handlers_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unset the variables of this shell that change the log; restore the loggers afterwards."""
    for name in ("DEBUG", "GNAR_LOG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger("gnar")
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


def logged(stream: io.StringIO) -> list[str]:
    """Return the lines of a stream without their times."""
    return [line[20:] for line in stream.getvalue().splitlines()]


def test_warnings_and_errors_are_in_colour_on_a_terminal_alone() -> None:
    for stream, expected in (
        (Terminal(), ["INFO  x one", "\033[33mWARN \033[0m x two", "\033[31mERROR\033[0m x three"]),
        (io.StringIO(), ["INFO  x one", "WARN  x two", "ERROR x three"]),
    ):
        logger.setup(stream)
        log = logger.get("x")
        log.info("one")
        log.warning("two")
        log.error("three")
        assert logged(stream) == expected


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    logger.setup(stream)
    logger.get("x").warning("plain")
    assert logged(stream) == ["WARN  x plain"]


def test_a_defect_is_one_line_of_json_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNAR_LOG", "json")
    stream = io.StringIO()
    logger.setup(stream)
    try:
        raise ValueError("odd")
    except ValueError:
        logger.get("x").exception("failed")
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["level"], fields["prefix"], fields["message"]) == ("error", "x", "failed")
    assert fields["traceback"].startswith("Traceback")
    assert fields["traceback"].endswith("ValueError: odd")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list with the time that `time.monotonic` tells."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_burst_is_logged_as_it_begins_once_in_each_period_and_at_its_end(clock: list[float]) -> None:
    stream = io.StringIO()
    logger.setup(stream)
    log, burst = logger.get("x"), logger.Burst(REPORT_S)
    for _ in range(5):
        burst.warning(log, "refused %s", "one")
    clock[0] += REPORT_S
    for _ in range(3):
        burst.warning(log, "refused %s", "another")
    burst.end(log)
    burst.end(log)
    burst.warning(log, "refused %s", "a third")
    burst.end(log)
    assert logged(stream) == [
        "WARN  x refused one",
        "WARN  x refused another (4 more)",
        "INFO  x works again (2 more failed)",
        "WARN  x refused a third",
        "INFO  x works again",
    ]


def test_a_burst_may_log_several_lines_of_each_period(clock: list[float]) -> None:
    stream = io.StringIO()
    logger.setup(stream)
    log, burst = logger.get("x"), logger.Burst(REPORT_S, lines=2)
    for period in range(2):
        for number in range(4):
            burst.warning(log, "%d.%d", period, number)
        clock[0] += REPORT_S
    assert logged(stream) == ["WARN  x 0.0", "WARN  x 0.1", "WARN  x 1.0 (2 more)", "WARN  x 1.1"]
