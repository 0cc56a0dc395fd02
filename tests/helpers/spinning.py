"""Finds threads that a test has left behind and that keep a core busy, which all later tests lack."""

from __future__ import annotations

import sys
import threading
import time
import traceback

MOST_BUSY = 0.1  # the part of the time that threads may work while they all wait for something


def spinning_threads(seconds: float = 0.3) -> str:
    """Return the stacks of the other threads if they are busy while this one sleeps; else an empty text."""
    began_s = time.process_time()
    time.sleep(seconds)
    if time.process_time() - began_s < MOST_BUSY * seconds:
        return ""
    mine = threading.get_ident()
    stacks = [frame for thread, frame in sys._current_frames().items() if thread != mine]
    return "\n".join("".join(traceback.format_stack(frame)) for frame in stacks)
