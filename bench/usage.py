"""Measures what programs take meanwhile: processor time, memory and system calls; runs no load."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bench.procs import KILL_WAIT_S, LOOPBACK, MIB_KIB, POLL_S, BenchError, Proc, last_line

SAMPLE_S = 0.5  # how often memory is measured while a measurement runs
ATTACH_WAIT_S = 10.0  # for strace to have every thread of a program


class Usage:
    """Measures programs during a `with` block.

    `user_seconds` and `system_seconds` are their processor time in the block, `peak_mib` their peak memory
    since they were started.
    """

    def __init__(self, procs: Sequence[Proc]) -> None:
        self._procs = procs
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._before = (0.0, 0.0)
        self.user_seconds = 0.0
        self.system_seconds = 0.0
        self.peak_mib = 0.0

    @property
    def cpu_seconds(self) -> float:
        """The processor time of the block, of both kinds."""
        return self.user_seconds + self.system_seconds

    def __enter__(self) -> Usage:
        self._before = self._cpu()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._sampler.join(KILL_WAIT_S)
        self._note_peak()
        user_s, system_s = self._cpu()
        self.user_seconds, self.system_seconds = user_s - self._before[0], system_s - self._before[1]

    def _cpu(self) -> tuple[float, float]:
        times = [proc.cpu_seconds() for proc in self._procs]
        return sum(user_s for user_s, _ in times), sum(system_s for _, system_s in times)

    def _sample(self) -> None:
        # Sampled during the block: a child that serves one connection is gone at the end of the block.
        while not self._done.wait(SAMPLE_S):
            self._note_peak()

    def _note_peak(self) -> None:
        self.peak_mib = max(self.peak_mib, sum(proc.peak_kib() for proc in self._procs) / MIB_KIB)


def has_strace() -> bool:
    """Tell whether system calls can be counted here."""
    return shutil.which("strace") is not None


class Calls:
    """Counts the system calls of programs during a `with` block, by strace, which slows the programs down.

    `by_role` has the counts by the programs' roles once the block has ended. Entering and leaving raise
    BenchError.
    """

    def __init__(self, procs: Sequence[Proc]) -> None:
        self._procs: dict[str, list[Proc]] = {}
        for proc in procs:
            self._procs.setdefault(proc.role, []).append(proc)
        self._straces: dict[str, subprocess.Popen[bytes]] = {}  # by role
        self.by_role: dict[str, int] = {}

    def __enter__(self) -> Calls:
        try:
            for role, procs in self._procs.items():
                self._straces[role] = _strace([pid for proc in procs for pid in proc.pids()])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said = self._end()
        if error is not None:
            return
        if None in said.values():
            raise BenchError("strace does not end")
        self.by_role = {role: parse_strace(text or "") for role, text in said.items()}

    def _end(self) -> dict[str, str | None]:
        """End strace, and let the programs go on; return what strace has said, by role."""
        said: dict[str, str | None] = {}
        for strace in self._straces.values():
            strace.send_signal(signal.SIGINT)
        for role, strace in self._straces.items():
            try:
                said[role] = strace.communicate(timeout=KILL_WAIT_S)[1].decode(errors="replace")
            except subprocess.TimeoutExpired:
                strace.kill()
                strace.communicate()
                said[role] = None
        return said


def _strace(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start strace, and wait until it has every thread of these processes; raises BenchError."""
    argv = ["strace", "-qq", "-f", "-c", "-U", "calls,name", *itertools.chain(*(("-p", pid) for pid in pids))]
    # In a session of its own: ^C is for this process, which ends strace.
    strace = LOOPBACK.popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    end = time.monotonic() + ATTACH_WAIT_S
    while time.monotonic() < end and strace.poll() is None:
        if all(map(_is_traced, pids)):
            return strace
        time.sleep(POLL_S)
    strace.kill()
    raise BenchError(f"strace did not attach: {last_line(strace.communicate()[1].decode(errors='replace'))}")


def _is_traced(pid: int) -> bool:
    """Tell whether every thread of a process is being traced; also a process that has ended is."""
    with contextlib.suppress(OSError):
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            if "\nTracerPid:\t0\n" in status.read_text():
                return False
    return True


def parse_strace(text: str) -> int:
    """Return how many calls the summary of `strace -c -U calls,name` tells of; no calls are no summary."""
    counts = re.findall(r"^ *(\d+) +(\w+)$", text, re.MULTILINE)
    return sum(int(count) for count, name in counts if name != "total")
