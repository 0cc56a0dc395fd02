"""Starts programs on a host, measures their memory and processor time, and ends them; knows no contestant."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import resource
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

TERM_WAIT_S = 2.0  # between SIGTERM and SIGKILL
KILL_WAIT_S = 5.0  # for a killed program to be gone
POLL_S = 0.02  # between two looks whether a program listens, or has ended
LISTEN_WAIT_S = 10.0  # for a started program to listen
LAST_LINE_CHARS = 160  # of a program's output in an error
MIB_KIB = 1024
LOWEST_PORT = 12000
HIGHEST_PORT = 60000
LISTENING = "0A"  # number of the state in /proc/net/tcp


class BenchError(Exception):
    """A contestant, a measurement or the machine failed; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """A place where programs run: this machine's loopback, or a network namespace."""

    name: str
    ip: str  # address at which other hosts reach this one
    bind: str  # address on which servers here listen
    prefix: tuple[str, ...] = ()  # words in front of each command line

    def popen(self, argv: Sequence[object], **kw: Any) -> subprocess.Popen[bytes]:
        """Start a program here; the keywords are those of `subprocess.Popen`."""
        return subprocess.Popen([*self.prefix, *map(str, argv)], **kw)

    def run(
        self, argv: Sequence[object], *, timeout: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here until it ends.

        Raises BenchError when the program takes longer than `timeout` seconds, and, with `check`, when its
        exit status is not 0.
        """
        command = [*self.prefix, *map(str, argv)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except FileNotFoundError as exc:
            raise BenchError(f"{exc.filename}: no such program") from exc
        except subprocess.TimeoutExpired as exc:
            raise BenchError(f"{argv[0]} took longer than {timeout:.0f} s") from exc
        if check and done.returncode != 0:
            said = last_line(done.stderr) or last_line(done.stdout)
            raise BenchError(f"{argv[0]} ended with status {done.returncode}: {said}")
        return done


LOOPBACK = Host("loopback", "127.0.0.1", "127.0.0.1")


def last_line(text: str) -> str:
    """Return the last line that is not empty, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-LAST_LINE_CHARS:] if lines else ""


def compile_c(source: Path, folder: Path) -> Path:
    """Compile one C file into a folder and return the program; raises BenchError without a compiler."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise BenchError(f"no C compiler ({compiler}); Debian's package is called gcc")
    program = folder / source.stem
    LOOPBACK.run([compiler, "-O2", "-Wall", "-o", program, source, "-lpthread"])
    return program


_ports_given: set[int] = set()


def free_port() -> int:
    """Return a port that no TCP or UDP socket uses, and that no process of this user was given before.

    The port is below the range from which the system takes ports for outgoing connections: one of thousands
    of connections could otherwise take the port before a contestant listens on it.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    top = ephemeral if ephemeral > LOWEST_PORT + 1000 else HIGHEST_PORT
    while True:
        port = LOWEST_PORT + secrets.randbelow(top - LOWEST_PORT)
        if take_port(port):
            return port


def take_port(port: int) -> bool:
    """Tell whether a port is free, and keep it from then on for as long as this process lives."""
    if port in _ports_given or not _lock_port(port) or not _is_free(port):
        return False
    _ports_given.add(port)
    return True


def _lock_port(port: int) -> bool:
    """Lock a port's byte in a file that all processes of this user share, until this process ends."""
    try:
        fcntl.lockf(_open_ports_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@functools.cache
def _open_ports_file() -> int:
    """Open the file of port locks, once; nobody closes it, since that would end the locks."""
    path = Path(tempfile.gettempdir(), f"gnar-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True


def raise_file_limit(wanted: int) -> int:
    """Allow this process and its children `wanted` open files, or as many as possible; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    with contextlib.suppress(ValueError, OSError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, so that `with` blocks end what they started.

    A shell starts programs in the background with SIGINT ignored; the benchmark takes SIGINT all the same.
    SIGHUP stays ignored where the parent ignored it, as nohup does.
    """
    for number in ENDING_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore the signals that end the benchmark: a second one must not break off what the first one began.

    Does nothing outside the main thread, since signals are handled in the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _session_stats(session: int) -> dict[int, list[str]]:
    """Return the processes of a session, each with its fields in /proc/PID/stat from the third (state) on."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found[int(entry.name)] = fields
    return found


def _status_kib(pid: int, file: str, key: str) -> int:
    """Return the value of a line in a file of /proc/PID, or 0 if there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
    return 0


@dataclass
class Proc:
    """A program that was started, with its children.

    The program runs in a session of its own, by which its children are found. The constructor starts it and
    raises BenchError if that fails; `stop` ends it.
    """

    host: Host
    argv: Sequence[object]
    log: Path  # gets what the program prints
    role: str = ""  # such as "server"; names the program in errors
    env: Mapping[str, str] = field(default_factory=dict)  # variables besides those of this process

    def __post_init__(self) -> None:
        with self.log.open("wb") as out:
            try:
                self._popen = self.host.popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **self.env},
                )
            except OSError as exc:
                raise BenchError(f"{self.argv[0]}: {exc.strerror}") from exc

    def check_alive(self) -> None:
        """Raise BenchError with the last line that the program printed, if the program has ended."""
        if self.has_ended:
            said = last_line(self.log.read_text(errors="replace")) or "nothing said"
            raise BenchError(f"{self.role or self.argv[0]} ended: {said}")

    @property
    def has_ended(self) -> bool:
        """Whether the program has ended by itself."""
        # WNOWAIT leaves a zombie, so that no other session gets the same number.
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return self._popen.returncode is not None or os.waitid(os.P_PID, self._popen.pid, flags) is not None

    @property
    def pid(self) -> int:
        """The id of the program's process."""
        return self._popen.pid

    def signal(self, number: int) -> None:
        """Send a signal to the program, but not to its children."""
        self._popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end of the program and return its status; raises BenchError if that takes too long."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise BenchError(f"{self.role or self.argv[0]} does not end") from exc

    def stop(self) -> None:
        """End the program and its children, by SIGTERM first and then by SIGKILL."""
        if self._popen.returncode is not None:
            return
        os.killpg(self._popen.pid, signal.SIGTERM)
        end = time.monotonic() + TERM_WAIT_S
        while not self.has_ended and time.monotonic() < end:
            time.sleep(POLL_S)
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(KILL_WAIT_S)

    def wait_listening(self, port: int) -> None:
        """Wait until somebody listens on a TCP port of the host, without connecting; raises BenchError."""
        end = time.monotonic() + LISTEN_WAIT_S
        while time.monotonic() < end:
            self.check_alive()
            if self._listens(port):
                return
            time.sleep(POLL_S)
        who = self.role or self.argv[0]
        raise BenchError(f"{who} did not listen on port {port} in {LISTEN_WAIT_S:.0f} s")

    def _listens(self, port: int) -> bool:
        for table in ("tcp", "tcp6"):  # in the network namespace of the program
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self._popen.pid}/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                        return True
        return False

    def pids(self) -> list[int]:
        """Return the ids of the program's process and of all its children."""
        return [*_session_stats(self._popen.pid)]

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the user time and the system time of the program and all its children so far."""
        stats = _session_stats(self._popen.pid).values()
        per_second = os.sysconf("SC_CLK_TCK")
        # utime and cutime (of children that have ended), then stime and cstime
        user, system = (sum(int(fields[at]) + int(fields[at + 2]) for fields in stats) for at in (11, 12))
        return user / per_second, system / per_second

    def peak_kib(self) -> int:
        """Return the sum of the peak resident memory (VmHWM) of each process that is running now."""
        return sum(_status_kib(pid, "status", "VmHWM") for pid in _session_stats(self._popen.pid))

    def pss_kib(self) -> int:
        """Return the memory now, with shared pages divided among their users (PSS).

        That is resident memory where the kernel does not tell PSS.
        """
        return sum(
            _status_kib(pid, "smaps_rollup", "Pss") or _status_kib(pid, "status", "VmRSS")
            for pid in _session_stats(self._popen.pid)
        )


class Crew:
    """Owns programs: leaving the `with` block ends them all, also after an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._procs: list[Proc] = []

    def start(
        self, host: Host, argv: Sequence[object], *, role: str = "", env: Mapping[str, str] | None = None
    ) -> Proc:
        """Start a program on a host, with its output in a file; raises BenchError."""
        log = self.folder / f"log-{secrets.token_hex(6)}"
        proc = Proc(host, argv, log, role, env or {})
        self._procs.append(proc)
        return proc

    def stop(self, procs: Iterable[Proc]) -> None:
        """End some of the programs now."""
        for proc in list(procs):
            proc.stop()
            self._procs.remove(proc)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals_ignored(), contextlib.ExitStack() as stack:
            for proc in self._procs:
                stack.callback(proc.stop)


def answer_of(program: subprocess.Popen[bytes], timeout_s: float) -> dict[str, float]:
    """Return the next line of a program that prints lines of JSON.

    Raises BenchError with what the program has said on standard error, or after `timeout_s`.
    """
    if not program.stdout or not program.stderr:
        raise BenchError("a program that answers was started without pipes")
    with selectors.DefaultSelector() as selector:
        selector.register(program.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise BenchError(f"no answer in {timeout_s:.0f} s")
    line = program.stdout.readline()
    if not line:
        said = last_line(program.stderr.read().decode(errors="replace"))
        raise BenchError(said or "a program ended without an answer")
    answer = json.loads(line)
    return {key: float(value) for key, value in answer.items()}
