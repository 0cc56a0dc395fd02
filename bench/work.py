"""The loads that users put on a contestant on loopback, and the figures that each load yields."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bench.launch import NAME
from bench.metrics import METRICS
from bench.procs import BenchError, Host, Proc
from bench.services import BODIES_PROGRAM, Bodies, Echo, Iperf, NamedWeb, Service, TcpEcho, Web
from bench.usage import Calls, Usage

USER_PROGRAM = Path(__file__).with_name("user.py")
READY_WAIT_S = 15.0
READY_PAUSE_S = 0.1  # between two tries whether a contestant answers
PROBE_S = 5.0
SLACK_S = 20.0  # how much longer than planned a measurement may take
BYTES_PER_GB = 1e9
BODY_BYTES = 1 << 27  # of one request: so long that heads do not count
MAX_ERRORS = 0.001  # share of wrk's requests that may fail; with more, the contestant is broken
MANY_USERS, IN_FLIGHT = 64, 4
RATE_USERS, RATE_PER_SECOND = 16, 20_000
CLOSE = ("-H", "Connection: close")
BY_NAME = ("-H", f"Host: {NAME}")
WEB_PROGRAMS = ("nginx", "wrk")
US_PER = {"us": 1.0, "ms": 1e3, "s": 1e6}

Figures = dict[str, float]


@dataclass(slots=True)
class Route:
    """The way of users through a running contestant to a local service."""

    host: Host  # where users are
    ip: str  # to which users connect
    port: int
    procs: Sequence[Proc]  # the contestant's programs
    service: Service

    def usage(self) -> Usage:
        """Return what measures the contestant's programs during a `with` block."""
        return Usage(self.procs)

    def check_alive(self) -> None:
        """Raise BenchError if one of the contestant's programs has ended."""
        for proc in self.procs:
            proc.check_alive()


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of load."""

    name: str
    service: Callable[..., Service]  # starts the local service
    metrics: tuple[str, ...]  # that the load yields
    measure: Callable[[Route, float], Figures]  # for a duration in seconds; raises BenchError
    programs: tuple[str, ...] = ()  # programs that have to be on the PATH


def whole_seconds(seconds: float) -> int:
    """Return a duration for tools that accept whole seconds only."""
    return max(1, round(seconds))


def iperf3(route: Route, *flags: object, timeout: float = SLACK_S) -> tuple[float, float]:
    """Run iperf3 with one stream; return received bits per second, and bytes. Raises BenchError."""
    argv = ["iperf3", "-J", "-c", route.ip, "-p", route.port, *flags]
    done = route.host.run(argv, timeout=timeout, check=False)
    try:
        report = json.loads(done.stdout)
        if "error" in report:
            raise BenchError(f"iperf3: {report['error']}")
        end = report["end"]["sum_received"]
        return float(end["bits_per_second"]), float(end["bytes"])
    except (ValueError, KeyError) as exc:
        raise BenchError(f"iperf3 ended with status {done.returncode} and no report") from exc


def bulk(route: Route, seconds: float) -> Figures:
    """Measure a bulk transfer from the user to the service, then one from the service to the user."""
    figures: Figures = {}
    for direction, flags in (("up", ()), ("down", ("-R",))):
        with route.usage() as usage:
            bits_per_s, count = iperf3(route, "-t", whole_seconds(seconds), *flags, timeout=seconds + SLACK_S)
        if not count:
            raise BenchError("iperf3: no byte arrived")
        figures[direction] = bits_per_s / 1e9
        if route.procs:
            figures[f"cpu_{direction}"] = usage.cpu_seconds / (count / BYTES_PER_GB)
            figures["peak"] = max(figures.get("peak", 0.0), usage.peak_mib)
    return figures


class Wrk(NamedTuple):
    """What wrk reports."""

    per_second: float  # requests
    median_us: float  # latency
    requests: int


def wrk(route: Route, seconds: float, connections: int, *flags: str) -> Wrk:
    """Run wrk and return what it reports; raises BenchError."""
    url = f"http://{route.ip}:{route.port}/index.html"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{whole_seconds(seconds)}s", "--latency", *flags, url]
    return parse_wrk(route.host.run(argv, timeout=seconds + SLACK_S).stdout)


def parse_wrk(text: str) -> Wrk:
    """Read wrk's report; raises BenchError."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", text)
    total = re.search(r"(\d+) requests in", text)
    if not rate or not median or not total or not float(rate[1]):
        raise BenchError("wrk: no request was answered")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = sum(map(int, errors.groups())) if errors else 0
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed += int(refused[1]) if refused else 0
    if failed > MAX_ERRORS * int(total[1]):
        raise BenchError(f"wrk: {failed} of {total[1]} requests failed ({errors[0] if errors else refused})")
    return Wrk(float(rate[1]), float(median[1]) * US_PER[median[2]], int(total[1]))


@dataclass(frozen=True, slots=True)
class Requests:
    """A load of wrk's, whose figure is requests per second, or the median of their delays."""

    key: str  # of the metric, and the end of the names of those about each request
    connections: int
    flags: tuple[str, ...] = ()  # of wrk
    is_delay: bool = False

    @property
    def is_named(self) -> bool:
        """Whether the requests name a host."""
        return BY_NAME[1] in self.flags

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that `measure` yields."""
        each = (f"{kind}_{self.key}" for kind in ("user", "system", "cpu"))
        return (self.key, *(metric for metric in each if metric in METRICS))

    @property
    def call_metrics(self) -> tuple[str, ...]:
        """The metrics that `count_calls` yields; empty if it counts none for this load."""
        both = (f"calls_{role}_{self.key}" for role in ("server", "client"))
        return tuple(metric for metric in both if metric in METRICS)

    def measure(self, route: Route, seconds: float) -> Figures:
        """Measure the load, and what each request takes of the contestant's programs; raises BenchError."""
        with route.usage() as usage:
            done = wrk(route, seconds, self.connections, *self.flags)
        figures = {self.key: done.median_us if self.is_delay else done.per_second}
        if not route.procs:
            return figures
        times = {"user": usage.user_seconds, "system": usage.system_seconds, "cpu": usage.cpu_seconds}
        each = {f"{kind}_{self.key}": time_s * 1e6 / done.requests for kind, time_s in times.items()}
        figures |= {metric: figure for metric, figure in each.items() if metric in self.metrics}
        return figures | {"hpeak" if self.is_named else "peak": usage.peak_mib}

    def count_calls(self, route: Route, seconds: float) -> Figures:
        """Count the system calls that each request takes of the contestant's programs; raises BenchError."""
        if not route.procs:
            return {}
        with Calls(route.procs) as calls:
            done = wrk(route, seconds, self.connections, *self.flags)
        return {f"calls_{role}_{self.key}": count / done.requests for role, count in calls.by_role.items()}


def crowd(route: Route, users: int, seconds: float) -> Figures:
    """Have users come at the same moment, with so long a deadline; return counters. Raises BenchError."""
    if not isinstance(route.service, TcpEcho):
        raise BenchError("the crowd needs the echo server as local service")
    argv = [route.service.program, "crowd", route.ip, route.port, users, seconds]
    return _counters(route.host.run(argv, timeout=seconds + SLACK_S).stdout)


def _counters(printed: str) -> Figures:
    """Read what the programs in C print."""
    return {key: float(value) for key, value in (word.split("=") for word in printed.split())}


def udp_load(route: Route, what: str, *numbers: float) -> Figures:
    """Run the load generator of an echo server; return its counters. Raises BenchError."""
    if not isinstance(route.service, Echo):
        raise BenchError("the load generator needs the echo server as local service")
    argv = [route.service.program, what, route.ip, route.port, *numbers]
    return _counters(route.host.run(argv, timeout=numbers[-1] + SLACK_S).stdout)


def udp(route: Route, seconds: float) -> Figures:
    """Measure one user, then 64 users with four datagrams in flight each, then a fixed rate."""
    one = udp_load(route, "load", 1, 1, seconds)
    many = udp_load(route, "load", MANY_USERS, IN_FLIGHT, seconds)
    fixed = udp_load(route, "rate", RATE_USERS, RATE_PER_SECOND, seconds)
    if not (one["answered"] and many["answered"] and fixed["answered"]):
        raise BenchError("no datagram was answered")
    return {
        "udp1": one["answered"] / one["seconds"],
        "udp64": many["answered"] / many["seconds"],
        "udp_loss": 100 * (1 - fixed["answered"] / fixed["sent"]),
        "udp_wrong": one["wrong"] + many["wrong"] + fixed["wrong"],
    }


def bodies(route: Route, what: str, path_or_size: object, seconds: float) -> tuple[float, float]:
    """Get or put bodies by host name; return bits per second, and bytes. Raises BenchError."""
    argv = [sys.executable, BODIES_PROGRAM, what, route.ip, route.port, NAME, path_or_size, seconds]
    moved = json.loads(route.host.run(argv, timeout=seconds + SLACK_S).stdout)
    return moved["bytes"] * 8 / moved["seconds"], moved["bytes"]


def named_bulk(route: Route, seconds: float) -> Figures:
    """Measure uploads of long bodies by host name, then downloads."""
    figures: Figures = {}
    for key, what, path_or_size in (("hup", "put", BODY_BYTES), ("hdown", "get", f"/{BODY_BYTES}")):
        with route.usage() as usage:
            bits_per_s, count = bodies(route, what, path_or_size, seconds)
        figures[key] = bits_per_s / 1e9
        if route.procs:
            figures[f"cpu_{key}"] = usage.cpu_seconds / (count / BYTES_PER_GB)
            figures["hpeak"] = max(figures.get("hpeak", 0.0), usage.peak_mib)
    return figures


LOADS = (
    Requests("ka32", 32),
    Requests("ka200", 200),
    Requests("ka1", 1, is_delay=True),
    Requests("short", 16, CLOSE),
    Requests("hka32", 32, BY_NAME),
    Requests("hka1", 1, BY_NAME, is_delay=True),
    Requests("hshort", 16, (*BY_NAME, *CLOSE)),
)


def _web_work(load: Requests) -> Work:
    """Return the work of a load of wrk's."""
    service = NamedWeb if load.is_named else Web
    return Work(load.key, service, load.metrics, load.measure, WEB_PROGRAMS)


def _calls_work(load: Requests, seconds: float) -> Work:
    """Return a work that counts the system calls of a load for so long, whatever else is measured for."""

    def measure(route: Route, _: float) -> Figures:
        return load.count_calls(route, seconds)

    return replace(_web_work(load), name=f"calls of {load.key}", metrics=load.call_metrics, measure=measure)


WORKS = {
    work.name: work
    for work in (
        Work("bulk", Iperf, ("up", "down", "cpu_up", "cpu_down"), bulk, ("iperf3",)),
        *(_web_work(load) for load in LOADS if not load.is_named),
        Work("udp", Echo, ("udp1", "udp64", "udp_loss", "udp_wrong"), udp),
        *(_web_work(load) for load in LOADS if load.is_named),
        Work("hbulk", Bodies, ("hup", "hdown", "cpu_hup", "cpu_hdown"), named_bulk),
    )
}
GROUPS = {"http": tuple(name for name, work in WORKS.items() if work.service in {NamedWeb, Bodies})}


def with_calls(works: Sequence[Work], seconds: float) -> list[Work]:
    """Return works, with one behind each that counts the system calls of its requests for so long."""
    loads = {load.key: load for load in LOADS}
    found = []
    for work in works:
        found.append(work)
        if (load := loads.get(work.name)) and load.call_metrics:
            found.append(_calls_work(load, seconds))
    return found


def wait_ready(route: Route) -> None:
    """Wait until the service answers through the contestant; raises BenchError with the last error."""
    end, reason = time.monotonic() + READY_WAIT_S, "no time to try"
    while time.monotonic() < end:
        route.check_alive()
        try:
            _probe(route)
            return
        except BenchError as exc:
            reason = str(exc)
            time.sleep(READY_PAUSE_S)
    raise BenchError(f"not ready after {READY_WAIT_S:.0f} s: {reason}")


def _probe(route: Route) -> None:
    """Use the local service once through the contestant; raises BenchError."""
    if route.service.proto == "http":  # a status other than 200 is no answer of the service
        bodies(route, "get", "/index.html" if isinstance(route.service, Web) else "/1", 0)
    elif isinstance(route.service, Web):
        ask_user(route, "first", 1, 0)
    elif isinstance(route.service, Iperf):
        iperf3(route, "-n", "16K", timeout=PROBE_S)
    elif isinstance(route.service, TcpEcho):
        if not crowd(route, 1, PROBE_S)["served"]:
            raise BenchError("the echo did not come back")
    elif not udp_load(route, "load", 1, 1, 0.1)["answered"]:
        raise BenchError("no datagram was answered")


def ask_user(route: Route, what: str, *numbers: float, timeout: float = SLACK_S) -> dict[str, object]:
    """Run a measurement of user.py where the users are; return its answer. Raises BenchError."""
    printed = route.host.run(
        [sys.executable, USER_PROGRAM, what, route.ip, route.port, *numbers], timeout=timeout
    ).stdout
    answer: dict[str, object] = json.loads(printed)
    return answer
