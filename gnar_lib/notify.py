"""Tells systemd that the process is ready, reloading, stopping or alive, as sd_notify(3) describes.

Without NOTIFY_SOCKET in the environment, no socket is opened and no message is sent.
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

RETRY_S = 0.1  # pause when systemd's queue of messages is full, as may happen while a machine boots
STOP_MARGIN_S = 5.0  # added to the time for users: closing takes a while on a busy machine

_log = logger.get("systemd")


class Notifier:
    """Sends messages to the socket that NOTIFY_SOCKET names; without NOTIFY_SOCKET the methods do nothing.

    The constructor removes systemd's variables from the environment, so that child processes do not send
    messages in the name of this one. `describe` returns one line for `systemctl status`, and must not wait.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._name = os.environ.pop("NOTIFY_SOCKET", "")
        self._watchdog_s = _pop_watchdog_s()  # how often systemd wants to hear a sign of life; 0 is never
        self._address = _address_of(self._name)
        self._socket: socket.socket | None = None  # None when systemd is not to be told
        self._unsent: deque[bytes] = deque()  # messages that systemd has not taken yet
        self._timers: list[Any] = []  # gevent's timers: of the watchdog, and of the next try to send
        self._is_stopping = False
        self._has_complained = False  # whether a warning was logged that systemd cannot be told
        if not self._name or not hasattr(socket, "AF_UNIX"):  # Windows' Python has no Unix sockets
            return
        if not self._address:
            self._complain("expected a path, or a name that begins with @")
            return
        try:
            self._socket = socket_class(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as exc:  # such as a unit whose RestrictAddressFamilies excludes Unix sockets
            self._complain(exc.strerror or str(exc))
        else:
            self._socket.setblocking(False)

    @property
    def is_on(self) -> bool:
        """Whether systemd wants messages."""
        return self._socket is not None

    def start_watchdog(self) -> None:
        """Send a sign of life twice in each WATCHDOG_USEC, if that variable is set.

        A timer in the hub of this thread sends the message, so that a hub which hangs sends none.
        """
        if self.is_on and self._watchdog_s:
            self._start_timer(self._watchdog_s / 2, self._on_watchdog, repeats=True)

    def ready(self) -> None:
        """Tell systemd that the start or a reload is complete."""
        if self.is_on and not self._is_stopping:
            self._send("READY=1", self._status())

    def reloading(self) -> None:
        """Tell systemd that a reload begins; `ready` has to follow."""
        if self._is_stopping:
            return
        # With Type=notify-reload, systemd ignores a message that is older than its own signal.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell systemd that the process stops; `ready` and `reloading` do nothing afterwards."""
        self._is_stopping = True
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask systemd for `seconds` to stop, and `STOP_MARGIN_S` more, whatever TimeoutStopSec says."""
        self._send(f"EXTEND_TIMEOUT_USEC={round((seconds + STOP_MARGIN_S) * 1e6)}")

    def close(self) -> None:
        """Close the socket and stop the timers; messages that were not sent yet are dropped."""
        for timer in self._timers:
            timer.stop()
        self._timers.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # ---- called in the hub, too: must not wait -------------------------------------------------------------

    def _status(self) -> str:
        return f"STATUS={logger.printable(self._describe())}"

    def _on_watchdog(self) -> None:
        if not self._unsent:  # a message that waits is a sign of life, too
            self._send("WATCHDOG=1", self._status())

    def _send(self, *assignments: str) -> None:
        """Send one message now, or when systemd can take it."""
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
        """Log once that systemd cannot be told; the process works without systemd."""
        if not self._has_complained:
            self._has_complained = True
            _log.warning("cannot tell systemd how it goes: NOTIFY_SOCKET=%s: %s", self._name, reason)


def _pop_watchdog_s() -> float:
    """Remove the watchdog's variables from the environment; return WATCHDOG_USEC in seconds, or 0."""
    pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
    usec = os.environ.pop("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdecimal() and pid == str(os.getpid()) else 0.0


def _address_of(name: str) -> bytes:
    """Return the address of the Unix socket that NOTIFY_SOCKET names, or nothing if there cannot be one."""
    if name.startswith("@"):  # a name in the abstract namespace of Linux, unix(7)
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else b""
