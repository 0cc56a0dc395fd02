"""Speed limits end to end: rates as users and services see them, all of them in one window of ten seconds.

A limit lends its first second's bytes and takes them back in the next two (pio/limit.py), so a transfer is
measured from its first byte on. Whether it is too fast is counted from the first byte sent: on a busy machine
the reader comes late, and finds more than its share. Whether it is too slow is counted from the first byte
received, and again when it is: that may be the machine's fault, and is if others used much of it each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.harness import Service, Tunnels, answer_at_end, ask, dial, free_port, send_reset

KB, MB = 1024, 1024 * 1024
WINDOW_S = 10.0
LEVEL_S = 2.0  # until the burst is paid back
END_S = 20.0  # by then every window is over
TRIES = 3  # of what a busy machine slows down
BUSY_CORES = 0.4  # what others may use of the machine; all loads together take more than one core
OFF = 0.03
SHARING = 4  # connections of one proxy
UNFAIR = 0.35  # what the pytest process makes of it as well; a turn itself is fair (test_limit.py)
LONGEST_GAP_S = 1.0  # a slow connection moves a little all the time
READ_BYTES = 1 << 20
PIECE = b"x" * (256 * KB)
WHOLE = os.urandom(80 * KB)  # eight seconds at 10 kB/s
BULK = 64 * MB

MODES: dict[str, tuple[str, ...]] = {"plain": (), "multiplexed": ("-m",)}
LIMITS = {  # of a file: what stands there, and bytes per second up and down
    "slow": ('"10kb"', 10 * KB, 10 * KB),
    "middle": ('"1mb"', MB, MB),
    "fast": ('"50mb"', 50 * MB, 50 * MB),
    "apart": ('{ up = "200kb", down = "2mb" }', 200 * KB, 2 * MB),
    "shared": ('"2mb"', 2 * MB, 2 * MB),
}
FLAG, FLAG_RATE = "500kb", 500 * KB
CAP, CAP_RATE = "300kb", 300 * KB


@dataclass
class Received:
    """What one end received, read by read, from its first byte to the end of its window."""

    began_at: float  # when this end began to send and to wait for bytes
    reads: list[tuple[float, int]] = field(default_factory=list)  # when, and how many bytes
    is_cut: bool = False

    def receive(self, conn: socket.socket) -> None:
        buffer = bytearray(READ_BYTES)
        while count := conn.recv_into(buffer):
            self.reads.append((time.monotonic(), count))
            if self.reads[-1][0] > self.reads[0][0] + WINDOW_S:
                return
        self.is_cut = True

    def count(self, start: float, end: float) -> int:
        return sum(count for at, count in self.reads if start <= at <= end)

    @property
    def longest_gap_s(self) -> float:
        return max((after[0] - before[0] for before, after in pairwise(self.reads)), default=0.0)


def send_without_end(conn: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            conn.sendall(PIECE)


class Load:
    """A service, and users of it, that send as much as they can and count what comes, both at once."""

    def __init__(self, name: str, up: int, down: int, users: int = 1) -> None:
        self.name = name
        self.rates = {"up": up, "down": down}
        self.users = users
        self.received: dict[str, list[Received]] = {"up": [], "down": []}
        self._over = threading.Event()
        self._ended = threading.Semaphore(0)
        self.service = Service(lambda conn: self._exchange(conn, "up"))

    def use(self, port: int) -> None:
        """Be one user, for the length of the window."""
        with dial(port) as user:
            self._exchange(user, "down")

    def _exchange(self, conn: socket.socket, direction: str) -> None:
        received = Received(time.monotonic())
        self.received[direction].append(received)
        sender = threading.Thread(target=send_without_end, args=(conn,))
        sender.start()
        try:
            received.receive(conn)
        finally:
            self._ended.release()
            self._over.wait(END_S)
            with contextlib.suppress(OSError):  # the other end's reset may be here already
                conn.shutdown(socket.SHUT_RDWR)
            sender.join()
            send_reset(conn)

    def wait(self) -> None:
        """Wait until both ends of every user have had their window, then let them go."""
        for _ in range(2 * self.users):
            assert self._ended.acquire(timeout=END_S), f"{self.name}: stalled"
        self._over.set()
        self.service.stop()

    def defects(self) -> Iterator[str]:
        """Tell what no machine excuses: bytes past the limit, and a connection that was cut."""
        for direction, sender in (("up", "down"), ("down", "up")):
            sent_at = min(part.began_at for part in self.received[sender])
            parts = self.received[direction]
            moved = sum(part.count(sent_at, sent_at + WINDOW_S) for part in parts)
            ratio = moved / (self.rates[direction] * WINDOW_S)
            if ratio > 1 + OFF:
                yield f"{self.name} {direction}: {ratio:.3f} of the rate"
            if any(part.is_cut for part in parts):
                yield f"{self.name} {direction}: cut"

    def shortfalls(self) -> Iterator[str]:
        """Tell where too little came, or not evenly."""
        for direction, rate in self.rates.items():
            parts = self.received[direction]
            began_at = min(part.reads[0][0] for part in parts)
            end = began_at + WINDOW_S
            ratio = sum(part.count(began_at, end) for part in parts) / (rate * WINDOW_S)
            if ratio < 1 - OFF:
                yield f"{self.name} {direction}: {ratio:.3f} of the rate"
            gap_s = max(part.longest_gap_s for part in parts)
            if gap_s > LONGEST_GAP_S:
                yield f"{self.name} {direction}: nothing for {gap_s:.2f} s"
            shares = [part.count(began_at + LEVEL_S, end) for part in parts]
            if min(shares) < (1 - UNFAIR) * max(shares):
                yield f"{self.name} {direction}: shared as {shares}"


@pytest.fixture
def tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Both modes at the same time: each client is told its own."""
    started = Tunnels(gnar_pyz, tmp_path / "run", ())
    failures = request.session.testsfailed
    yield started
    started.close(failed=request.session.testsfailed > failures)


def table(name: str, local_port: int, remote_port: int, limit: str) -> str:
    """Return one [[proxys]] of a client's file; no limit is none."""
    return f'[[proxys]]\nproxy-name = "{name}"\nlocal-port = {local_port}\nremote-port = {remote_port}\n' + (
        f"speed-limit = {limit}\n" if limit else ""
    )


class Machine:
    """What others use of the machine from here on: all but this process and those of the tunnels."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels
        self._began = (time.monotonic(), self._used_s())

    @property
    def is_busy(self) -> bool:
        at, used_s = self._began
        return self._used_s() - used_s > BUSY_CORES * (time.monotonic() - at)

    def _used_s(self) -> float:
        machine = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, steal = (int(machine[column]) for column in (1, 2, 3, 8))
        own = 0
        for pid in (os.getpid(), *self._tunnels.pids):
            of_process = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own += int(of_process[11]) + int(of_process[12])
        return float(user + nice + system + steal - own) / os.sysconf("SC_CLK_TCK")


def run_loads(tunnels: Tunnels, folder: Path) -> list[Load]:
    """Run every load for one window, all at once, beside a connection that has an end; return them."""
    _, server_port = tunnels.server()
    _, capped_port = tunnels.server("--max-speed", CAP)
    loads: list[tuple[Load, int]] = []
    wholes: list[int] = []
    with Service(answer_at_end) as reader:
        for mode, flags in MODES.items():
            tables = []
            for name, (limit, up, down) in LIMITS.items():
                count = SHARING if name == "shared" else 1
                load, port = Load(f"{mode} {name}", up, down, count), free_port()
                loads.append((load, port))
                tables.append(table(name, load.service.port, port, limit))
            wholes.append(free_port())
            tables.append(table("whole", reader.port, wholes[-1], '"10kb"'))
            path = folder / f"{mode}.toml"
            path.write_text("\n".join(tables))
            client, _ = tunnels.client(server_port, "-c", str(path), *flags)
            client.wait_log("open at", count=len(tables))
            limited = Load(f"{mode} --speed-limit", FLAG_RATE, FLAG_RATE)
            capped = Load(f"{mode} --max-speed", CAP_RATE, CAP_RATE)
            words = ("-l", str(limited.service.port), "--speed-limit", FLAG)
            loads.append((limited, tunnels.client(server_port, *words, *flags)[1]))
            loads.append((capped, tunnels.client(capped_port, "-l", str(capped.service.port), *flags)[1]))
        with ThreadPoolExecutor(64) as pool:
            answers = [pool.submit(ask, port, WHOLE) for port in wholes]
            users = [pool.submit(load.use, port) for load, port in loads for _ in range(load.users)]
            for load, _ in loads:
                load.wait()
            for user in users:
                user.result()
            expected = f"{len(WHOLE)} {hashlib.sha256(WHOLE).hexdigest()}\n".encode()
            assert [answer.result() for answer in answers] == [expected] * len(MODES)
    return [load for load, _ in loads]


@pytest.mark.alone
def test_rates_hold_over_ten_seconds_and_whole_connections_get_through(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    found: list[str] = []
    for _ in range(TRIES):
        machine = Machine(tunnels)
        loads = run_loads(tunnels, tmp_path)
        assert [defect for load in loads for defect in load.defects()] == []
        shortfalls = [shortfall for load in loads for shortfall in load.shortfalls()]
        if not shortfalls:
            return
        found += [] if machine.is_busy else shortfalls
    assert found == []


def send_bulk(conn: socket.socket) -> None:
    conn.recv(1)
    for _ in range(BULK // len(PIECE)):
        conn.sendall(PIECE)


def seconds_of_bulk(port: int) -> float:
    """Return how long a download takes."""
    began, count, buffer = time.monotonic(), 0, bytearray(READ_BYTES)
    with dial(port) as user:
        user.sendall(b"x")
        while part := user.recv_into(buffer):
            count += part
    assert count == BULK
    return time.monotonic() - began


@pytest.mark.alone
@pytest.mark.parametrize("flags", MODES.values(), ids=MODES)
def test_unlimited_proxy_beside_a_limited_one_is_not_slowed(
    tunnels: Tunnels, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    path, free, limited = tmp_path / "client.toml", free_port(), free_port()
    with Service(send_bulk) as service:
        tables = [table("free", service.port, free, ""), table("limited", service.port, limited, '"10kb"')]
        path.write_text("\n".join(tables))
        _, server_port = tunnels.server()
        client, _ = tunnels.client(server_port, "-c", str(path), *flags)
        client.wait_log("open at", count=2)
        ratios: list[float] = []
        while len(ratios) < TRIES and min(ratios, default=2.0) >= 2:
            alone_s = min(seconds_of_bulk(free) for _ in range(3))
            with contextlib.ExitStack() as stack:
                for _ in range(8):
                    stack.enter_context(dial(limited)).sendall(b"x")
                beside_s = min(seconds_of_bulk(free) for _ in range(3))
            ratios.append(beside_s / alone_s)
    assert min(ratios) < 2, ratios  # what is limited would take hours
