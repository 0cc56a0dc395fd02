"""An uninvolved user beside an attack: how long the user's bytes take, and what the processes hold."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.harness import SPARE_PIPE_FDS, WAIT_S, Gnar, dial, wait_until

PAUSE_S = 0.005  # between two bytes of the user
LOOK_EVERY_S = 0.05  # at what the processes hold
SHORT_S = 0.005  # a delay that needs no look at the waits for a core


@dataclass(frozen=True)
class Bounds:
    """What an attack may cost: the uninvolved user's worst delay, and how far each process may grow.

    A healthy machine needs a small part of each. The rest is for one that has other work to do.
    """

    worst_s: float = 1.0  # between a byte of the user and its echo, without waits for a core
    p99_s: float = math.inf  # the same, for all bytes but the slowest hundredth
    grown_mib: float = 32.0  # resident memory, at any time during the attack
    grown_fds: int = 256  # descriptors, at any time during the attack
    left_mib: float = 16.0  # of grown_mib, once the attack is over


@dataclass
class Footprint:
    """Resident memory and descriptors of a process: before an attack, the most during it, and after it."""

    process: Gnar
    before: tuple[float, int]
    most: tuple[float, int]
    after: tuple[float, int] = (0.0, 0)

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name} {mib:.1f} MiB {fds} descriptors"
            for name, (mib, fds) in (("before", self.before), ("most", self.most), ("after", self.after))
        )
        return f"{self.process.args[0]} {self.process.pid}: {shown}"


def resident_mib(process: Gnar) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def idle_footprint(process: Gnar) -> tuple[float, int]:
    """Return memory and descriptors; data connections that wait for a user do not count."""
    return resident_mib(process), process.fds() - process.status()["waiting"]


class Cores:
    """How long the watched processes and this one have waited for a core, as the kernel counts (schedstat).

    On a busy machine, most of a delay is such a wait, for which no attack is to blame. Of this process, two
    threads count: the user's, and the one that waited longest of the others, which include the service's.
    """

    def __init__(self, processes: list[Gnar]) -> None:
        self._watched = [Path(f"/proc/{process.pid}/schedstat") for process in processes]

    def waits_s(self) -> dict[str, float]:
        """Return the seconds of each process and of each thread of this process, from its start."""
        tasks = [Path(f"/proc/self/task/{each}/schedstat") for each in os.listdir("/proc/self/task")]
        found = {}
        for path in [*self._watched, *tasks]:
            with contextlib.suppress(OSError):  # it has ended just now
                found[str(path)] = int(path.read_text().split()[1]) / 1e9
        return found

    def waited_s(self, before: dict[str, float]) -> float:
        """Return the seconds since `waits_s` returned `before`."""
        now = self.waits_s()
        own = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        waited = {path: seconds - before.get(path, seconds) for path, seconds in now.items()}
        counted = [waited.pop(path, 0.0) for path in [*map(str, self._watched), own]]
        return sum(counted) + max(waited.values(), default=0.0)


class Bystander:
    """A user who sends a byte, waits for its echo, and does that again and again, in a thread.

    Delays are without waits for a core, but for `worst_with_waits_s`, the worst on the clock.
    `close` waits for the last echo, so that a byte that is on its way when an attack ends counts as well.
    """

    def __init__(self, port: int, footprints: list[Footprint]) -> None:
        self.worst_with_waits_s = 0.0
        self.delays_s: list[float] = []  # without waits for a core
        self.looks = 0  # at the processes
        self.error: OSError | AssertionError | None = None
        self._footprints = footprints
        self._cores = Cores([each.process for each in footprints])
        self._conn = dial(port)
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._echo()
        # The first byte opens the connection to the service.
        self.worst_with_waits_s = 0.0
        self.delays_s.clear()
        self._thread.start()

    def _echo(self) -> None:
        waits = self._cores.waits_s()
        began = time.monotonic()
        self._conn.sendall(b"x")
        assert self._conn.recv(1) == b"x", "the connection has ended"
        took_s = time.monotonic() - began
        self.worst_with_waits_s = max(self.worst_with_waits_s, took_s)
        self.delays_s.append(took_s if took_s < SHORT_S else took_s - self._cores.waited_s(waits))

    @property
    def echoes(self) -> int:
        """How many bytes have come back so far."""
        return len(self.delays_s)

    @property
    def worst_s(self) -> float:
        """The worst delay so far."""
        return max(self.delays_s, default=0.0)

    @property
    def p99_s(self) -> float:
        """The delay that no more than a hundredth of the bytes exceed; 0 for too few to tell."""
        return sorted(self.delays_s)[int(self.echoes * 0.99)] if self.echoes >= 100 else 0.0

    def _run(self) -> None:
        looked = 0.0
        try:
            while not self._is_ending.wait(PAUSE_S):
                self._echo()
                if time.monotonic() - looked > LOOK_EVERY_S:
                    looked = time.monotonic()
                    self._look()
            self._echo()
        except (OSError, AssertionError) as exc:
            self.error = exc

    def _look(self) -> None:
        self.looks += 1
        for each in self._footprints:
            mib, fds = resident_mib(each.process), each.process.fds()
            each.most = max(each.most[0], mib), max(each.most[1], fds)

    def close(self) -> None:
        """End the user's connection, once the last byte is back."""
        self._is_ending.set()
        self._thread.join(3 * WAIT_S)
        self._look()
        self._conn.close()


@contextlib.contextmanager
def uninvolved_user(port: int, *processes: Gnar, bounds: Bounds | None = None) -> Iterator[Bystander]:
    """Have a user at the port of an echo service for the block, which is an attack on the processes.

    Fails the test if a byte of the user took too long, if a process grew too far, or if a process does not
    return to what it held before the attack.
    """
    allowed = bounds or Bounds()
    footprints = [Footprint(process, held := idle_footprint(process), held) for process in processes]
    user = Bystander(port, footprints)
    try:
        yield user
    finally:
        user.close()
    assert user.error is None, f"the user was cut off: {user.error!r}; {measured(user, footprints)}"
    with contextlib.suppress(AssertionError):  # the check below tells more
        wait_until(lambda: has_returned(footprints, allowed), "all is as before the attack")
    print(measured(user, footprints))
    found = defects(user, footprints, allowed)
    assert not found, f"{'; '.join(found)}: {measured(user, footprints)}"


def has_returned(footprints: list[Footprint], allowed: Bounds) -> bool:
    """Measure every process again, and tell whether each holds what it held before."""
    for each in footprints:
        each.after = idle_footprint(each.process)
    return not any(left_behind(each, allowed) for each in footprints)


def left_behind(each: Footprint, allowed: Bounds) -> list[str]:
    """Return what a process still holds after an attack."""
    found = []
    if each.after[0] - each.before[0] > allowed.left_mib:
        found.append(f"{each.process.args[0]} keeps memory")
    if each.after[1] - each.before[1] > SPARE_PIPE_FDS:
        found.append(f"{each.process.args[0]} keeps descriptors")
    return found


def defects(user: Bystander, footprints: list[Footprint], allowed: Bounds) -> list[str]:
    """Return what exceeds a bound."""
    found = []
    if user.worst_s > allowed.worst_s:
        found.append(f"a byte of the uninvolved user took longer than {allowed.worst_s:g} s")
    if user.p99_s > allowed.p99_s:
        found.append(f"a hundredth of the uninvolved user's bytes took longer than {allowed.p99_s:g} s")
    for each in footprints:
        name = each.process.args[0]
        if each.most[0] - each.before[0] > allowed.grown_mib:
            found.append(f"{name} grew by more than {allowed.grown_mib:g} MiB")
        if each.most[1] - each.before[1] > allowed.grown_fds:
            found.append(f"{name} opened more than {allowed.grown_fds} descriptors")
        found += left_behind(each, allowed)
    return found


def measured(user: Bystander, footprints: list[Footprint]) -> str:
    """Return in words what was measured."""
    delays = (
        f"worst delay {user.worst_s * 1000:.0f} ms of {user.echoes} bytes, p99 {user.p99_s * 1000:.0f} ms"
        f" ({user.worst_with_waits_s * 1000:.0f} ms with waits for a core)"
    )
    return "; ".join([delays, *map(str, footprints)])
