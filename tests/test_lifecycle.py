"""How a process ends: real processes get real signals, and write to their output how far they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gnar_lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 20.0
ROOT = Path(gnar_lib.__file__).parent.parent

PRELUDE = """
import gevent
from gevent.event import Event
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import Crew

def say(*words):
    print(*words, flush=True)
"""

# One user that finishes when it reads a line, or says that it was ended.
DRAINING = (
    PRELUDE
    + """
import sys
stopper, users, done = Stopper(), Crew("users"), Event()

def user():
    try:
        done.wait()
        say("finished")
    finally:
        say("user closed")

users.spawn(user)
gevent.get_hub().threadpool.spawn(sys.stdin.readline).rawlink(lambda _: done.set())
say("ready")
stopper.wait()
say("stopping")
say("all ended by themselves", stopper.drain(users, float(sys.argv[1])))
"""
)

RELOADING = (
    PRELUDE
    + """
import sys
from gnar_lib import lifecycle, logger
from gnar_lib.errors import ConfigError
logger.setup()
stopper, calls = Stopper(), []

def reload():
    calls.append(1)
    say("reload", len(calls))
    gevent.sleep(0.01)  # a reload takes time, in which other greenlets go on
    say("reloaded", len(calls))
    raise ConfigError("no such key")

if "on a terminal" in sys.argv:
    lifecycle._has_terminal = lambda: True
    stopper = Stopper()
stopper.on_reload(reload, has_file="with a file" in sys.argv)
say("ready")
stopper.wait()
say("stopped")
"""
)


class Child:
    """A Python process, killed if it is still there after its test."""

    def __init__(self, code: str, *args: str, ignored: signal.Signals | None = None) -> None:
        before = signal.signal(ignored, signal.SIG_IGN) if ignored else None
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *args],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                restore_signals=False,
            )
        finally:
            if ignored:
                signal.signal(ignored, before)
        self._alarm = threading.Timer(TIMEOUT_S, self.process.kill)
        self._alarm.start()

    def expect(self, line: str) -> None:
        """Read the next line and compare it."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline().rstrip("\n") == line

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def finish(self, *, say: str = "") -> tuple[int, str]:
        """Write to the process, wait for its end, and return its status, output and error output."""
        out, err = self.process.communicate(say, timeout=TIMEOUT_S)
        return self.process.returncode, out + err

    def close(self) -> None:
        """Kill the process if it still runs, and close its pipes."""
        self._alarm.cancel()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start processes that end with the test."""
    children: list[Child] = []

    def start_one(code: str, *args: str, ignored: signal.Signals | None = None) -> Child:
        children.append(Child(code, *args, ignored=ignored))
        return children[-1]

    yield start_one
    for child in children:
        child.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_begins_the_end_and_users_there_finish(
    start: Callable[..., Child], number: signal.Signals
) -> None:
    child = start(DRAINING, "30")
    child.expect("ready")
    child.signal(number)
    child.expect("stopping")
    status, said = child.finish(say="\n")
    assert status == 0
    assert said.startswith("finished\nuser closed\nall ended by themselves True\n")


def test_a_second_signal_ends_the_users_at_once(start: Callable[..., Child]) -> None:
    child = start(DRAINING, "30")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("stopping")
    before = time.monotonic()
    child.signal(signal.SIGINT)
    child.expect("user closed")
    child.expect("all ended by themselves False")
    assert child.finish(say="\n")[0] == 0
    assert time.monotonic() - before < 15  # half of the grace


def test_hangups_of_the_shell_and_of_the_kernel_are_one(start: Callable[..., Child]) -> None:
    child = start(DRAINING, "30")
    child.expect("ready")
    for _ in range(3):
        child.signal(signal.SIGHUP)
        child.expect("stopping") if not _ else time.sleep(0.1)
    assert child.finish(say="\n")[1].startswith("finished\nuser closed\nall ended by themselves True\n")


def test_users_that_outlast_the_grace_are_ended(start: Callable[..., Child]) -> None:
    child = start(DRAINING, "0.05")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("stopping")
    child.expect("user closed")
    child.expect("all ended by themselves False")
    assert child.finish(say="\n")[0] == 0


def test_a_hangup_that_nohup_hid_does_not_stop(start: Callable[..., Child]) -> None:
    child = start(DRAINING, "30", ignored=signal.SIGHUP)
    child.expect("ready")
    child.signal(signal.SIGHUP)
    child.signal(signal.SIGTERM)  # the second, if the first counted
    child.expect("stopping")
    assert "all ended by themselves True" in child.finish(say="\n")[1]


def test_a_hangup_reloads_and_an_error_of_it_is_shown_and_changes_nothing(
    start: Callable[..., Child],
) -> None:
    child = start(RELOADING)
    child.expect("ready")
    for call in ("1", "2"):
        child.signal(signal.SIGHUP)
        child.expect(f"reload {call}")
        child.expect(f"reloaded {call}")
    child.signal(signal.SIGTERM)
    status, said = child.finish()
    assert status == 0
    assert "no such key" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("args", "ignored", "line"),
    [
        (["on a terminal"], None, "stopped"),
        (["on a terminal", "with a file"], None, "reload 1"),
        (["on a terminal"], signal.SIGHUP, "reload 1"),
        (["with a file"], None, "reload 1"),
        ([], None, "reload 1"),
    ],
    ids=["terminal", "terminal and file", "nohup", "file", "neither"],
)
def test_a_hangup_stops_what_was_started_on_a_terminal_without_a_file(
    start: Callable[..., Child], args: list[str], ignored: signal.Signals | None, line: str
) -> None:
    child = start(RELOADING, *args, ignored=ignored)
    child.expect("ready")
    child.signal(signal.SIGHUP)
    child.expect(line)


def test_a_hangup_during_a_reload_reloads_once_more_afterwards(start: Callable[..., Child]) -> None:
    child = start(RELOADING)
    child.expect("ready")
    child.signal(signal.SIGHUP)
    child.expect("reload 1")
    child.signal(signal.SIGHUP)
    for line in ("reloaded 1", "reload 2", "reloaded 2"):
        child.expect(line)


def test_a_process_can_stop_without_a_signal(start: Callable[..., Child]) -> None:
    child = start(PRELUDE + "s = Stopper(); s.stop(); s.wait(); say(s.stopping); s.close()")
    assert child.finish() == (0, "True\n")


def test_one_signal_ends_at_once_what_stopped_without_one(start: Callable[..., Child]) -> None:
    child = start(DRAINING.replace("stopper.wait()", "stopper.stop()"), "30")
    child.expect("ready")
    child.expect("stopping")
    child.signal(signal.SIGINT)
    child.expect("user closed")
    child.expect("all ended by themselves False")


# A start that would wait for ever, such as for the look-up of a name that no server answers.
STARTING = (
    PRELUDE
    + """
stopper = Stopper()

def start():
    say("starting")
    Event().wait()

say("called", stopper.call_until_stopped(lambda: "to the end"))
say("called", stopper.call_until_stopped(start))
say("stopping", stopper.stopping)
stopper.wait()
"""
)


def test_a_signal_interrupts_a_start(start: Callable[..., Child]) -> None:
    child = start(STARTING)
    child.expect("called to the end")
    child.expect("starting")
    child.signal(signal.SIGINT)
    child.expect("called None")
    child.expect("stopping True")
    assert child.finish() == (0, "")


LOOKING_UP = (
    PRELUDE
    + """
from gnar_lib.net import place
from gnar_lib.relay import RelaySettings, run_relay

def look_up(*_):
    say("looking up")
    Event().wait()

place.resolve = look_up
say(run_relay("tcp:0", "tcp:name:1", RelaySettings(30)))
"""
)

LOOKING_UP_TO_LISTEN = (
    PRELUDE
    + """
from gnar_lib.config import load_server
from gnar_lib.net import endpoint
from gnar_lib.server.serve import run_server

def look_up(*_):
    say("looking up")
    Event().wait()

endpoint.resolve = look_up
say(run_server(lambda: load_server({"bind": "name", "token": "t"}, {})))
"""
)


@pytest.mark.parametrize("program", [LOOKING_UP, LOOKING_UP_TO_LISTEN], ids=["relay", "server"])
def test_a_signal_interrupts_the_look_up_at_the_start(start: Callable[..., Child], program: str) -> None:
    child = start(program)
    child.expect("looking up")
    child.signal(signal.SIGTERM)
    assert child.finish() == (0, "0\n")


SIGNALLED_EARLY = (
    """
import os, signal
from gnar_lib.patch import outlive_early_signals
outlive_early_signals()
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGHUP)
"""
    + PRELUDE
    + """
stopper = Stopper()
stopper.on_reload(lambda: say("reloaded"), has_file=True)
stopper.on_status(lambda: "fine")
say("ready")
stopper.wait()
"""
)


def test_signals_before_everything_is_set_up_end_nothing_and_a_hangup_is_heeded_later(
    start: Callable[..., Child],
) -> None:
    child = start(SIGNALLED_EARLY)
    child.expect("ready")
    child.expect("reloaded")
    child.signal(signal.SIGTERM)
    assert child.finish() == (0, "")


def test_early_hangup_that_nohup_hides_stays_hidden(start: Callable[..., Child]) -> None:
    child = start(SIGNALLED_EARLY, ignored=signal.SIGHUP)
    child.expect("ready")
    child.signal(signal.SIGTERM)
    assert child.finish() == (0, "")


# A signal that comes as soon as the server listens, before anything else of it has run.
SIGNALLED_AT_ONCE = (
    PRELUDE
    + """
import os, signal, socket
from gnar_lib.config import load_server
from gnar_lib.server.serve import Server, run_server

start = Server.start

def start_and_be_signalled(server):
    port = start(server)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    return port

Server.start = start_and_be_signalled
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
say(run_server(lambda: load_server({"port": str(port), "bind": "127.0.0.1"}, {})))
"""
)


def test_a_signal_as_soon_as_the_server_listens_is_heeded(start: Callable[..., Child]) -> None:
    assert start(SIGNALLED_AT_ONCE).finish() == (0, "0\n")
