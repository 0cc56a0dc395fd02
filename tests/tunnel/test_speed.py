"""Speed limits end to end: rates as users and services see them, all of them in one window of five seconds.

A limit lends its first second's bytes and takes them back in the next two (pio/limit.py). Whether a transfer
is too fast is counted from the first byte sent, which no machine makes wrong. How near a transfer comes to
its limit depends on the machine, so that only a transfer at half of its limit is too slow.
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
from pathlib import Path

import pytest

from tests.helpers.harness import Service, Tunnels, answer_at_end, ask, dial, free_port, send_reset

KB, MB = 1024, 1024 * 1024
WINDOW_S = 5.0
END_S = 20.0  # by then every window is over
TOO_FAST, TOO_SLOW = 1.03, 0.5  # parts of the limit
SHARING = 4  # connections of one proxy
READ_BYTES = 1 << 20
PIECE = b"x" * (256 * KB)
WHOLE = os.urandom(40 * KB)  # four seconds at 10 kB/s
BULK = 64 * MB  # more than any limit lets through in the window, and in an hour at the lowest one

MODES: dict[str, tuple[str, ...]] = {"plain": ("--no-multiplex",), "multiplexed": ("-m",)}
LIMITS = {  # of a file: what stands there, and bytes per second up and down
    "slow": ('"10kb"', 10 * KB, 10 * KB),
    "middle": ('"1mb"', MB, MB),
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
        """Tell where more came than the limit allows, or far less, and what was cut."""
        for direction, sender in (("up", "down"), ("down", "up")):
            parts = self.received[direction]
            sent_at = min(part.began_at for part in self.received[sender])
            came_at = min(part.reads[0][0] for part in parts)
            whole = self.rates[direction] * WINDOW_S
            most, least = (
                sum(part.count(began_at, began_at + WINDOW_S) for part in parts) / whole
                for began_at in (sent_at, came_at)
            )
            if most > TOO_FAST or least < TOO_SLOW:
                yield f"{self.name} {direction}: {most:.3f} and {least:.3f} of the limit"
            if any(part.is_cut for part in parts):
                yield f"{self.name} {direction}: cut"


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


def send_bulk(conn: socket.socket) -> None:
    conn.recv(1)
    for _ in range(BULK // len(PIECE)):
        conn.sendall(PIECE)


class Scene:
    """Every load, in both modes, and beside the loads what no limit holds up."""

    def __init__(self, tunnels: Tunnels, folder: Path, local: dict[str, int]) -> None:
        self._tunnels = tunnels
        _, server_port = tunnels.server()
        _, capped_port = tunnels.server("--max-speed", CAP)
        self._loads: list[tuple[Load, int]] = []
        self._whole: list[int] = []
        self._free: list[int] = []
        for mode, flags in MODES.items():
            self._start_client(folder / f"{mode}.toml", mode, server_port, local)
            limited = Load(f"{mode} --speed-limit", FLAG_RATE, FLAG_RATE)
            capped = Load(f"{mode} --max-speed", CAP_RATE, CAP_RATE)
            words: tuple[str, ...] = ("-l", str(limited.service.port), "--speed-limit", FLAG)
            self._loads.append((limited, tunnels.client(server_port, *words, *flags)[1]))
            self._loads.append(
                (capped, tunnels.client(capped_port, "-l", str(capped.service.port), *flags)[1])
            )

    def _start_client(self, path: Path, mode: str, server_port: int, local: dict[str, int]) -> None:
        """Start the client whose proxies are in a file: limited in several ways, and not at all."""
        tables = []
        for name, (limit, up, down) in LIMITS.items():
            load, port = Load(f"{mode} {name}", up, down, SHARING if name == "shared" else 1), free_port()
            self._loads.append((load, port))
            tables.append(table(name, load.service.port, port, limit))
        self._whole.append(free_port())
        tables.append(table("whole", local["whole"], self._whole[-1], '"10kb"'))
        self._free.append(free_port())
        tables.append(table("free", local["free"], self._free[-1], ""))
        path.write_text("\n".join(tables))
        client, _ = self._tunnels.client(server_port, "-c", str(path), *MODES[mode])
        client.wait_log("open at", count=len(tables))

    def defects(self) -> list[str]:
        """Run everything at once for one window, and return what was wrong."""
        with ThreadPoolExecutor(64) as pool:
            users = [pool.submit(load.use, port) for load, port in self._loads for _ in range(load.users)]
            whole = [pool.submit(ask, port, WHOLE) for port in self._whole]
            free = [pool.submit(ask, port, b"x") for port in self._free]
            for load, _ in self._loads:
                load.wait()
            for user in users:
                user.result()
            expected = f"{len(WHOLE)} {hashlib.sha256(WHOLE).hexdigest()}\n".encode()
            assert [answer.result() for answer in whole] == [expected] * len(MODES)
            assert [len(answer.result()) for answer in free] == [BULK] * len(MODES)
        return [defect for load, _ in self._loads for defect in load.defects()]


@pytest.mark.waits
def test_limits_hold_whole_connections_get_through_and_nothing_slows_an_unlimited_proxy(
    tunnels: Tunnels, tmp_path: Path
) -> None:
    with Service(answer_at_end) as whole, Service(send_bulk) as free:
        scene = Scene(tunnels, tmp_path, {"whole": whole.port, "free": free.port})
        assert scene.defects() == []
