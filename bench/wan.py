"""A long path on one machine: two hosts (network namespaces) joined by a link with delay, loss and a rate.

    python -m bench.wan [--delay MS] [--loss PERCENT] [--rate MBIT] -- COMMAND...

runs COMMAND in this namespace. The variables WAN_A and WAN_B are the names of the two hosts:
`ip netns exec $WAN_A ...` runs a program on host A (10.213.0.1), likewise on host B (10.213.0.2). The delay
is one way: the round trip is twice as long. When COMMAND ends, the programs that still run on the hosts are
killed, and the hosts and the link are removed. Needs Linux, root, iproute2 and a C compiler.

In Python:

    with wan(delay_ms=25) as path:
        a, b = path
        server = b.popen(["iperf3", "-s"])
        path.cut()      # every packet is lost, and neither end notices
        path.mend()
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.procs import KILL_WAIT_S, LOOPBACK, BenchError, Host, compile_c, end_on_signals, signals_ignored

ADDRESSES = ("10.213.0.1", "10.213.0.2")  # the same in every pair, since pairs do not see each other
PREFIX_BITS = 24
DEVICE = "wan0"
SOURCE = Path(__file__).with_name("wan.c")

_numbers = itertools.count()


class WanError(BenchError):
    """The two hosts cannot be made on this machine; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class _Link:
    """The program that carries packets between the hosts."""

    orders: IO[bytes]  # the program's standard input
    answers: IO[bytes]  # the program's standard output


@dataclass(frozen=True, slots=True)
class LongPath:
    """Two hosts and the link between them; `a, b = path` yields the hosts."""

    a: Host
    b: Host
    _link: _Link

    def __iter__(self) -> Iterator[Host]:
        return iter((self.a, self.b))

    def cut(self) -> None:
        """Lose every packet from now on, also those that are under way, as if a cable were pulled."""
        self._order(b"c", b"cut\n")

    def mend(self) -> None:
        """Carry packets again."""
        self._order(b"m", b"mended\n")

    def _order(self, order: bytes, answer: bytes) -> None:
        self._link.orders.write(order)
        self._link.orders.flush()
        if self._link.answers.readline() != answer:
            raise WanError("the program that is the link has ended")


@contextlib.contextmanager
def wan(delay_ms: float = 25, loss_percent: float = 0, rate_mbit: float = 0) -> Iterator[LongPath]:
    """Make two hosts for the duration of a `with` block; raises WanError.

    `delay_ms` is one way. A `rate_mbit` of 0 is no limit.
    """
    _check_machine()
    number = next(_numbers)
    names = [f"wan-{side}-{os.getpid()}-{number}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gnar-wan-")))
        program = compile_c(SOURCE, folder)
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_delete_namespace, name)
            _ip("-n", name, "link", "set", "lo", "up")
        link = stack.enter_context(_started([program, *names, delay_ms, loss_percent, rate_mbit]))
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/{PREFIX_BITS}", "dev", DEVICE)
            _ip("-n", name, "link", "set", DEVICE, "up")
        a, b = (
            Host(name, address, bind="0.0.0.0", prefix=("ip", "netns", "exec", name))
            for name, address in zip(names, ADDRESSES, strict=True)
        )
        yield LongPath(a, b, link)


def _check_machine() -> None:
    """Raise WanError unless this machine can have network namespaces and tun devices."""
    if not sys.platform.startswith("linux"):
        raise WanError("network namespaces are Linux's: this system has none")
    if os.geteuid() != 0:
        raise WanError("making network namespaces takes root")
    if shutil.which("ip") is None:
        raise WanError("no `ip` program: Debian's package is called iproute2")
    if not Path("/dev/net/tun").exists():
        raise WanError("no /dev/net/tun: the kernel's tun module is missing, or a container hides it")


def _ip(*words: str) -> None:
    """Run `ip`; raises WanError."""
    try:
        LOOPBACK.run(["ip", *words])
    except BenchError as exc:
        raise WanError(f"network namespaces may not be made here: ip {' '.join(words)}: {exc}") from exc


def _delete_namespace(name: str) -> None:
    """Kill the programs in a namespace and delete it; the namespace would live as long as they do."""
    with signals_ignored():
        for pid in LOOPBACK.run(["ip", "netns", "pids", name], check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        LOOPBACK.run(["ip", "netns", "del", name], check=False)


@contextlib.contextmanager
def _started(command: list[object]) -> Iterator[_Link]:
    """Run the program that is the link for the duration of a `with` block; raises WanError."""
    # In a session of its own, since ^C must not end the program before the hosts are removed.
    link = LOOPBACK.popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with link:
        try:
            if link.stdin is None or link.stdout is None or link.stdout.readline() != b"up\n":
                said = link.stderr.read().decode() if link.stderr else ""
                raise WanError(f"the link between the namespaces did not start: {said.strip()}")
            yield _Link(link.stdin, link.stdout)
        finally:
            if link.stdin is not None:
                link.stdin.close()
            try:
                link.wait(KILL_WAIT_S)
            except subprocess.TimeoutExpired:
                link.kill()


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return the exit status of its COMMAND."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m bench.wan",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--delay", type=float, default=25, metavar="MS", help="one way (default 25)")
    parser.add_argument("--loss", type=float, default=0, metavar="PERCENT", help="packets that get lost")
    parser.add_argument("--rate", type=float, default=0, metavar="MBIT", help="per second; 0 is no limit")
    parser.add_argument("command", nargs="+", help="what runs while the hosts are there")
    args = parser.parse_args(argv)
    end_on_signals()
    try:
        with wan(args.delay, args.loss, args.rate) as (a, b):
            return subprocess.run(
                args.command, env={**os.environ, "WAN_A": a.name, "WAN_B": b.name}, check=False
            ).returncode
    except (BenchError, FileNotFoundError) as exc:
        sys.stderr.write(f"wan: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
