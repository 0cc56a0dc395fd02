"""Tells systemd how the process does: ready, reloading, stopping, alive (sd_notify(3)); knows no signals.

Nothing is made and nothing is sent where systemd has not asked for it by NOTIFY_SOCKET.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.net.conn import socket_class

RETRY_S = 0.1  # systemd may be busy, above all while a machine boots, and its queue of messages full
STOP_MARGIN_S = 5.0  # for what comes after the users' time: closing, and a machine that is busy

_log = logger.get("systemd")


class Notifier:
    """Sends messages to the socket that NOTIFY_SOCKET names; without it no method does anything.

    Takes the variables out of the environment, so that no child process speaks for this one. `describe`
    returns one line for `systemctl status`; it must not wait.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._name = os.environ.pop("NOTIFY_SOCKET", "")
        self._watchdog_s = _take_watchdog_s()
        self._address = _address_of(self._name)
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        self._timers: list[Any] = []
        self._is_stopping = False
        self._has_complained = False
        if not self._name or not hasattr(socket, "AF_UNIX"):  # Windows has no such sockets
            return
        if not self._address:
            self._complain("expected a path, or a name that begins with @")
            return
        try:
            self._socket = socket_class(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as exc:  # a unit that allows no such sockets
            self._complain(exc.strerror or str(exc))
        else:
            self._socket.setblocking(False)

    @property
    def is_on(self) -> bool:
        """Whether there is a systemd that wants to know."""
        return self._socket is not None

    def start_watchdog(self) -> None:
        """Say from now on that the process lives, twice in each span that systemd has set, if it has.

        The loop of this thread does it: when it hangs, nobody says so any more.
        """
        if self.is_on and self._watchdog_s:
            self._start_timer(self._watchdog_s / 2, self._beat, repeats=True)

    def ready(self) -> None:
        """The start, or a reload, is over."""
        if self.is_on and not self._is_stopping:
            self._send("READY=1", self._status())

    def reloading(self) -> None:
        """A reload begins; `ready` has to follow."""
        if self._is_stopping:
            return
        # The time is for Type=notify-reload: a message older than systemd's signal is no answer to it.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end begins; a reload that is under way does not matter any more."""
        self._is_stopping = True
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """The end takes up to `seconds`, whatever TimeoutStopSec says."""
        self._send(f"EXTEND_TIMEOUT_USEC={round((seconds + STOP_MARGIN_S) * 1e6)}")

    def close(self) -> None:
        """Say nothing more."""
        for timer in self._timers:
            timer.stop()
        self._timers.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # ---- nothing here may wait: the hub calls it, too ------------------------------------------------------

    def _status(self) -> str:
        return f"STATUS={logger.printable(self._describe())}"

    def _beat(self) -> None:
        if not self._unsent:  # else a beat would only make the queue longer
            self._send("WATCHDOG=1", self._status())

    def _send(self, *assignments: str) -> None:
        """Send one message, or have it sent as soon as systemd takes more."""
        if self.is_on:
            self._unsent.append("\n".join(assignments).encode())
            if len(self._unsent) == 1:
                self._flush()

    def _flush(self) -> None:
        while self._unsent and self._socket is not None:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                self._start_timer(RETRY_S, self._flush)
                return
            except OSError as exc:
                self._complain(exc.strerror or str(exc))
            self._unsent.popleft()

    def _start_timer(self, seconds: float, function: Callable[[], None], *, repeats: bool = False) -> None:
        self._timers = [timer for timer in self._timers if timer.active]
        timer = get_hub().loop.timer(seconds, seconds if repeats else 0.0)
        timer.start(function, update=True)
        self._timers.append(timer)

    def _complain(self, reason: str) -> None:
        """Say once that systemd hears nothing; what was asked of the process it does all the same."""
        if not self._has_complained:
            self._has_complained = True
            _log.warning("cannot tell systemd how it goes: NOTIFY_SOCKET=%s: %s", self._name, reason)


def _take_watchdog_s() -> float:
    """Return within how many seconds systemd wants to hear of this process; 0 where it does not."""
    pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
    usec = os.environ.pop("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdecimal() and pid == str(os.getpid()) else 0.0


def _address_of(name: str) -> bytes:
    """Return the address that a value of NOTIFY_SOCKET stands for; empty if it is none of a Unix socket."""
    if name.startswith("@"):  # the abstract namespace of Linux, unix(7)
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else b""
