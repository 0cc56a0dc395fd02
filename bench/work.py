"""The loads: what a user does with a contestant's port on loopback, and the figures that come of it."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.procs import BenchError, Host, Proc, Usage
from bench.services import Echo, Iperf, Service, Web

USER = Path(__file__).with_name("user.py")
READY_WAIT_S = 15.0
READY_PAUSE_S = 0.1
PROBE_S = 5.0
SLACK_S = 20.0  # what a measurement may take beyond its seconds before it has failed
BYTES_PER_GB = 1e9
MAX_ERRORS = 0.001  # of wrk's requests; more is not a slow contestant but a broken one
MANY_USERS, IN_FLIGHT = 64, 4
RATE_USERS, RATE_PER_SECOND = 16, 20_000
US_PER = {"us": 1.0, "ms": 1e3, "s": 1e6}

Figures = dict[str, float]


@dataclass(slots=True)
class Lane:
    """A contestant at work: where its users connect, and the programs that are its own."""

    host: Host  # the users'
    ip: str
    port: int
    procs: Sequence[Proc]
    service: Service

    def usage(self) -> Usage:
        """Weigh the contestant's programs for the time of a `with` block."""
        return Usage(self.procs)

    def check_alive(self) -> None:
        """Raise BenchError if one of them has ended."""
        for proc in self.procs:
            proc.check_alive()


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load: what it needs, and the metrics that it yields."""

    name: str
    service: Callable[..., Service]
    metrics: tuple[str, ...]
    measure: Callable[[Lane, float], Figures]
    programs: tuple[str, ...] = ()


def whole(seconds: float) -> int:
    """What tools take that know whole seconds only."""
    return max(1, round(seconds))


def iperf3(lane: Lane, *flags: object, timeout: float = SLACK_S) -> tuple[float, float]:
    """One stream: bits per second as received, bytes carried. Raises BenchError."""
    argv = ["iperf3", "-J", "-c", lane.ip, "-p", lane.port, *flags]
    done = lane.host.run(argv, timeout=timeout, check=False)
    try:
        report = json.loads(done.stdout)
        if "error" in report:
            raise BenchError(f"iperf3: {report['error']}")
        end = report["end"]["sum_received"]
        return float(end["bits_per_second"]), float(end["bytes"])
    except (ValueError, KeyError) as exc:
        raise BenchError(f"iperf3 ended with status {done.returncode} and no report") from exc


def bulk(lane: Lane, seconds: float) -> Figures:
    """From the user to the service, then back."""
    figures: Figures = {}
    for direction, flags in (("up", ()), ("down", ("-R",))):
        with lane.usage() as usage:
            bits_per_s, count = iperf3(lane, "-t", whole(seconds), *flags, timeout=seconds + SLACK_S)
        if not count:
            raise BenchError("iperf3: no byte arrived")
        figures[direction] = bits_per_s / 1e9
        if lane.procs:
            figures[f"cpu_{direction}"] = usage.cpu_seconds / (count / BYTES_PER_GB)
            figures["peak"] = max(figures.get("peak", 0.0), usage.peak_mib)
    return figures


def wrk(lane: Lane, seconds: float, connections: int, *flags: str) -> tuple[float, float]:
    """Requests per second, and the median latency in microseconds. Raises BenchError."""
    url = f"http://{lane.ip}:{lane.port}/index.html"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{whole(seconds)}s", "--latency", *flags, url]
    return parse_wrk(lane.host.run(argv, timeout=seconds + SLACK_S).stdout)


def parse_wrk(text: str) -> tuple[float, float]:
    """Requests per second and median latency in microseconds from wrk's report. Raises BenchError."""
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
    return float(rate[1]), float(median[1]) * US_PER[median[2]]


def _with_peak(lane: Lane, measure: Callable[[], Figures]) -> Figures:
    with lane.usage() as usage:
        figures = measure()
    return figures | ({"peak": usage.peak_mib} if lane.procs else {})


def keep_alive_32(lane: Lane, seconds: float) -> Figures:
    """Requests on 32 connections that stay open."""
    return _with_peak(lane, lambda: {"ka32": wrk(lane, seconds, 32)[0]})


def keep_alive_1(lane: Lane, seconds: float) -> Figures:
    """Requests one after the other on one connection."""
    return _with_peak(lane, lambda: {"ka1": wrk(lane, seconds, 1)[1]})


def short(lane: Lane, seconds: float) -> Figures:
    """A new connection for each request, 16 at a time."""
    return _with_peak(lane, lambda: {"short": wrk(lane, seconds, 16, "-H", "Connection: close")[0]})


def udp_load(lane: Lane, what: str, *numbers: float) -> Figures:
    """Run the load generator; its counters. Raises BenchError."""
    assert isinstance(lane.service, Echo)  # noqa: S101 (the one service of UDP's works)
    argv = [lane.service.program, what, lane.ip, lane.port, *numbers]
    printed = lane.host.run(argv, timeout=numbers[-1] + SLACK_S).stdout
    return {key: float(value) for key, value in (word.split("=") for word in printed.split())}


def udp(lane: Lane, seconds: float) -> Figures:
    """One user, 64 users with four datagrams in flight each, and a fixed rate."""
    one = udp_load(lane, "load", 1, 1, seconds)
    many = udp_load(lane, "load", MANY_USERS, IN_FLIGHT, seconds)
    fixed = udp_load(lane, "rate", RATE_USERS, RATE_PER_SECOND, seconds)
    if not (one["answered"] and many["answered"] and fixed["answered"]):
        raise BenchError("no datagram was answered")
    return {
        "udp1": one["answered"] / one["seconds"],
        "udp64": many["answered"] / many["seconds"],
        "udp_loss": 100 * (1 - fixed["answered"] / fixed["sent"]),
        "udp_wrong": one["wrong"] + many["wrong"] + fixed["wrong"],
    }


WORKS = {
    work.name: work
    for work in (
        Work("bulk", Iperf, ("up", "down", "cpu_up", "cpu_down"), bulk, ("iperf3",)),
        Work("ka32", Web, ("ka32",), keep_alive_32, ("nginx", "wrk")),
        Work("ka1", Web, ("ka1",), keep_alive_1, ("nginx", "wrk")),
        Work("short", Web, ("short",), short, ("nginx", "wrk")),
        Work("udp", Echo, ("udp1", "udp64", "udp_loss", "udp_wrong"), udp),
    )
}


def wait_ready(lane: Lane) -> None:
    """Wait until the service answers through the contestant. Raises BenchError with what is in the way."""
    end, reason = time.monotonic() + READY_WAIT_S, "no time to try"
    while time.monotonic() < end:
        lane.check_alive()
        try:
            _probe(lane)
            return
        except BenchError as exc:
            reason = str(exc)
            time.sleep(READY_PAUSE_S)
    raise BenchError(f"not ready after {READY_WAIT_S:.0f} s: {reason}")


def _probe(lane: Lane) -> None:
    if isinstance(lane.service, Web):
        ask_user(lane, "first", 1, 0)
    elif isinstance(lane.service, Iperf):
        iperf3(lane, "-n", "16K", timeout=PROBE_S)
    elif not udp_load(lane, "load", 1, 1, 0.1)["answered"]:
        raise BenchError("no datagram was answered")


def ask_user(lane: Lane, what: str, *numbers: float, timeout: float = SLACK_S) -> dict[str, object]:
    """Run one of user.py's measurements beside the lane's users. Raises BenchError."""
    printed = lane.host.run(
        [sys.executable, USER, what, lane.ip, lane.port, *numbers], timeout=timeout
    ).stdout
    answer = json.loads(printed)
    assert isinstance(answer, dict)  # noqa: S101 (user.py is ours)
    return answer
