"""Attempts to listen, which are repeated as often as an address says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from gnar_lib import logger
from gnar_lib.errors import ListenError
from gnar_lib.net import give_way

DEFAULT_INTERVAL_S = 1.0

Opened = TypeVar("Opened")

_log = logger.get("relay")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed attempt is repeated, and how many seconds later."""

    times: float = 0  # `math.inf` for as often as it takes
    interval_s: float = DEFAULT_INTERVAL_S


ONCE = Retry()


def open_in_the_end(open_one: Callable[[], Opened], retry: Retry) -> Opened:
    """Return what the first attempt returns that succeeds; raises the `ListenError` of the last one."""
    left = retry.times
    while True:
        try:
            return open_one()
        except ListenError as exc:
            if left <= 0:
                raise
            if left == retry.times:
                _log.warning("%s; tried again every %g s", exc, retry.interval_s)
        left -= 1
        give_way(retry.interval_s)
