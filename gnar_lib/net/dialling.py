"""Dials addresses that need no look-up, one or several side by side, with the original sockets."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import DeadlineError, DialError, ExhaustedError, RefusedError, UnreachableError
from gnar_lib.net.address import Sockaddr, format_address, is_unix
from gnar_lib.net.conn import SocketConn, socket_class
from gnar_lib.net.greenlets import deadline
from gnar_lib.net.options import SocketOption, set_options, try_option
from gnar_lib.net.switching import give_way, wait_for

DIAL_TIMEOUT_S = 10.0
NEXT_ADDRESS_S = 0.25  # from one attempt to the next: the delay that RFC 8305 recommends (section 8)
MOST_AT_ONCE = 8  # attempts under way
MOST_SHOWN = 4  # addresses in the text of an error
BACKLOG_PAUSE_S = 0.01  # before dialling a Unix path again whose backlog is full
# The texts of Windows' own error numbers, which `os.strerror` does not know.
_WINDOWS_ERRORS: dict[int, str] = getattr(socket, "errorTab", {})
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)
# Linux lets a connect end within this machine while the call that begins it says that it is under way. Called
# again, connect(2) tells how it has ended, which saves the wait for an event. Elsewhere it does not tell.
_ENDS_AT_ONCE = sys.platform == "linux"
# Without a call of its own to make the socket non-blocking, where the kernel has a flag for that.
_KIND = int(socket.SOCK_STREAM) | int(getattr(socket, "SOCK_NONBLOCK", 0))

# Whose fault it is that an attempt has failed; the first that fits one of several attempts tells most.
_KINDS: tuple[tuple[frozenset[int], type[DialError]], ...] = (
    # ENOENT: a path at which nobody listens.
    (frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT}), RefusedError),
    (
        frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT}),
        UnreachableError,
    ),
    # EADDRNOTAVAIL: no local port is free, connect(2).
    (
        frozenset(
            {errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}
        ),
        ExhaustedError,
    ),
)


class Failure(NamedTuple):
    """An attempt that has failed, without the error itself, which would keep the attempt's socket alive."""

    kind: type[DialError]
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class DialSettings:
    """How to dial."""

    timeout_s: float = DIAL_TIMEOUT_S  # for all addresses together
    source: str = ""  # the local IP address to dial from, empty for the system's choice
    options: tuple[SocketOption, ...] = ()  # for each socket


AS_USUAL = DialSettings()


def dial(
    family: int,
    address: Sockaddr,
    timeout_s: float = DIAL_TIMEOUT_S,
    source: str = "",
    options: Iterable[SocketOption] = (),
) -> SocketConn:
    """Return a conn to an address that needs no look-up, from the local IP address `source` if there is one.

    The caller closes the conn. Raises `DialError` when the address refuses, cannot be reached or does not
    answer in time.
    """
    try:
        conn, is_connected = _begin(family, address, source, options)
    except OSError as exc:
        raise _dial_error([_failure(address, exc)]) from exc
    if is_connected:
        return conn
    try:
        with deadline(timeout_s, "connecting"):
            status = _finish(conn, family, address)
        if status:
            raise _os_error(status)
    except (OSError, DeadlineError) as exc:
        conn.close()
        raise _dial_error([_failure(address, exc)]) from exc
    except BaseException:
        conn.close()
        raise
    return conn


def _begin(
    family: int, address: Sockaddr, source: str, options: Iterable[SocketOption]
) -> tuple[SocketConn, bool]:
    """Begin to connect; return the conn, and whether it is connected already. Raises `OSError`."""
    conn = SocketConn(socket_class(family, _KIND), address)
    sock = conn.sock
    try:
        if not is_unix(family):
            try_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options:
            set_options(sock, options)
        if source:
            sock.bind((source, 0))
        status = sock.connect_ex(address)
        if _ENDS_AT_ONCE and status == errno.EINPROGRESS:
            status = sock.connect_ex(address)
        if not status:
            status = _refuse_itself(conn)
        if status and status not in _UNDER_WAY:
            raise _os_error(status)
    except BaseException:
        conn.close()
        raise
    return conn, not status


def _finish(conn: SocketConn, family: int, address: Sockaddr) -> int:
    """Wait until a connect under way has ended; return 0, or the number of its error."""
    if not is_unix(family):
        conn.wait_writable()
        return _status(conn)
    # With a Unix path nothing is under way: the backlog is full, and no event tells when it has room again.
    while (status := conn.sock.connect_ex(address)) == errno.EWOULDBLOCK:
        give_way(BACKLOG_PAUSE_S)
    return status


def _status(conn: SocketConn) -> int:
    """Return 0 if a conn is connected, else the number of the error."""
    return conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _refuse_itself(conn)


def _refuse_itself(conn: SocketConn) -> int:
    """Return the number of an error if a conn that is connected has itself as its peer, else 0.

    Then nobody listens at the dialled port, and the kernel has chosen this very port to dial from: the
    simultaneous open of RFC 9293, section 3.5, with one socket in both roles.
    """
    address = conn.getpeername()  # as it was dialled; the port is the peer's, the host may be 0.0.0.0
    if not isinstance(address, tuple):
        return 0
    try:
        own = conn.sock.getsockname()
        if own[1] != address[1] or own != conn.sock.getpeername():
            return 0
    except OSError:  # the peer has gone already
        return 0
    conn.abort()  # leaves the port free at once for whoever should listen there
    return errno.ECONNREFUSED


# ---- several addresses -------------------------------------------------------------------------------------


def begin(
    family: int, address: Sockaddr, how: DialSettings
) -> tuple[SocketConn | None, SocketConn | None, Failure | None]:
    """Begin to connect. One of three is not None: a conn that is connected, one that is not yet, a failure.

    The caller closes the conn.
    """
    try:
        conn, is_connected = _begin(family, address, how.source, how.options)
    except OSError as exc:
        return None, None, _failure(address, exc)
    return (conn, None, None) if is_connected else (None, conn, None)


class Race:
    """Attempts to connect side by side; at the end of the `with` block, those under way are given up.

    An attempt begins when the one before has failed, or has not succeeded within 250 ms (RFC 8305, section
    5). The greenlet that runs the race is the only one: what is under way, the hub watches.
    """

    def __init__(self, how: DialSettings = AS_USUAL) -> None:
        self._how = how
        self._until_s = time.monotonic() + how.timeout_s
        self._under_way: dict[SocketConn, Sockaddr] = {}
        self._ended: list[SocketConn] = []  # those of them that are connected, or have failed
        self._failures: list[Failure] = []
        self._began_s = 0.0  # when the youngest of those under way began
        self._waiter: greenlet | None = None  # the greenlet that runs the race, while it waits

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        for conn in self._under_way:
            conn.close()

    def run(self, addresses: Iterable[tuple[int, Sockaddr]], patience_s: float) -> SocketConn | None:
        """Return the first conn that is connected, which the caller closes.

        Attempts of earlier calls, and those that were taken over, take part. None: all attempts have failed,
        or none has succeeded for `patience_s` since the last began.
        """
        for family, address in addresses:
            conn = None
            if self._under_way and (pause_s := self._began_s + NEXT_ADDRESS_S - time.monotonic()) > 0:
                conn = self._wait(pause_s)
            while conn is None and len(self._under_way) >= MOST_AT_ONCE and self._left_s > 0:
                conn = self._wait(self._left_s)
            if conn is None and self._left_s > 0:
                conn, under_way, failure = begin(family, address, self._how)
                self.take_over(address, under_way, failure)
            if conn is not None:
                return conn
        until_s = time.monotonic() + patience_s
        while self._under_way and (left_s := min(until_s - time.monotonic(), self._left_s)) > 0:
            if (conn := self._wait(left_s)) is not None:
                return conn
        return None

    @property
    def _left_s(self) -> float:
        return self._until_s - time.monotonic()

    def take_over(self, address: Sockaddr, under_way: SocketConn | None, failure: Failure | None) -> None:
        """Let an attempt take part that `begin` has begun; closes its conn if another one wins."""
        if failure is not None:
            self._failures.append(failure)
        if under_way is not None:
            self._began_s = time.monotonic()
            self._under_way[under_way] = address
            under_way.call_when_writable(partial(self._on_end, under_way))

    def _wait(self, seconds: float) -> SocketConn | None:
        """Wait until an attempt ends, but no longer than that; return its conn if it has succeeded."""
        if not self._ended:
            timer = get_hub().loop.timer(seconds)
            self._waiter = getcurrent()
            timer.start(self._wake)
            try:
                wait_for(self)
            finally:
                self._waiter = None
                timer.stop()
        while self._ended:
            conn = self._ended.pop(0)
            address = self._under_way.pop(conn)
            if not (status := _status(conn)):
                return conn
            conn.close()
            self._failures.append(_failure(address, _os_error(status)))
        return None

    def _on_end(self, conn: SocketConn) -> None:
        """An attempt has ended, one way or the other; runs in the hub."""
        conn.call_when_writable(None)
        self._ended.append(conn)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.switch(self)

    def error(self) -> DialError:
        """Return why no attempt has succeeded, or none so far."""
        late = DeadlineError(f"connecting took longer than {self._how.timeout_s:g} s")
        return _dial_error([*self._failures, *(_failure(each, late) for each in self._under_way.values())])


# ---- errors ------------------------------------------------------------------------------------------------


def _os_error(status: int) -> OSError:
    return OSError(status, _WINDOWS_ERRORS.get(status) or os.strerror(status))


def _failure(address: Sockaddr, exc: Exception) -> Failure:
    if isinstance(exc, OSError):
        return Failure(kind_of(exc), format_address(address), exc.strerror or str(exc))
    return Failure(UnreachableError, format_address(address), str(exc))


def kind_of(exc: OSError) -> type[DialError]:
    """Return the class of the error of ours for an error of the system's: whose fault it is."""
    for numbers, kind in _KINDS:
        if exc.errno in numbers:
            return kind
    return DialError


def _dial_error(failures: list[Failure]) -> DialError:
    """Return the one error for all attempts: of the class that tells most, with what each has met."""
    kinds = {each.kind for each in failures}
    kind = next((each for _, each in _KINDS if each in kinds), DialError)
    if kind in (RefusedError, UnreachableError):  # what this machine lacks (IPv6) is of no interest then
        failures = [each for each in failures if each.kind in (RefusedError, UnreachableError)]
    by_reason: dict[str, list[str]] = {}
    for each in failures[:MOST_SHOWN]:
        by_reason.setdefault(each.reason, []).append(each.where)
    parts = [f"{' and '.join(where)}: {reason}" for reason, where in by_reason.items()]
    return kind(f"cannot connect to {'; '.join(parts)}")
