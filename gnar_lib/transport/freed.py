"""Gives the memory of many closed conns back to the system; knows no conn."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, Final

from gevent.hub import get_hub

MANY: Final = 64  # conns that were closed: OpenSSL has had some 20 KiB for each, and more behind bulk
PAUSE_S: Final = 1.0  # from when they are many until their memory is given back

_trim: Any = None  # of the C library; looked up when it is first needed


class Freed:
    """Counts closed conns. glibc keeps what they leave, in pieces, until it is asked to give all of it back.

    Other C libraries, and other systems, give memory back by themselves, or never.
    """

    def __init__(self) -> None:
        self._count = 0
        self._timer: Any = None

    def note(self) -> None:
        """Take note that a conn is closed, whose memory will be free when its last reader lets go of it."""
        self._count += 1
        if self._count >= MANY and self._timer is None:
            self._timer = get_hub().loop.timer(PAUSE_S)
            self._timer.start(self._give_back)

    def _give_back(self) -> None:
        self._count, self._timer = 0, None
        trim()


def trim() -> None:
    """Give free memory back, where the C library has to be asked for that; takes a few milliseconds."""
    global _trim  # noqa: PLW0603  (there is one C library)
    if _trim is None:
        _trim = _find_trim()
    _trim(0)


def _find_trim() -> Any:
    if sys.platform == "linux":
        with suppress(ImportError, OSError):  # a Python without ctypes, or one that is linked statically
            import ctypes

            found = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if found is not None:
                return found
    return lambda _pad: 0


freed = Freed()
