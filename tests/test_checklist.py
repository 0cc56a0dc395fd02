"""The lines of a check: aligned, in colour on a terminal alone, and not too many of one kind."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import gevent.event

from gnar_lib.checklist import MAX_TEXT, MOST_LINES, Budget, Checklist, Verdict, try_hooks
from gnar_lib.config import HookConfig, Secret

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


def test_a_budget_is_never_exceeded() -> None:
    assert Budget(10.0).of(3.0) == 3.0
    assert 1.0 < Budget(2.0).of(3.0) <= 2.0
    assert Budget(-1.0).of(3.0) == 0.0


def hook(url: str = "", command: str = "") -> HookConfig:
    return HookConfig(("stopping",), url=Secret(url), command=(command,) if command else ())


def hook_lines(capsys: pytest.CaptureFixture[str], *hooks: HookConfig, timeout_s: float = 20.0) -> list[str]:
    try_hooks(Checklist(), hooks, timeout_s)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_hooks_whose_host_or_program_is_missing_are_wrong_and_nothing_is_posted_or_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    said = hook_lines(
        capsys,
        hook("http://[::1]:1/s3cret"),
        hook("https://nosuchname.invalid/s3cret"),
        hook(command=str(program)),
        hook(command=sys.executable),
    )
    assert said[0] == "ok hook [::1]:1 has an address; nothing is posted"
    assert said[1].startswith("wrong hook nosuchname.invalid: cannot resolve 'nosuchname.invalid': ")
    assert said[2] == f"wrong hook program: there is no program {program} that this user may run"
    assert said[3] == f"ok hook {Path(sys.executable).name} is there; it is not run"
    assert hook_lines(capsys) == []


def test_hook_of_https_is_wrong_where_python_has_no_tls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ssl", None)
    said = hook_lines(capsys, hook("HTTPS://[::1]/"), hook("http://[::1]/"))
    assert [line.split()[0] for line in said] == ["wrong", "ok"]


def test_hosts_of_hooks_are_looked_up_side_by_side_and_for_a_bounded_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnar_lib.checklist.resolve", lambda *_: gevent.event.Event().wait())
    said = hook_lines(capsys, *[hook(f"http://host{number}/") for number in range(50)], timeout_s=0.1)
    assert said[0] == "wrong hook host0: looking the name up took longer than 0.1 s"
    assert said[-1] == "wrong hook further ones: 30 wrong"
