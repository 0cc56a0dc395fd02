"""The lines of a check: aligned, in colour on a terminal alone, and not too many of one kind."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from gnar_lib.checklist import MAX_TEXT, MOST_LINES, Budget, Checklist, Verdict, milliseconds

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def tell_all(checklist: Checklist) -> None:
    checklist.ok("name", "one")
    checklist.warn("round trip", "two")
    checklist.skip("descriptors", "three")
    assert checklist.status == 0
    checklist.wrong("token", "four")
    assert checklist.status == 1


def test_lines_are_aligned_and_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell_all(Checklist())
    assert capsys.readouterr().out.splitlines() == [
        "ok     name         one",
        "warn   round trip   two",
        "skip   descriptors  three",
        "wrong  token        four",
    ]


def test_verdicts_are_in_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for environment, colour in (({}, "\033[31m"), ({"NO_COLOR": "1"}, "")):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        monkeypatch.setattr("sys.stdout", stream)
        Checklist().wrong("token", "four")
        end = "\033[0m" if colour else ""
        assert stream.getvalue() == f"{colour}wrong{end}  token        four\n"


def test_each_line_is_an_object_if_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    tell_all(Checklist(as_json=True))
    first, *_ = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {"verdict": "ok", "check": "name", "text": "one"}


def test_of_many_things_the_last_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    checklist = Checklist()
    for number in range(MOST_LINES + 30):
        verdict = Verdict.WRONG if number == MOST_LINES + 9 else Verdict.OK
        checklist.tell_one_of_many(verdict, "port", str(number))
    assert checklist.status == 0
    checklist.tell_rest("port")
    checklist.tell_rest("port")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == "wrong  port         further ones: 29 ok, 1 wrong"
    assert checklist.status == 1


def test_text_of_a_peer_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    Checklist().wrong("port", "\x1b[31m\n" + "x" * 70_000)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said[:-1].isprintable()
    assert len(said) < MAX_TEXT + 100


def test_a_budget_is_never_exceeded_and_times_can_be_read() -> None:
    assert Budget(10.0).of(3.0) == 3.0
    assert 1.0 < Budget(2.0).of(3.0) <= 2.0
    assert Budget(-1.0).of(3.0) == 0.0
    assert [milliseconds(each) for each in (0.000123, 0.0123, 0.25, 1.26)] == [
        "0.123 ms",
        "12.3 ms",
        "250 ms",
        "1.3 s",
    ]
