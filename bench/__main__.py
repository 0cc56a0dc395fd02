"""gnar measured beside direct connections, haproxy, socat, rathole, bore, frp, chisel and a Go gnar.

    python -m bench                         everything on loopback, 5 rounds: about 30 minutes
    python -m bench --work http             HTTP by host name: gnar's names beside reverse proxies
    python -m bench --long-path             the tunnels over a path of 50 ms (needs root)
    python -m bench --loss 1,3              the same path with packets lost
    python -m bench --idle                  5,000 idle connections through each tunnel
    python -m bench --clients 2000          2,000 idle clients of gnar's server
    python -m bench --proxies 1000          1,000 proxies of one gnar client
    python -m bench --crowd 10000           10,000 users of a contestant at the same moment
    python -m bench --soak 1h               gnar alone, for an hour of mixed use and disturbances
    python -m bench --only "gnar relay,haproxy" --work bulk --seconds 5
    python -m bench --peer go=./gnar-go --json bench.json --plot bench.svg

The contestants run side by side and take turns, so that other work of the machine affects all of them. The
report shows medians with their spread, ratios to yardsticks that do similar work, and whether gnar reaches
its targets. Ratios of one run can be compared; figures of different runs cannot. A contestant that fails is
shown as failed with the reason, and the run goes on; "!" marks a figure that lacks rounds. rathole, bore,
frps and frpc, and chisel take part if they are on the PATH.

In the works hka32, hka1, hshort and hbulk, each request names the host bench.example.test. Some contestants
route by that name: two haproxys or nginxs in a row, frp with a subdomain, and `gnar names`, whose server has
a domain. `gnar tunnel` does not look at requests.

`gnar tunnel tls` is what gnar does without a flag, and `gnar tunnel` the same without TLS (--tls off). With
`-m` there is one connection for everything, and with `plain` (--no-multiplex) one for each user. An older
gnar that does not know a flag takes no part. `haproxy x2 tls`, `rathole noise`, `frp` (multiplexed, with TLS)
and `chisel` (SSH in a WebSocket) encrypt what travels between their two ends, too.

The benchmark needs nginx, wrk and iperf3 as local services and loads, a C compiler for UDP and the long path,
and haproxy and socat as contestants. CPU and peak memory are sums over the processes of a contestant; memory
that processes share counts for each of them. User time, system time and system calls of each request are
those of all processes of a contestant; they depend little on how busy the machine is.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import plot, report
from bench.contestants import all_contestants
from bench.crowd import run_crowd
from bench.fleet import run_clients
from bench.idle import run_idle
from bench.launch import Contestant
from bench.longpath import STAGES, TARGETS_MS, lossy, run_long_path
from bench.metrics import LOSSES_PERCENT
from bench.procs import BenchError, end_on_signals, raise_file_limit
from bench.proxies import run_proxies
from bench.results import Results
from bench.rounds import Scoreboard, run_loopback, run_start
from bench.soak import run_soak, seconds
from bench.usage import has_strace
from bench.work import GROUPS, WORKS, with_calls

OPEN_FILES = 65_536  # limit for every program that is started; `--idle` may ask for more
MIN_ROUNDS = 5  # a report of fewer rounds warns the reader
START = "start"
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    works = ",".join([*WORKS, START])
    add("--gnar", default="./gnar.pyz", metavar="COMMAND", help="the gnar to measure (default ./gnar.pyz)")
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another gnar, the Go one say: run as `COMMAND server` and `COMMAND client`, with and without"
        " -m; NAME=SERVER_COMMAND,CLIENT_COMMAND for two different ones; may be repeated",
    )
    add("--rounds", type=int, default=MIN_ROUNDS, metavar="N", help="default 5, and fewer say little")
    add("--seconds", type=float, default=3, metavar="S", help="of each measurement (default 3)")
    add("--only", type=_words, metavar="CONTESTANT,...", help="these contestants; 'list' names them all")
    groups = "; ".join(f"{name} stands for {', '.join(members)}" for name, members in GROUPS.items())
    add(
        "--work",
        type=_works,
        default=_works(works),
        metavar="WORK,...",
        help=f"of {works} (default all); {groups}",
    )
    add(
        "--calls",
        type=float,
        nargs="?",
        const=1.0,
        metavar="S",
        help="count the system calls of each request, too, in measurements of their own of S seconds (default"
        " 1): strace slows programs down",
    )
    add("--json", type=Path, metavar="FILE", help="write every round's figures there")
    add("--plot", type=Path, metavar="FILE.svg", help="draw a bar chart")
    _add_modes(made)
    return made


def _add_modes(made: argparse.ArgumentParser) -> None:
    """Add the options that measure something else than the works on loopback."""
    add = made.add_argument
    add(
        "--long-path",
        type=float,
        nargs="?",
        const=50.0,
        metavar="MS",
        help="instead of loopback, two hosts with that round trip between them (default 50): first byte of a"
        " new connection, 20 at once, beside bulk, on a full link of 50 Mbit/s, and bulk",
    )
    add(
        "--loss",
        type=_losses,
        nargs="?",
        default=[],
        const=[*LOSSES_PERCENT],
        metavar="PERCENT,...",
        help="a long path, of 50 ms unless --long-path says otherwise, that loses so many packets each way (1"
        " or 3; default both): 32 users whose connections stay and 4 with short ones, side by side. Without"
        " --long-path nothing else is measured",
    )
    add(
        "--idle",
        type=int,
        nargs="?",
        const=5000,
        metavar="N",
        help="instead of loopback's works, N idle connections through each tunnel (default 5000): memory of"
        " each and latency of one more",
    )
    add(
        "--clients",
        type=int,
        nargs="?",
        const=2000,
        metavar="N",
        help="instead of that, N idle clients of each gnar server (default 2000), with a proxy each: log-ins"
        " a second, and the server's processor time and memory; this gnar's own code plays them all",
    )
    add(
        "--proxies",
        type=int,
        nargs="?",
        const=1000,
        metavar="N",
        help="instead of that, one gnar client with N proxies (default 1000): until all are open",
    )
    add(
        "--crowd",
        type=int,
        nargs="?",
        const=10_000,
        metavar="N",
        help="instead of that, N users at the same moment (default 10000), who send 1 KiB, get it back and"
        " leave: how many are refused, and how long they wait",
    )
    add(
        "--soak",
        type=seconds,
        metavar="TIME",
        help="instead of all that, gnar alone under mixed use and disturbances for so long, such as 10m or"
        " 1h: memory, descriptors and greenlets, and the delays of users who stay",
    )


def _losses(text: str) -> list[int]:
    """Read a list of percentages; raises an error of argparse for one of which there are no tables."""
    known = {str(percent): percent for percent in LOSSES_PERCENT}
    if unknown := [word for word in _words(text) if word not in known]:
        raise argparse.ArgumentTypeError(f"no loss of {unknown[0]} %; there are: {', '.join(known)}")
    return [known[word] for word in _words(text)]


def _words(text: str) -> list[str]:
    """Split a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _works(text: str) -> list[str]:
    """Split a list with commas, and put the works of a group in its place."""
    return [work for word in _words(text) for work in GROUPS.get(word, (word,))]


def choose(
    contestants: Sequence[Contestant], only: Sequence[str] | None, notes: list[str]
) -> list[Contestant]:
    """Return the contestants that take part: those in `only`, or all that can run and are not extra.

    Adds a note for each that cannot run here. Raises BenchError for an unknown name.
    """
    names = [contestant.name for contestant in contestants]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise BenchError(f"no contestant {unknown[0]!r}; there are: {', '.join(names)}")
    if only:
        return [contestant for contestant in contestants if contestant.name in only]
    contestants = [contestant for contestant in contestants if not contestant.extra]
    lacks = {each.name: each.lacks() if each.optional else "" for each in contestants}
    notes += [f"{name} took no part; {lack}" for name, lack in lacks.items() if lack]
    return [contestant for contestant in contestants if not lacks[contestant.name]]


def run(args: argparse.Namespace, board: Scoreboard, contestants: Sequence[Contestant]) -> None:
    """Measure what the command line asks for; raises BenchError when the machine lacks something."""
    if args.long_path is not None or args.loss:
        stages = [*(STAGES if args.long_path is not None else ()), *map(lossy, args.loss)]
        run_long_path(board, contestants, stages, args.long_path or TARGETS_MS)
    if args.idle is not None:
        run_idle(board, contestants, args.idle)
    if args.clients is not None:
        run_clients(board, contestants, args.clients)
    if args.proxies is not None:
        run_proxies(board, contestants, args.proxies)
    if args.crowd is not None:
        run_crowd(board, contestants, args.crowd)
    modes = (args.long_path, args.loss or None, args.idle, args.clients, args.proxies, args.crowd)
    if any(mode is not None for mode in modes):
        return
    works = [work for name, work in WORKS.items() if name in args.work]
    if args.calls is not None and has_strace():
        works = with_calls(works, args.calls)
    elif args.calls is not None:
        board.results.notes.append("no system calls were counted; not on the PATH: strace")
    run_loopback(board, contestants, works)
    if START in args.work and any(contestant.name.startswith("gnar") for contestant in contestants):
        run_start(board, shlex.split(args.gnar))


def run_and_write(args: argparse.Namespace, board: Scoreboard, contestants: Sequence[Contestant]) -> int:
    """Measure, print the report and write the files; return the exit status.

    An interrupted or failed run reports the figures that it has.
    """
    status = 0
    for contestant in contestants:
        board.results.expect(contestant.name, contestant.kind)
    if args.rounds < MIN_ROUNDS:
        board.results.notes.append(f"{args.rounds} rounds are too few to rely on")
    try:
        run(args, board, contestants)
    except BenchError as exc:
        sys.stderr.write(f"bench: {exc}\n")
        status = EXIT_FAILED
    except KeyboardInterrupt:
        board.results.notes.append("interrupted: not all was measured")
        status = EXIT_INTERRUPTED
    sys.stdout.write(report.text(board.results))
    settings = {key: value for key, value in vars(args).items() if key not in {"json", "plot"}}
    if args.json:
        args.json.write_text(report.as_json(board.results, settings))
    if args.plot:
        args.plot.write_text(plot.draw(board.results))
    return status


def soak(args: argparse.Namespace, folder: Path) -> int:
    """Run a soak, and print its report; return the exit status."""
    try:
        told, is_good = run_soak(shlex.split(args.gnar), folder, args.soak)
    except BenchError as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return EXIT_FAILED
    sys.stdout.write(told)
    return 0 if is_good else EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status."""
    args = parser().parse_args(argv)
    end_on_signals()
    # Debian keeps haproxy and nginx in these folders, which only root has on the PATH.
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    notes: list[str] = []
    try:
        everyone = all_contestants(args.gnar, args.peer)
        if args.only == ["list"]:
            sys.stdout.write("".join(f"{contestant.name}\n" for contestant in everyone))
            return 0
        chosen = choose(everyone, args.only, notes)
        unknown = [name for name in args.work if name not in {*WORKS, START}]
        if unknown:
            raise BenchError(f"no work {unknown[0]!r}; there are: {', '.join([*WORKS, *GROUPS, START])}")
    except BenchError as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return EXIT_USAGE
    raise_file_limit(OPEN_FILES)
    with tempfile.TemporaryDirectory(prefix="gnar-bench-") as folder:
        if args.soak is not None:
            return soak(args, Path(folder))
        return run_and_write(
            args, Scoreboard(args.rounds, args.seconds, Path(folder), Results(notes=notes)), chosen
        )


if __name__ == "__main__":
    sys.exit(main())
