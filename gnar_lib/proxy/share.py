"""How datagrams share the process with streams: a flood must not starve users of TCP; touches no socket."""

from __future__ import annotations

import time

from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.stream import busy_pairs

SHARE = 0.15  # of the time, for all datagrams of a process, while users of TCP are busy
MAX_CREDIT_S = 0.002  # a burst; timers are no more exact than half of that
MAX_PAUSE_S = 0.02
BUSY_FOR_S = 0.05  # after the last byte


class Share:
    """How much of the process datagrams may take: all of it, or a part while users of TCP are busy.

    Work is done on credit, which comes back as time goes by; who is in debt has to pause.
    """

    def __init__(self) -> None:
        self.bytes = 0  # of datagrams: what the meters counted besides was TCP
        self._credit_s = MAX_CREDIT_S
        self._seen_s = self._busy_s = time.monotonic()
        self._tcp_bytes = 0

    def pause_after(self, began_s: float, meter: Meter) -> float:
        """Return for how many seconds to take no more datagrams, after work that began at a time."""
        now_s = time.monotonic()
        earned_s = SHARE * (now_s - self._seen_s)
        self._credit_s = min(self._credit_s + earned_s, MAX_CREDIT_S) - (now_s - began_s)
        self._seen_s = now_s
        if self._credit_s >= 0:
            return 0.0
        if not busy_pairs() or not self._tcp_is_busy(meter, now_s):
            self._credit_s = 0.0
            return 0.0
        return min(-self._credit_s / SHARE, MAX_PAUSE_S)

    def _tcp_is_busy(self, meter: Meter, now_s: float) -> bool:
        totals = meter.root.totals()
        tcp_bytes = totals.up + totals.down - self.bytes
        if tcp_bytes != self._tcp_bytes:
            self._tcp_bytes, self._busy_s = tcp_bytes, now_s
        return now_s - self._busy_s < BUSY_FOR_S


share = Share()  # one loop, one share
