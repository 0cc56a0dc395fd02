"""One run of a command: what it gets, and what it cannot get hold of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import gevent.os
import pytest

from gnar_lib import events
from gnar_lib.config import HookConfig
from gnar_lib.events import Side, Stopping
from gnar_lib.hooks import process
from gnar_lib.hooks.command import MOST_AT_ONCE, Command
from gnar_lib.hooks.message import Message
from gnar_lib.hooks.outcome import Outcome
from tests.helpers.loop import wait_until

MESSAGE = Message.of(Stopping(Side.SERVER), 1790000000.25, "an-id", "server", "vps")


def run(*words: str, timeout_s: float = 20.0, message: Message = MESSAGE) -> Outcome:
    return Command(HookConfig(("stopping",), command=words, timeout_s=timeout_s)).deliver(message)


def run_shell(script: str, *words: str, timeout_s: float = 20.0, message: Message = MESSAGE) -> Outcome:
    return run("sh", "-c", script, "sh", *words, timeout_s=timeout_s, message=message)


def test_command_gets_the_event_and_no_secret_of_gnar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GNAR_TOKEN", "GNAR_ADMIN_PASSWORD", "GNAR_HOOK_SECRET", "gnar_token"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("ANOTHER", "stays")
    assert run_shell('cat >"$1"; env >"$2"', str(tmp_path / "in"), str(tmp_path / "env")) == Outcome()
    assert json.loads((tmp_path / "in").read_text()) == MESSAGE.fields
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert env["ANOTHER"] == "stays"
    assert {key: value for key, value in env.items() if key.upper().startswith("GNAR")} == MESSAGE.variables()
    assert "s3cret" not in str(env)


def test_command_has_no_descriptor_of_this_process_and_default_signals(tmp_path: Path) -> None:
    source = f"""
import os, signal
files = [number for number in range(3, 2000) if os.path.exists(f"/proc/self/fd/{{number}}")]
ignored = [int(each) for each in signal.Signals if signal.getsignal(each) is signal.SIG_IGN]
with open({str(tmp_path / "found")!r}, "w") as file:
    print(files, ignored, os.getpgid(0) == os.getpid(), file=file)
"""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(sys.executable, "-c", source) == Outcome()
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(read)
        os.close(write)
    ignored_by_python = sorted([signal.SIGPIPE, signal.SIGXFSZ])
    assert (tmp_path / "found").read_text() == f"[] {[int(each) for each in ignored_by_python]} True\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit status 3"),
        ("kill -KILL $$", f"signal {int(signal.SIGKILL)} has ended it"),
        ("exec 0<&-; exit 0", ""),
        ("true", ""),
    ],
)
def test_outcome_is_how_the_command_has_ended(script: str, reason: str) -> None:
    assert run_shell(script) == Outcome(reason)


def test_program_that_does_not_start_is_a_reason(tmp_path: Path) -> None:
    assert run("no-such-program-anywhere") == Outcome("cannot run it: No such file or directory")
    assert run(str(tmp_path)) == Outcome("cannot run it: Permission denied")


def test_command_that_reads_nothing_of_a_long_event_is_waited_for() -> None:
    event = events.ClientGone("", "x" * 1000, broke_protocol=True, proxies=("\u00fc" * 1000,) * 100)
    long = Message.of(event, 1.0, "an-id", "server", "vps")
    assert len(long.json()) > 1 << 18
    assert run_shell("exec 0<&-; sleep 0.1", message=long) == Outcome()
    assert run_shell("sleep 60", message=long, timeout_s=0.2).reason.endswith("0.2 s, and was killed")
    assert run_shell(f"test $(wc -c) = {len(long.json()) + 1}", message=long) == Outcome()


def test_command_that_reads_all_is_not_held_up_while_the_loop_has_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a patched process: gevent's own `close` waits for the loop to turn, which it may not do for long.
    monkeypatch.setattr(os, "close", gevent.os.close)
    assert run("cat", timeout_s=3.0) == Outcome()


def test_event_of_any_length_fits_into_the_environment() -> None:
    event = events.ClientGone("", "\U0001f600" * 9999, broke_protocol=True, proxies=("\u2028" * 999,) * 999)
    variables = Message.of(event, 1.0, "an-id", "server", "vps").variables()
    assert len("".join(variables.values())) < 8000


def test_loop_turns_while_a_command_runs_and_few_run_at_once(tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = 'echo >"$1/$$.runs"; until test -e "$2"; do sleep 0.01; done'
    runs = [gevent.spawn(run_shell, script, str(tmp_path), str(go)) for _ in range(MOST_AT_ONCE + 3)]
    wait_until(lambda: len([*tmp_path.glob("*.runs")]) == MOST_AT_ONCE, "the first commands")
    assert not any(each.ready() for each in runs)
    go.touch()
    gevent.joinall(runs, timeout=20)
    assert [each.value for each in runs] == [Outcome()] * len(runs)
    assert len([*tmp_path.glob("*.runs")]) == MOST_AT_ONCE + 3


def test_command_is_killed_when_its_greenlet_ends(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    running = gevent.spawn(run_shell, 'echo $$ >"$1.part"; mv "$1.part" "$1"; exec sleep 60', str(pid))
    wait_until(pid.exists, "the command")
    running.kill()
    began_s = time.monotonic()
    wait_until(lambda: not Path("/proc", pid.read_text().strip()).exists(), "its end")
    assert time.monotonic() - began_s < 20


def test_starting_a_command_leaves_no_descriptor_and_no_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []  # other tests of this process may have left children of their own
    spawn = process._spawn

    def spawn_and_note(words: Any, env: Any, streams: Any) -> int:
        started.append(spawn(words, env, streams))
        return started[-1]

    monkeypatch.setattr(process, "_spawn", spawn_and_note)
    run_shell("true")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        run_shell("exit 1")
        run("no-such-program-anywhere")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(started) == 21
    for pid in started:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_other_children_of_this_process_are_left_to_whoever_has_started_them() -> None:
    with subprocess.Popen(["sh", "-c", "exit 7"]) as other:
        wait_until(
            lambda: Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "it"
        )
        run_shell("true")
        assert other.wait(10) == 7
