"""Joins each user of a proxy with the other end, and says what happens to the user."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from gnar_lib.events import Side, UserAnswered, UserCame, UserConnected, UserLeft, emit, is_heard
from gnar_lib.net import Conn, Sockaddr
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.stream import stream


class Joiner:
    """Serves the users of one proxy, or of one relay, whose `name` is in the events.

    A user without bytes in either direction ends after `idle_timeout_s`; 0 is never.
    """

    def __init__(self, side: Side, name: str, meter: Meter, idle_timeout_s: float = 0.0) -> None:
        self.side = side
        self.name = name
        self.idle_timeout_s = idle_timeout_s
        self.meter = meter  # counts the users, and lists those who are joined

    def join(self, user: Conn, address: Sockaddr, connect: Callable[[], Conn | None]) -> None:
        """Carry the bytes of one user until both ends are closed; closes `user`.

        `connect` returns a conn to the other end, or None if there is none: then the user is closed. After an
        error of `connect` or of one of the conns, the user is reset, and the error is raised: mostly a
        `ConnError`. `address` is the user's.
        """
        reason = ""
        emit(UserCame, self.side, self.name, address)
        live = self.meter.connection(address, user.abort)
        began_s = live.began_s
        if is_heard(UserAnswered):
            live.down.on_first = partial(self._tell_answer, address, began_s)
        try:
            other = connect()
            if other is None:
                reason = "nothing to connect to"
                user.close()
                return
            if is_heard(UserConnected):
                emit(UserConnected, self.side, self.name, address, time.monotonic() - began_s)
            with live:
                stream(user, other, live.up, live.down, self.idle_timeout_s)
        except BaseException as exc:
            reason = live.ended_by or str(exc) or f"ended by the {self.side.value}"
            user.abort()  # a reset, since an orderly end could be taken for the whole
            raise
        finally:
            if is_heard(UserLeft):
                up, down, lasted_s = live.up.bytes, live.down.bytes, time.monotonic() - began_s
                emit(UserLeft, self.side, self.name, address, up, down, lasted_s, reason)

    def _tell_answer(self, address: Sockaddr, began_s: float) -> None:
        emit(UserAnswered, self.side, self.name, address, time.monotonic() - began_s)
