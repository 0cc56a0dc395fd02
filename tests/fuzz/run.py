"""Runs a check on changed seeds for some time, and watches time and memory."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from random import Random

from tests.fuzz.mutate import mutated
from tests.fuzz.parsers import CHECKS

SEEDS = Path(__file__).resolve().parent / "seeds"
MAX_CPU_S = 2.0  # for one input: the slowest take a tenth of that
MAX_SHOWN = 2000  # bytes of an input
MAX_GROWTH_MIB = 128  # of the process, whatever the input
AT_LEAST = 50  # inputs are tried, also where the machine is busy with something else


class Crash(AssertionError):
    """A parser broke a promise; the text says for which input, and how to try it again."""

    def __init__(self, parser: str, data: bytes, seed: int, reason: object) -> None:
        shown = repr(data) if len(data) < MAX_SHOWN else f"{data[:MAX_SHOWN]!r}... ({len(data)} bytes)"
        again = f"python -m tests.fuzz --seed {seed} {parser}"
        super().__init__(f"{parser}: {reason!r}; again: {again}; input: {shown}")
        self.data = data


def seeds_of(parser: str) -> list[bytes]:
    """Return the inputs that are kept for a parser: lines with the escapes of Python."""
    lines = (SEEDS / f"{parser}.txt").read_text().splitlines()
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]


def keep(parser: str, data: bytes) -> None:
    """Add an input to the seeds of a parser."""
    with (SEEDS / f"{parser}.txt").open("a") as file:
        file.write(data.decode("latin-1").encode("unicode_escape").decode() + "\n")


def try_one(parser: str, data: bytes, random: Random, seed: int = 0) -> bool:
    """Check one input; raises `Crash` for an error that is not documented, or for too much time."""
    began_s = time.thread_time()
    try:
        accepted = CHECKS[parser](data, random)
    except Exception as exc:
        raise Crash(parser, data, seed, exc) from exc
    if (took_s := time.thread_time() - began_s) > MAX_CPU_S:
        raise Crash(parser, data, seed, f"took {took_s:.1f} s")
    return accepted


def fuzz(parser: str, seconds: float, seed: int) -> tuple[int, int]:
    """Try changed seeds for `seconds`; returns how many were tried and how many of them accepted.

    `AT_LEAST` are tried, however long that takes.
    The inputs are the same for the same `seed`. Raises `Crash`.
    """
    seeds, random = seeds_of(parser), Random(seed)  # noqa: S311  (no secret)
    before_mib = _peak_mib()
    tried = accepted = 0
    until_s = time.monotonic() + seconds
    while tried < AT_LEAST or time.monotonic() < until_s:
        data = mutated(seeds, random)
        accepted += try_one(parser, data, random, seed)
        tried += 1
        if (growth_mib := _peak_mib() - before_mib) > MAX_GROWTH_MIB:
            raise Crash(parser, data, seed, f"the process has grown by {growth_mib:.0f} MiB")
    return tried, accepted


def _peak_mib() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
