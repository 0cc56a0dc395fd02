"""What the process of the tests itself has open, to compare before and after."""

from __future__ import annotations

import os
from contextlib import suppress


def descriptors_of_this_process() -> set[str]:
    """Return what this process has open, each under a name that is never given twice, like "socket:[4711]".

    A number would not do for a comparison: what another test has left to Python's memory goes meanwhile.
    Empty where there is no /proc.
    """
    found = set()
    for number in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else ():
        with suppress(OSError):  # the descriptor of the list itself has gone
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found
