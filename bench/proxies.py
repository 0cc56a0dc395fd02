"""Measures how long one client of gnar's takes to open thousands of proxies; knows no table."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.contestants import start_gnar_server
from bench.fleet import SERVICE_PORT
from bench.launch import Contestant, Gnar, Launch
from bench.procs import LOOPBACK, BenchError, Crew
from bench.rounds import Scoreboard, allow_files, run_anew
from bench.work import Figures

FILES_SPARE = 1000
LOOK_S = 0.005  # between two looks at what the client has shown
OPEN_WAIT_S = 60.0  # for all proxies to be open
SHOWN = b" -> "  # in each line by which the client shows an open proxy, once all are open
METRICS = ("proxies_one", "proxies_all", "proxies_server", "proxies_client")


def run_proxies(board: Scoreboard, contestants: Sequence[Contestant], count: int) -> None:
    """Measure the client of each tunnel of gnar's with `count` proxies; raises BenchError."""
    allow_files(board, count + FILES_SPARE, f"{count} proxies")
    tunnels = [contestant for contestant in contestants if contestant.gnar is not None]
    run_anew(board, tunnels, METRICS, f"{count} proxies", functools.partial(_measure, board, count))


def _measure(board: Scoreboard, count: int, contestant: Contestant) -> Figures:
    """Start a server, a client with one proxy, and one with many; the difference is what the proxies take."""
    gnar, lack = contestant.gnar, contestant.lacks()
    if gnar is None or lack:
        raise BenchError(lack or "no tunnel of gnar's")
    with Crew(board.folder) as crew:
        launch = Launch(crew, LOOPBACK, LOOPBACK, "tcp", SERVICE_PORT)
        control = start_gnar_server(launch, gnar)
        one, all_of_them = (_open(launch, gnar, control, number) for number in (1, count))
    each_us = 1e6 / count
    return {
        "proxies_one": one.seconds,
        "proxies_all": all_of_them.seconds,
        "proxies_server": (all_of_them.server_cpu_s - one.server_cpu_s) * each_us,
        "proxies_client": (all_of_them.client_cpu_s - one.client_cpu_s) * each_us,
    }


@dataclass(frozen=True, slots=True)
class _Opened:
    """What it took until all proxies of a client were open."""

    seconds: float  # from the start of the client's process
    server_cpu_s: float
    client_cpu_s: float


def _open(launch: Launch, gnar: Gnar, control: int, count: int) -> _Opened:
    """Start a client with so many proxies, and wait until they are open; raises BenchError."""
    tables = (
        f'[[proxys]]\nproxy-name = "p{number}"\nlocal-port = {SERVICE_PORT}\n' for number in range(count)
    )
    config = launch.file("client.toml", f'server-addr = "127.0.0.1:{control}"\n' + "".join(tables))
    server = launch.procs[0]
    before_s, start_s = sum(server.cpu_seconds()), time.monotonic()
    client = launch.client(*gnar.client, "client", "-c", config, *gnar.client_flags())
    while client.log.read_bytes().count(SHOWN) < count:
        client.check_alive()
        if time.monotonic() > start_s + OPEN_WAIT_S:
            raise BenchError(f"{count} proxies were not open in {OPEN_WAIT_S:.0f} s")
        time.sleep(LOOK_S)
    seconds = time.monotonic() - start_s
    return _Opened(seconds, sum(server.cpu_seconds()) - before_s, sum(client.cpu_seconds()))
