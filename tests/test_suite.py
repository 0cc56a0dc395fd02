"""The suite itself: what tests, and the programs that they start, may rely on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench import procs
from tests.helpers.harness import free_port, free_ports, wait_until
from tests.helpers.spinning import spinning_threads

ROOT = Path(__file__).resolve().parent.parent
TAKE = "import sys; from bench.procs import take_port; print(take_port(int(sys.argv[1])))"
END_BY = "import os, signal, sys; os.kill(os.getpid(), int(sys.argv[1])); print('deaf')"
RUN_IGNORING = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run_python(*args: object) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder of the sources to its end."""
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_programs_that_tests_start_end_by_a_signal(number: signal.Signals) -> None:
    ended = run_python("-c", END_BY, int(number))
    assert ended.stdout == ""
    assert ended.returncode in {-number, 128 + number}


def test_programs_of_a_suite_in_the_background_end_by_the_same_signals() -> None:
    name = test_programs_that_tests_start_end_by_a_signal.__name__
    done = run_python("-c", RUN_IGNORING, "-m", "pytest", "-q", f"{__file__}::{name}")
    assert "2 passed" in done.stdout, done.stdout


def test_a_port_is_given_once_whichever_process_asks() -> None:
    ports = [free_port() for _ in range(50)]
    first = free_ports(3)
    assert len({*ports, first, first + 1, first + 2}) == 53
    for port in (ports[0], first + 2):
        assert not procs.take_port(port)
        assert run_python("-c", TAKE, port).stdout == "False\n"


def test_thread_that_keeps_a_core_busy_is_found() -> None:
    is_over = threading.Event()

    def spin_in_this_test() -> None:
        while not is_over.is_set():
            pass

    thread = threading.Thread(target=spin_in_this_test)
    thread.start()
    try:
        wait_until(lambda: "spin_in_this_test" in spinning_threads(), "the thread")
    finally:
        is_over.set()
        thread.join()
