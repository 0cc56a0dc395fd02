"""Runs a tunnel for hours under mixed use and disturbances, and says what it held and how it answered.

    python -m bench --soak 1h --gnar ./gnar.pyz

One server and two clients, one of them with -m, serve users of TCP and UDP of all kinds: short and long
ones, bulk, users who reset, who leave half, who say nothing. Every twenty seconds something happens to the
tunnel: a reload, a client that is killed, stopped for a while or restarted, a crowd that exceeds a limit. The
tables show memory, descriptors and greenlets of each program over the time, and the delays of one lasting
user of each client, whose bytes nothing but the end of the client may lose.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import secrets
import signal
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.procs import LOOPBACK, MIB_KIB, BenchError, Crew, Proc, free_port

HOST = LOOPBACK.ip
PACE_S = 0.02  # between two bytes of a lasting user
DISTURB_EVERY_S = 20.0
SAMPLE_EVERY_S = 5.0  # of what the programs hold
WARM_UP_S = 30.0  # after which what the programs hold is compared with the end
REST_S = 75.0  # at the end, without users: UDP sessions end after 60 s
STATUS_S = 1.0  # for the line that a program logs when it is asked how it is
CROWD_S = 1.0  # that users too many stay, so that the others come while there is no place
STOPPED_S = 20.0  # for which a client is stopped: longer than a server may be silent
START_S = 3.0  # of a program, before which it may not take signals yet
SETTLE_S = 15.0  # after a disturbance, within which users of the disturbed client may be cut off
PATIENCE_S = 60.0  # of every user: longer than all that a tunnel may take
MAX_USERS = 40  # of the proxy that a crowd attacks
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
_random = random.Random()  # noqa: S311  (no secret)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset


def seconds(text: str) -> float:
    """Return the seconds of a duration such as 90, 10m or 1h; raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise ValueError(f"{text!r}: expected a duration such as 90s, 10m or 1h")
    return float(found[1]) * UNITS_S[found[2]]


# ---- the services ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def echo_services() -> Iterator[tuple[int, int]]:
    """Yield the ports of an echo service of TCP, and of one of UDP, which run in threads."""
    listener = socket.create_server((HOST, 0), backlog=1024)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((HOST, 0))
    for serve in (_accept, _answer_datagrams):
        sock = listener if serve is _accept else datagrams
        threading.Thread(target=serve, args=(sock,), daemon=True).start()
    yield listener.getsockname()[1], datagrams.getsockname()[1]
    for sock in (listener, datagrams):
        sock.close()


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=_echo, args=(conn,), daemon=True).start()


def _echo(conn: socket.socket) -> None:
    with conn, contextlib.suppress(OSError):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := conn.recv(1 << 17):
            conn.sendall(data)


def _answer_datagrams(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, user = sock.recvfrom(2048)
            sock.sendto(data, user)


# ---- the users ---------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What has happened to users until now."""

    served: int = 0
    moved_bytes: int = 0
    cut_expected: int = 0  # around a disturbance of their client
    cut: list[str] = field(default_factory=list)  # at any other time: what they were, when and why
    datagrams: int = 0
    datagrams_back: int = 0


@dataclass
class Route:
    """One client of the tunnel: the port of its service, and when it was last disturbed."""

    name: str
    port: int
    delays_ms: list[float] = field(default_factory=list)  # of the lasting user, undisturbed
    disturbed_ms: list[float] = field(default_factory=list)  # of the same, around a disturbance
    quiet_after_s: float = 0.0  # when the last disturbance is over, as `time.monotonic` says
    returns: int = 0  # how often the lasting user had to connect again

    @property
    def is_disturbed(self) -> bool:
        """Whether users of the client may be cut off, or wait, just now."""
        return time.monotonic() < self.quiet_after_s

    def dial(self) -> socket.socket:
        """Return a connection to the proxied port."""
        conn = socket.create_connection((HOST, self.port), PATIENCE_S)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return conn


class Load:
    """The users of all routes, in threads, from `start` until `stop`."""

    def __init__(self, routes: Sequence[Route], udp_port: int) -> None:
        self.tally = Tally()
        self._routes = routes
        self._udp_port = udp_port
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._began_s = time.monotonic()

    def start(self) -> None:
        """Let users come."""
        for route in self._routes:
            self._run(self._last, route)
            for kind in (self._short, self._short, self._bulk, self._rude):
                self._run(self._again_and_again, kind, route)
        self._run(self._send_datagrams)

    def stop(self) -> None:
        """Let the users finish, and no more come."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)

    def _run(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _note_cut(self, route: Route, what: str, began_s: float, exc: OSError) -> None:
        """Count a user who was cut off; one whose time touches a disturbance was to be expected."""
        if route.is_disturbed or began_s < route.quiet_after_s:
            self.tally.cut_expected += 1
        else:
            at_s = time.monotonic() - self._began_s
            self.tally.cut.append(f"{what} of {route.name} after {at_s:.0f} s: {exc}")

    def _last(self, route: Route) -> None:
        """Be the user who stays: a byte there and back, again and again."""
        while not self._is_over.is_set():
            began_s = time.monotonic()
            try:
                with route.dial() as conn:
                    while not self._is_over.wait(PACE_S):
                        sent_s = time.monotonic()
                        conn.sendall(b"x")
                        if conn.recv(1) != b"x":
                            raise ConnectionError("ended")
                        delays = route.disturbed_ms if sent_s < route.quiet_after_s else route.delays_ms
                        delays.append((time.monotonic() - sent_s) * 1000)
            except OSError as exc:
                route.returns += 1
                self._note_cut(route, "the lasting user", began_s if route.is_disturbed else sys.maxsize, exc)
                self._is_over.wait(0.2)

    def _again_and_again(self, kind: Callable[[Route], None], route: Route) -> None:
        while not self._is_over.is_set():
            began_s = time.monotonic()
            try:
                kind(route)
                self.tally.served += 1
            except OSError as exc:
                self._note_cut(route, kind.__name__.strip("_"), began_s, exc)
                self._is_over.wait(0.2)

    def _short(self, route: Route) -> None:
        """Send up to 64 KiB, and take the same back."""
        self._exchange(route, secrets.token_bytes(_random.choice((1, 100, 4000, 65536))))
        self._is_over.wait(_random.uniform(0, 0.05))

    def _bulk(self, route: Route) -> None:
        """Send megabytes, and take the same back; then pause."""
        self._exchange(route, secrets.token_bytes(1 << 20) * _random.choice((1, 8, 32)))
        self._is_over.wait(_random.uniform(1, 5))

    def _exchange(self, route: Route, data: bytes) -> None:
        with route.dial() as conn:
            sender = threading.Thread(target=_send_all, args=(conn, data), daemon=True)
            sender.start()
            got = bytearray()
            while part := conn.recv(1 << 17):
                got += part
            sender.join()
        self.tally.moved_bytes += len(got)
        if got != data:
            raise ConnectionError(f"{len(got)} of {len(data)} bytes came back")

    def _rude(self, route: Route) -> None:
        """Do what users do who have no manners: say nothing, leave half of the connection, reset it."""
        manner = _random.randrange(4)
        with route.dial() as conn:
            if manner:
                conn.sendall(b"x" * _random.choice((1, 100_000)))
            if manner == 1:
                conn.shutdown(socket.SHUT_WR)
                conn.recv(1)
            if manner == 2:
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._is_over.wait(_random.uniform(0, 2) if manner else 5)

    def _send_datagrams(self) -> None:
        """Be many users of UDP, one after the other."""
        while not self._is_over.is_set():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.2)
                for _ in range(_random.randrange(1, 20)):
                    self.tally.datagrams += 1
                    with contextlib.suppress(OSError):
                        sock.sendto(bytes(_random.choice((1, 500, 1400))), (HOST, self._udp_port))
                        sock.recv(2048)
                        self.tally.datagrams_back += 1
                    self._is_over.wait(0.02)


def _send_all(conn: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader tells
        conn.sendall(data)
        conn.shutdown(socket.SHUT_WR)


# ---- the tunnel --------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """What a program holds at a time."""

    at_s: float
    mib: float
    descriptors: int
    greenlets: int


class Member:
    """The server, or a client: a program that can be restarted, with the samples of all its lives."""

    def __init__(self, crew: Crew, name: str, argv: Sequence[object]) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self.starts = 0
        self.ends: list[str] = []  # of the program, by itself
        self._crew = crew
        self._argv = argv
        self._logs: list[Path] = []
        self.proc = self._start()

    def _start(self) -> Proc:
        self.starts += 1
        self._started_s = time.monotonic()
        env = {"GNAR_TOKEN": "soak", "NO_COLOR": "1"}
        proc = self._crew.start(LOOPBACK, self._argv, role=self.name, env=env)
        self._logs.append(proc.log)
        return proc

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        self.proc.signal(number)

    def restart(self, number: int) -> None:
        """End the program by a signal, and start it again."""
        self.signal(number)
        self.proc.wait(PATIENCE_S)
        self._crew.stop([self.proc])
        self.proc = self._start()

    def sample(self, at_s: float) -> None:
        """Note what the program holds; start it again if it has ended by itself."""
        if self.proc.has_ended:
            status = self.proc.wait(PATIENCE_S)
            self.ends.append(f"{self.name} ended after {at_s:.0f} s with status {status}")
            self._crew.stop([self.proc])
            self.proc = self._start()
        pid = self.proc.pid
        with contextlib.suppress(OSError):  # it is being restarted
            resident = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()
            count = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            mib = int(resident[0]) / MIB_KIB if resident else 0.0
            self.samples.append(Sample(at_s, mib, count, self._greenlets()))
            if time.monotonic() > self._started_s + START_S:
                self.signal(signal.SIGUSR1)  # the answer is in the log when the next sample is taken

    def _greenlets(self) -> int:
        found = re.findall(r"greenlets=(\d+)", self._logs[-1].read_text(errors="replace")[-20_000:])
        return int(found[-1]) if found else 0

    def defects(self) -> list[str]:
        """Return the lines of all logs that tell of a defect."""
        text = "".join(log.read_text(errors="replace") for log in self._logs)
        return [line for line in text.splitlines() if "defect" in line or "Traceback" in line]


class Soak:
    """A tunnel, its users, and what disturbs them, for a number of seconds."""

    def __init__(self, crew: Crew, gnar: Sequence[str], folder: Path, lasts_s: float) -> None:
        self._lasts_s = lasts_s
        self._folder = folder
        self._services = contextlib.ExitStack()
        tcp_port, udp_port = self._services.enter_context(echo_services())
        control, self._limited_port, udp_proxied = free_port(), free_port(), free_port()
        self.routes = [Route("client", free_port()), Route("client -m", free_port())]
        self._config = folder / "client.toml"
        self._write_config(tcp_port, udp_port, udp_proxied, "100mb")
        self._ports = tcp_port, udp_port, udp_proxied
        where = f"{HOST}:{control}"
        self.server = Member(crew, "server", [*gnar, "server", control, "--bind", HOST])
        self.clients = [
            Member(crew, "client", [*gnar, "client", where, "-c", self._config]),
            Member(crew, "client -m", [*gnar, "client", where, f"{tcp_port}:{self.routes[1].port}", "-m"]),
        ]
        self.members = [self.server, *self.clients]
        self.load = Load(self.routes, udp_proxied)
        self.disturbances: dict[str, int] = {}

    def _write_config(self, tcp_port: int, udp_port: int, udp_proxied: int, rate: str) -> None:
        echo = f"local-port = {tcp_port}\nremote-port = {self.routes[0].port}"
        limited = f"local-port = {tcp_port}\nremote-port = {self._limited_port}\nmax-users = {MAX_USERS}"
        datagrams = f'proxy-type = "udp"\nlocal-port = {udp_port}\nremote-port = {udp_proxied}'
        proxies = [echo, f'{limited}\nspeed-limit = "{rate}"', datagrams]
        self._config.write_text("".join(f"[[proxys]]\n{proxy}\n" for proxy in proxies))

    def run(self) -> None:
        """Let users come and things happen until the time is over; then let the tunnel rest, and end it."""
        self._wait_open()
        self.load.start()
        began_s = time.monotonic()
        next_disturbance_s = began_s + WARM_UP_S
        plan = itertools.cycle(self._plan())
        while (now_s := time.monotonic()) < began_s + self._lasts_s:
            self._sample(now_s - began_s)
            if now_s >= next_disturbance_s:
                next_disturbance_s = now_s + DISTURB_EVERY_S
                self._disturb(*next(plan))
            time.sleep(max(0.0, SAMPLE_EVERY_S - (time.monotonic() - now_s)))
        self.load.stop()
        time.sleep(REST_S)
        for _ in range(2):  # what SIGUSR1 brings is read the next time
            self._sample(time.monotonic() - began_s)
            time.sleep(STATUS_S)
        for member in reversed(self.members):
            member.signal(signal.SIGTERM)
            status = member.proc.wait(PATIENCE_S)
            if status:
                member.ends.append(f"{member.name} ended at last with status {status}")
        self._services.close()

    def _wait_open(self) -> None:
        until_s = time.monotonic() + PATIENCE_S
        for route in self.routes:
            while True:
                try:
                    route.dial().close()
                    break
                except OSError as exc:
                    if time.monotonic() > until_s:
                        raise BenchError(f"{route.name} is not reached: {exc}") from exc
                    time.sleep(0.1)  # the pace of asking

    def _sample(self, at_s: float) -> None:
        for member in self.members:
            member.sample(at_s)

    # ---- disturbances --------------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[str, Sequence[Route], Callable[[], None]]]:
        plain, multiplexed = self.clients
        first, second = self.routes
        return [
            ("reload of the client", [], self._reload),
            ("crowd beyond max-users", [], self._crowd),
            ("client killed", [first], lambda: plain.restart(signal.SIGKILL)),
            ("client -m stopped for 20 s", [second], lambda: self._stop_for_a_while(multiplexed)),
            ("reload of the server", [], lambda: self.server.signal(signal.SIGHUP)),
            ("client restarted", [first], lambda: plain.restart(signal.SIGTERM)),
            ("crowd beyond max-users", [], self._crowd),
            ("client -m killed", [second], lambda: multiplexed.restart(signal.SIGKILL)),
            ("client stopped for 20 s", [first], lambda: self._stop_for_a_while(plain)),
        ]

    def _disturb(self, what: str, routes: Sequence[Route], action: Callable[[], None]) -> None:
        self.disturbances[what] = self.disturbances.get(what, 0) + 1
        for route in routes:
            route.quiet_after_s = time.monotonic() + 10 * PATIENCE_S
        action()
        for route in routes:
            route.quiet_after_s = time.monotonic() + SETTLE_S

    def _reload(self) -> None:
        """Change the limit of the limited proxy, whose users alone may notice."""
        self._write_config(*self._ports, _random.choice(("50mb", "100mb")))
        self.clients[0].signal(signal.SIGHUP)

    def _crowd(self) -> None:
        """Come with twice as many users as the limited proxy takes."""
        with contextlib.ExitStack() as stack:
            for _ in range(2 * MAX_USERS):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((HOST, self._limited_port), 1))
            time.sleep(CROWD_S)

    def _stop_for_a_while(self, member: Member) -> None:
        member.signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        member.signal(signal.SIGCONT)


# ---- the report --------------------------------------------------------------------------------------------


def text(soak: Soak) -> str:
    """Return the tables: what each program held, how the lasting users were answered, and what went wrong."""
    held = [_row(["program", "starts", "held", "early", "median", "most", "at the end"]), "|" + "---|" * 7]
    for member in soak.members:
        rows = [(what, _course(member, what)) for what in ("mib", "descriptors", "greenlets")]
        held += [_row([member.name, member.starts, what, *course]) for what, course in rows]
    answered = [
        _row(["lasting user of", "bytes", "p50 ms", "p99", "p99.9", "worst", "worst when disturbed", "back"]),
        "|" + "---|" * 8,
    ]
    for route in soak.routes:
        delays = [*_quantiles(route.delays_ms), f"{max(route.disturbed_ms, default=0.0):.0f}"]
        answered.append(_row([route.name, len(route.delays_ms), *delays, route.returns]))
    return "\n".join([*held, "", *answered, "", *_told(soak)]) + "\n"


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _course(member: Member, what: str) -> list[str]:
    """Return what a program held when it had warmed up, mostly, at most (and when), and at the end."""
    values = [float(getattr(sample, what)) for sample in member.samples]
    most_s = max(member.samples, key=lambda sample: float(getattr(sample, what))).at_s
    early = next((n for n, sample in enumerate(member.samples) if sample.at_s > WARM_UP_S / 2), 0)
    most = f"{max(values):.0f} after {most_s:.0f} s"
    return [f"{values[early]:.0f}", f"{statistics.median(values):.0f}", most, f"{values[-1]:.0f}"]


def _told(soak: Soak) -> list[str]:
    """Return in words what has happened."""
    tally = soak.load.tally
    return [
        f"{tally.served} users served, {tally.moved_bytes / 1e9:.1f} GB there and back",
        f"{tally.datagrams_back} of {tally.datagrams} datagrams answered",
        ", ".join(f"{what} {count} times" for what, count in soak.disturbances.items()),
        f"{tally.cut_expected} users cut off around a disturbance of their client, {len(tally.cut)} besides",
        *tally.cut[:20],
        *(end for member in soak.members for end in member.ends),
        *(f"{member.name}: {line}" for member in soak.members for line in member.defects()[:5]),
    ]


def _quantiles(values: Sequence[float]) -> list[str]:
    """Return median, 99th and 99.9th percentile and maximum."""
    ordered = sorted(values) or [0.0]
    found = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99, 0.999, 1.0)]
    return [f"{value:.1f}" for value in found]


def run_soak(gnar: Sequence[str], folder: Path, lasts_s: float) -> tuple[str, bool]:
    """Run for `lasts_s` seconds; return the report, and whether nothing went wrong. Raises BenchError."""
    with Crew(folder) as crew:
        soak = Soak(crew, gnar, folder, lasts_s)
        soak.run()
        is_good = not (soak.load.tally.cut or any(each.ends or each.defects() for each in soak.members))
        return text(soak), is_good
