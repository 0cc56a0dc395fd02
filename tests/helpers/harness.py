"""What end-to-end tests build on: real processes of gnar.pyz, services and users in threads."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

from bench import procs

WAIT_S = 20.0  # the bound of every wait: a healthy machine takes milliseconds
SOON_S = 7.0  # the bound for what must happen before a grace of 8 s is over
LOOPBACK = "127.0.0.1"
TOKEN = "a token of the tests"
ESTABLISHED, LISTENING = "01", "0A"  # in /proc/net/tcp
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # processes that run tests at the same time
IS_MEASURED = "COVERAGE_PROCESS_CONFIG" in os.environ  # tests/run.sh --coverage
SPARE_PIPE_FDS = 32  # a process keeps up to 16 pipes of bulk transfers for the next ones


def wait_until(fact: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> float:
    """Wait until `fact()` holds, and return the seconds that took; fails the test when it never does."""
    began = asked = time.monotonic()
    while not fact():
        now = time.monotonic()
        if now - began > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        # The pace of asking, not a guess of how long it takes: to ask may mean to start a program.
        time.sleep(min(max(0.01, 4 * (now - asked)), 0.25))
        asked = time.monotonic()
    return time.monotonic() - began


@contextlib.contextmanager
def first_of_workers(folders: pytest.TempPathFactory, what: str) -> Iterator[bool]:
    """Yield whether `what` is yet to be made; the other workers wait until the first has left its block."""
    if WORKERS == 1:
        yield True
        return
    with (folders.getbasetemp().parent / f"{what}.made").open("ab") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        yield not os.fstat(made.fileno()).st_size
        made.write(b"yes")


def free_port() -> int:
    """Return a port, TCP and UDP, that no other test gets, in whatever process it runs."""
    return procs.free_port()


def free_ports(count: int) -> int:
    """Return the first of several ports in a row, each as `free_port` gives them."""
    while True:
        first = free_port()
        if all(procs.take_port(port) for port in range(first + 1, first + count)):
            return first


class Gnar:
    """One process of gnar.pyz; its log and output are files, so that the process never waits for a reader."""

    def __init__(self, pyz: Path, folder: Path, *args: str, env: dict[str, str] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.args = args
        stem = f"{args[0]}-{len([*folder.iterdir()])}"
        self._log = folder / f"{stem}.log"
        self._out = folder / f"{stem}.out"
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [pyz, *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, "NO_COLOR": "1", **(env or {})},
                cwd=folder,
            )

    def __enter__(self) -> Gnar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if kind is not None:
            print(f"---- {' '.join(self.args)} ----\n{self.log}{self.out}")

    @property
    def log(self) -> str:
        """The log so far."""
        return self._log.read_text()

    @property
    def out(self) -> str:
        """The output so far."""
        return self._out.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_log(self, pattern: str, timeout_s: float = WAIT_S, count: int = 1) -> re.Match[str]:
        """Wait until a pattern matches `count` times in the log, and return the last match."""
        matches: list[re.Match[str]] = []

        def found() -> bool:
            matches[:] = re.finditer(pattern, self.log)
            return len(matches) >= count or self.process.poll() is not None

        wait_until(found, f"{pattern!r} in the log of {self.args}:\n{self.log}", timeout_s)
        assert len(matches) >= count, f"{self.args} ended with {self.process.returncode}:\n{self.log}"
        return matches[-1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """End the process after its test: at once, unless it still has to write its coverage."""
        if IS_MEASURED and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.signal(signal.SIGCONT)  # a test may have stopped it
                self.signal(signal.SIGTERM)
                self.process.wait(SOON_S)
        self.kill()

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)

    def wait_exit(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the end of the process, and return its exit status."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def fds(self) -> int:
        """Return how many descriptors the process has open, those of waiting data connections included."""
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def status(self) -> dict[str, int]:
        """Ask the process for its status line (SIGUSR1), and return the numbers in it."""
        count = len(re.findall("status: ", self.log))
        self.signal(signal.SIGUSR1)
        line = self.wait_log(r"status: (.*)\n", count=count + 1)[1]
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}

    def wait_idle(self, **expected: int) -> dict[str, int]:
        """Wait for a status without users, logins and tickets, and with the numbers `expected`; return it."""
        found: dict[str, int] = {}

        def idle() -> bool:
            found.update(self.status())
            quiet = {"users": 0, "conn_map": 0, "logins": 0, **expected}
            return all(found.get(key, value) == value for key, value in quiet.items())

        try:
            wait_until(idle, "idle")
        except AssertionError:
            raise AssertionError(f"{self.args[0]} still has {found}") from None
        return found


class Service:
    """A TCP service in threads: `serve(conn)` runs for each connection. `stop` and `start` may alternate."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._serve = serve
        self._listener: socket.socket | None = None
        self.port = port
        self.served = 0
        self.start()

    def start(self) -> None:
        """Listen on `port`, or on a free one the first time."""
        listener = socket.create_server((LOOPBACK, self.port), backlog=1024)
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening; connections that are open go on."""
        assert self._listener is not None
        # shutdown wakes the thread in accept; close alone would leave it, and the port, as they are
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            self.served += 1
            threading.Thread(target=self._run, args=(conn,), daemon=True).start()

    def _run(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError, EOFError):
            conn.settimeout(WAIT_S * 3)
            self._serve(conn)


def echo(conn: socket.socket) -> None:
    """Send back what comes, until the end of the stream."""
    while data := conn.recv(65536):
        conn.sendall(data)


def answer_at_end(conn: socket.socket) -> None:
    """Read to the end of the stream, then answer with the number of bytes and their hash."""
    digest, size = hashlib.sha256(), 0
    while data := conn.recv(65536):
        digest.update(data)
        size += len(data)
    conn.sendall(f"{size} {digest.hexdigest()}\n".encode())


def greet(conn: socket.socket) -> None:
    """Send a greeting first, as SSH and SMTP do; then send back what comes."""
    conn.sendall(b"hello\n")
    echo(conn)


def dial(port: int, host: str = LOOPBACK) -> socket.socket:
    """Connect to a port; waits of the socket end after 2 * WAIT_S. The caller closes the socket."""
    sock = socket.create_connection((host, port), WAIT_S)
    sock.settimeout(WAIT_S * 2)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the stream."""
    parts = []
    while data := sock.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Read until what was read ends with these bytes; raises `EOFError` if the stream ends before."""
    data = b""
    while not data.endswith(end):
        more = sock.recv(65536)
        if not more:
            raise EOFError
        data += more
    return data


def ask(port: int, request: bytes = b"ping") -> bytes:
    """Connect, send, shut down writing, and return the whole answer, or `b""` if the connection failed."""
    try:
        with dial(port) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)
    except OSError:
        return b""


def is_open(port: int) -> bool:
    """Tell whether something listens on a port."""
    with socket.socket() as sock:
        return sock.connect_ex((LOOPBACK, port)) == 0


def connections_to(pid: int, port: int) -> int:
    """Return how many TCP connections a process has to a port of loopback."""
    remote = f":{port:04X}"
    return sum(row[2].endswith(remote) and row[3] == ESTABLISHED for row in tcp_sockets(pid))


def listening_ports(pid: int) -> list[int]:
    """Return the TCP ports that a process listens on."""
    return [int(row[1].split(":")[1], 16) for row in tcp_sockets(pid) if row[3] == LISTENING]


def tcp_sockets(pid: int) -> Iterator[list[str]]:
    """Yield the rows of /proc/net/tcp for the sockets of a process."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            links.append(os.readlink(entry))
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    once = {row[9]: row for row in rows}  # the kernel repeats rows while other connections come and go
    yield from (row for inode, row in once.items() if inode in inodes)


def send_reset(sock: socket.socket) -> None:
    """Close a socket so that the peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def exchange_both_ways(port: int, data: bytes) -> str:
    """Send data to an echo service, read the answer meanwhile, and return the SHA-256 of the answer."""
    digest = hashlib.sha256()
    with dial(port) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while part := sock.recv(1 << 18):
            digest.update(part)
        sender.join(WAIT_S)
    return digest.hexdigest()


class Forwarder:
    """A TCP path between client and server that a test can break in ways that a network does."""

    def __init__(self, target: int, host: str = LOOPBACK) -> None:
        self._target = (target, host)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._broken: set[socket.socket] = set()  # connections to the server that must stay open
        self._service = Service(self._forward)
        self.port = self._service.port

    def _forward(self, near: socket.socket) -> None:
        with dial(*self._target) as far:
            far.settimeout(None)
            near.settimeout(None)
            self._pairs.append((near, far))
            back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
            back.start()
            self._copy(near, far)
            back.join()

    def _copy(self, src: socket.socket, dst: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := src.recv(65536):
                dst.sendall(data)
            if dst not in self._broken:
                dst.shutdown(socket.SHUT_WR)

    @property
    def legs(self) -> list[tuple[socket.socket, socket.socket]]:
        """The two sockets of every connection so far, to the client and to the server, oldest first."""
        return [*self._pairs]

    def cut(self, count: int | None = None) -> None:
        """End the first `count` connections, or all that there are now, at both of their ends."""
        for leg in [leg for pair in self._pairs[:count] for leg in pair]:
            with contextlib.suppress(OSError):
                leg.shutdown(socket.SHUT_RDWR)

    def drop_clients(self) -> Iterator[socket.socket]:
        """End the connections to clients; yield those to the server, still open, for the caller to close."""
        for near, far in self._pairs:
            self._broken.add(far)
            keep = far.dup()
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)
            yield keep


# ---- tunnels -----------------------------------------------------------------------------------------------


class Tunnels:
    """Starts the servers and clients of one test; `close`, or the end of the block, ends them."""

    def __init__(self, pyz: Path, folder: Path, mode: tuple[str, ...]) -> None:
        self._pyz = pyz
        self._folder = folder
        self._started: list[Gnar] = []
        self.mode = mode  # options that every client gets: with or without multiplexing

    def __enter__(self) -> Tunnels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    @property
    def multiplexes(self) -> bool:
        return "--no-multiplex" not in self.mode

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._started]

    def run(self, *args: str, env: dict[str, str] | None = None) -> Gnar:
        """Start gnar with these arguments; `close` ends the process."""
        process = Gnar(self._pyz, self._folder, *args, env=env)
        self._started.append(process)
        return process

    def server(self, *args: str, port: int = 0, token: str = TOKEN) -> tuple[Gnar, int]:
        """Start a server that listens on loopback, and return it with its control port."""
        port = port or free_port()
        server = self.run("server", str(port), "--bind", LOOPBACK, *args, env={"GNAR_TOKEN": token})
        server.wait_log(r"listening on")
        return server, port

    def client(self, server_port: int, *args: str, token: str = TOKEN, wait: bool = True) -> tuple[Gnar, int]:
        """Start a client and return it with the port at which its first proxy is open."""
        address = f"{LOOPBACK}:{server_port}"
        client = self.run("client", "-s", address, *args, *self.mode, env={"GNAR_TOKEN": token})
        if not wait:
            return client, 0
        return client, int(client.wait_log(r"open at \S+:(\d+)")[1])

    def close(self, *, failed: bool) -> None:
        """Kill all processes, and check their logs for defects; show the logs if the test has `failed`."""
        for process in self._started:
            process.end()
            if failed:
                print(f"---- {' '.join(process.args)} ----\n{process.log}{process.out}")
        for process in self._started:
            assert "Traceback" not in process.log, process.log
            assert "defect" not in process.log, process.log


def tunnels_of_test(
    pyz: Path, folder: Path, request: pytest.FixtureRequest, mode: tuple[str, ...] = ()
) -> Iterator[Tunnels]:
    """Yield the tunnels for a fixture, and close them after the test; their logs are shown if it failed."""
    tunnels = Tunnels(pyz, folder / "run", mode)
    failures = request.session.testsfailed
    yield tunnels
    tunnels.close(failed=request.session.testsfailed > failures)


class Tunnel:
    """A server, a client and its local service; knows what both processes held before any user came."""

    def __init__(self, tunnels: Tunnels, serve: Callable[[socket.socket], None]) -> None:
        self.service = Service(serve, free_port())  # the port stays ours while the service is stopped
        self.server, self.server_port = tunnels.server()
        self.client, self.port = tunnels.client(self.server_port, "-l", str(self.service.port), "-r", "0")
        if not tunnels.multiplexes:
            wait_until(lambda: self.server.status()["waiting"] >= 2, "two data connections wait")
        self.before = [self._held(process) for process in (self.server, self.client)]

    @staticmethod
    def _held(process: Gnar) -> tuple[int, int]:
        """Return the number of greenlets and of descriptors, without those of data connections that wait."""
        status = process.wait_idle()
        own_greenlets = status["waiting"] if process.args[0] == "client" else 0
        return status["greenlets"] - own_greenlets, process.fds() - status["waiting"]

    def assert_nothing_left(self) -> None:
        """Wait until both processes hold what they held before any user came; fails if they never do."""
        for process, before in zip((self.server, self.client), self.before, strict=True):
            self._assert_back_to(process, before)

    def _assert_back_to(self, process: Gnar, before: tuple[int, int]) -> None:
        found = before

        def back() -> bool:
            nonlocal found
            found = self._held(process)
            return found[0] <= before[0] and found[1] <= before[1] + SPARE_PIPE_FDS

        try:
            wait_until(back, "nothing left")
        except AssertionError:
            raise AssertionError(f"{process.args[0]}: {before} became {found}") from None


class SharedTunnels:
    """Tunnels to an echo service, one for each mode, for many tests: a start takes longer than most tests."""

    def __init__(self, pyz: Path, folder: Path) -> None:
        self._pyz = pyz
        self._folder = folder
        self._kept: dict[tuple[str, ...], tuple[Tunnels, Tunnel]] = {}
        self._made = 0

    def get(self, mode: tuple[str, ...]) -> Tunnel:
        """Return the tunnel of a mode; starts it when there is none."""
        if mode not in self._kept:
            self._made += 1
            tunnels = Tunnels(self._pyz, self._folder / f"{self._made}", mode)
            self._kept[mode] = tunnels, Tunnel(tunnels, echo)
        return self._kept[mode][1]

    def drop(self, mode: tuple[str, ...], *, failed: bool) -> None:
        """End the tunnel of a mode, and show its logs if a test failed."""
        tunnels, tunnel = self._kept.pop(mode)
        tunnel.service.stop()
        tunnels.close(failed=failed)

    def close(self) -> None:
        for mode in [*self._kept]:
            self.drop(mode, failed=False)
