"""Fuzzes parsers for as long as asked; an input that breaks one is kept as a seed."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.fuzz.parsers import CHECKS
from tests.fuzz.run import Crash, fuzz, keep


def main() -> int:
    """Run the command line; returns 1 if a parser broke a promise."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--seconds", type=float, default=10.0, help="for each parser; 10 by default")
    options.add_argument("--seed", type=int, help="of the random choices; another one each time by default")
    options.add_argument("parser", nargs="*", help=f"of {', '.join(CHECKS)}; all by default")
    given = options.parse_args()
    if unknown := set(given.parser) - set(CHECKS):
        options.error(f"no such parser: {', '.join(sorted(unknown))}")
    status = 0
    for parser in given.parser or CHECKS:
        seed = secrets.randbits(32) if given.seed is None else given.seed
        try:
            tried, accepted = fuzz(parser, given.seconds, seed)
        except Crash as crash:
            keep(parser, crash.data)
            print(f"{crash}; kept as a seed")
            status = 1
        else:
            print(f"{parser}: {tried} inputs, {accepted} accepted (seed {seed})", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
