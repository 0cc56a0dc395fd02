"""How datagrams share the process with TCP, which a flood must not starve; touches no socket."""

from __future__ import annotations

import time

from gnar_lib.proxy.stream import any_has_moved, busy_pairs

SHARE = 0.15  # of the time, for all datagrams of the process, while users of TCP are busy
MAX_CREDIT_S = 0.002  # the longest burst without a pause; timers are no more exact than half of that
MAX_PAUSE_S = 0.02
BUSY_FOR_S = 0.05  # after their last byte, users of TCP still count as busy for so long
LOOK_EVERY_S = 0.01  # between two looks at whether users of TCP have moved bytes


class Share:
    """How much of the process datagrams may use: all of it, or a part while users of TCP are busy.

    Time spent on datagrams is taken from a credit, which grows as time goes by. Whoever has no credit left
    has to pause. Nothing is reckoned while there are no users of TCP.
    """

    def __init__(self) -> None:
        self._credit_s = MAX_CREDIT_S
        self._seen_s = time.monotonic()  # when `pause_after` was last called
        self._alone_until_s = 0.0  # until then nobody looks whether there are users of TCP
        self._looked_s = 0.0  # when users of TCP were last looked at
        self._busy_s = self._seen_s  # when users of TCP were last seen to move bytes

    def pause_after(self, began_s: float) -> float:
        """Return for how many seconds to take no more datagrams, after work on datagrams since `began_s`."""
        if began_s < self._alone_until_s:
            return 0.0
        if not busy_pairs():
            self._alone_until_s = began_s + LOOK_EVERY_S
            return 0.0
        now_s = time.monotonic()
        earned_s = SHARE * (now_s - self._seen_s)
        self._credit_s = min(self._credit_s + earned_s, MAX_CREDIT_S) - (now_s - began_s)
        self._seen_s = now_s
        if self._credit_s >= 0:
            return 0.0
        if not self._tcp_is_busy(now_s):
            self._credit_s = 0.0
            return 0.0
        return min(-self._credit_s / SHARE, MAX_PAUSE_S)

    def _tcp_is_busy(self, now_s: float) -> bool:
        if now_s - self._looked_s > LOOK_EVERY_S:
            self._looked_s = now_s
            if any_has_moved():
                self._busy_s = now_s
        return now_s - self._busy_s < BUSY_FOR_S


share = Share()  # the process has one loop, so there is one share
