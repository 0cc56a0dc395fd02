"""Log lines: both formats, colours, and how warnings that many users cause are limited."""

from __future__ import annotations

import ast
import io
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gnar_lib import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT_S = 60.0
# Their first argument is a logger.
BURSTS = (
    "_failed",
    "_broken_off",
    "descriptors",
    "services[event.proxy]",
    "users",
    "data_conns",
    "_refused",
    "_failures",
    "_drops",
    "_strays",
    "_turned_away",
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _handlers_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unset the variable of this shell that changes the log; restore the loggers afterwards."""
    monkeypatch.delenv("NO_COLOR", raising=False)
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


def test_a_defect_is_one_line_of_json_with_its_traceback() -> None:
    stream = io.StringIO()
    logger.setup(stream, "json")
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


def test_a_cause_that_comes_and_goes_all_the_time_is_told_of_a_few_times(clock: list[float]) -> None:
    stream = io.StringIO()
    logger.setup(stream)
    log, burst = logger.get("x"), logger.Burst(REPORT_S)
    for _ in range(100):
        burst.warning(log, "down")
        burst.end(log)
        clock[0] += 0.01
    assert logged(stream) == ["WARN  x down", "INFO  x works again"] * logger.CHANGES_PER_PERIOD
    clock[0] += REPORT_S
    burst.warning(log, "down")
    burst.end(log)
    assert logged(stream)[-2:] == ["WARN  x down (95 more)", "INFO  x works again"]


def test_lines_of_one_kind_are_limited_and_their_end_is_announced(clock: list[float]) -> None:
    stream = io.StringIO()
    logger.setup(stream)
    log = logger.get("x")
    for number in range(1000):
        log.info("client %d", number)
    clock[0] += logger.PERIOD_S / 2
    log.info("another")
    clock[0] += logger.PERIOD_S / 2
    log.info("client %d", 1000)
    lines, most = logged(stream), logger.LINES_PER_PERIOD
    assert lines[: most - 1] == [f"INFO  x client {number}" for number in range(most - 1)]
    assert lines[most - 1 :] == [
        f"INFO  x client {most - 1} (such lines are only counted for the next 60 s)",
        "INFO  x another",
        f"INFO  x client 1000 ({1000 - most} more)",
    ]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["DEBUG x 1", "INFO  x 2", "WARN  x 3", "ERROR x 4"]),
        ("info", ["INFO  x 2", "WARN  x 3", "ERROR x 4"]),
        ("warning", ["WARN  x 3", "ERROR x 4"]),
        ("error", ["ERROR x 4"]),
    ],
)
def test_lines_below_the_level_are_not_logged_unless_they_were_asked_for(
    level: str, expected: list[str]
) -> None:
    stream = io.StringIO()
    logger.setup(stream, level=level)
    log = logger.get("x")
    log.debug("1")
    log.info("2")
    log.warning("3")
    log.error("4")
    logger.get("status", limited=False).info("5")
    assert logged(stream) == [*expected, "INFO  status 5"]


@pytest.mark.usefixtures("clock")
def test_a_change_of_format_and_level_holds_at_once_and_gives_no_more_lines() -> None:
    stream = io.StringIO()
    logger.setup(stream)
    log = logger.get("x")
    for _ in range(logger.LINES_PER_PERIOD):
        log.info("one")
    said = len(stream.getvalue())
    logger.change("json", "debug")
    log.info("one")
    log.debug("two")
    (line,) = stream.getvalue()[said:].splitlines()
    assert json.loads(line)["message"] == "two"
    logger.change("text", "error")
    log.warning("three")
    assert stream.getvalue()[said:].count("\n") == 1


def test_lines_that_are_asked_for_have_no_limit() -> None:
    stream = io.StringIO()
    logger.setup(stream, level="debug")
    for _ in range(2 * logger.LINES_PER_PERIOD):
        logger.get("x").debug("a user has come")
        logger.get("x", limited=False).info("status")
    assert len(logged(stream)) == 4 * logger.LINES_PER_PERIOD


def test_defects_that_a_peer_can_cause_again_and_again_are_limited() -> None:
    stream = io.StringIO()
    logger.setup(stream)
    for number in range(1000):
        try:
            raise ValueError(number)
        except ValueError:
            logger.get("x").exception("%s: a defect", number)
    assert stream.getvalue().count("Traceback") == logger.LINES_PER_PERIOD


def calls_of_loggers() -> Iterator[tuple[str, ast.Call]]:
    """Yield where gnar calls a method of a logger, and the call."""
    for path in sorted(Path(logger.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{path.name}:{node.lineno}", node


def test_every_line_has_a_limit_since_its_message_is_written_in_the_code() -> None:
    logs = {"debug", "info", "warning", "error", "critical", "exception", "log"}
    count, wrong = 0, []
    for where, call in calls_of_loggers():
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr not in logs or where.startswith("logger.py") or not call.args:
            continue  # without a message it is another method of that name
        *_, message = call.args[:2] if ast.unparse(call.func.value).endswith(BURSTS) else call.args[:1]
        count += 1
        if not (isinstance(message, ast.Constant) and isinstance(message.value, str)):
            wrong.append(where)
    assert not wrong, f"{wrong}: a message that is made of text of a peer is a kind of its own"
    assert count > 50


def test_only_answers_to_signals_have_no_limit() -> None:
    gets = [(where, call) for where, call in calls_of_loggers() if ast.unparse(call.func) == "logger.get"]
    unlimited = [where.split(":")[0] for where, call in gets if call.keywords]
    assert unlimited == ["lifecycle.py"]


# ---- text of peers -----------------------------------------------------------------------------------------

HIDDEN = {
    "colour": "\x1b[31m",
    "line": "\n",
    "C1": "\x9b31m",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "embedding": "\u202a",
    "override": "\u202e",
    "isolate": "\u2066",
    "end of isolate": "\u2069",
    "left-to-right mark": "\u200e",
    "right-to-left mark": "\u200f",
    "Arabic letter mark": "\u061c",
    "zero width": "\u200b",
    "byte order mark": "\ufeff",
    "tag": "\U000e0041",
    "surrogate": "\udc80",
}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("form", logger.FORMATS)
def test_text_of_a_peer_forges_and_hides_nothing(form: str, hidden: str) -> None:
    stream = io.StringIO()
    logger.setup(stream, form)
    log = logger.get(f"TCP [{hidden}]")
    try:
        raise ValueError(f"{hidden}2026-01-01 00:00:00 INFO  x forged")
    except ValueError:
        log.exception("defect of %s", hidden)
    said = stream.getvalue()
    assert hidden == "\n" or hidden not in said
    if form == "json":
        (line,) = said.splitlines()
        fields = json.loads(line)
        assert all(text.replace("\n", "").isprintable() for text in fields.values())
    else:
        first, *traceback = said[:-1].split("\n")
        assert first.isprintable()
        assert all(line.startswith("  ") and line.isprintable() for line in traceback)


@pytest.mark.parametrize("text", ["Grüße ☃ 雪 مرحبا", "a\ttab", "C:\\path"])
def test_text_that_can_be_read_stays_as_it_is(text: str) -> None:
    assert logger.printable(text) == text


def test_a_message_of_any_length_is_a_line_that_can_be_read() -> None:
    stream = io.StringIO()
    logger.setup(stream)
    logger.get("x").info("refused %s", "y" * 65000)
    (line,) = logged(stream)
    assert line.endswith(f"y... ({65008 - logger.MAX_MESSAGE} characters more)")
    assert len(line) < logger.MAX_MESSAGE + 100
