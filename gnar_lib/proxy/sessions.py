"""The sessions of UDP users with a service: a socket for each user; knows neither server nor client.

Nothing here waits for a slow receiver: datagrams that cannot be sent at once are dropped and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gnar_lib import logger
from gnar_lib.errors import DialError
from gnar_lib.events import DescriptorsShort, emit
from gnar_lib.net import Datagram, DatagramConn, Sockaddr, descriptors, format_address
from gnar_lib.net.datagram import BATCH, is_out_of_files
from gnar_lib.net.datagram_conn import SILENT_S
from gnar_lib.net.peer_table import ANSWERED, UNANSWERED, PeerTable
from gnar_lib.pio.limit import Bucket
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.share import share

MAX_SESSIONS = 4096  # of one proxy
RECHECK_S = 1.0  # between two questions whether a service that says nothing has moved
NEW_SESSIONS = 1000  # of one proxy in a second: each costs a tenth of a millisecond


@dataclass(frozen=True, slots=True)
class Limits:
    """A session ends `timeout_s` after its last datagram, or when there are more than `sessions`.

    `new` sessions a second can begin.
    """

    timeout_s: float
    sessions: int = MAX_SESSIONS
    new: int = NEW_SESSIONS


class OpensSockets(Protocol):
    """The service to which users' datagrams go."""

    def open(self) -> DatagramConn:
        """Return a new socket that writes to the service; the caller closes it. Raises `DialError`."""

    def refused(self, conn: DatagramConn) -> bool:
        """Nobody receives where `conn` writes to; tell whether a new socket is better."""

    def silent(self, conn: DatagramConn) -> bool:
        """Nothing has come from where `conn` writes to; tell whether a new socket is better."""


class _AllSessions:
    """The sessions of all proxies of the process: their sockets are at most half of its descriptors."""

    def __init__(self) -> None:
        self.count = 0
        self.owners: set[Sessions] = set()  # who has any

    @staticmethod
    def most() -> int:
        """Return how many sessions the process may have."""
        return max(descriptors.limit // 2, 1)

    def make_room(self, asking: Sessions, reason: str) -> None:
        """End the session that goes first: one of `asking`, unless another proxy has more than its part."""
        emit(DescriptorsShort, "a UDP session ends, so that another can begin", reason)
        equal_part = max(self.most() // len(self.owners | {asking}), 1)
        if len(asking) < equal_part:
            asking = max(self.owners, key=len)
        asking.end_first()


_all = _AllSessions()


class Sessions:
    """The sessions of one proxy: a socket for each user, so that the service can tell the users apart.

    A session begins with the first datagram of a user, and ends when the limits say so, strangers first (see
    `PeerTable`). `answer` is called in the hub with the datagrams that the service has sent to one user in
    one turn of the loop.
    """

    def __init__(
        self,
        target: OpensSockets,
        answer: Callable[[list[Datagram]], None],
        meter: Meter,
        limits: Limits,
        log: logger.Logger,
    ) -> None:
        self._target = target
        self._answer = answer
        self._meter = meter
        self._log = log
        self._failures = logger.Burst()  # warnings about sessions that could not begin
        self._strays = logger.Burst()  # warnings about datagrams from elsewhere
        self._conns: PeerTable[DatagramConn] = PeerTable(limits.sessions, limits.timeout_s, self._on_end)
        self._new = Bucket(limits.new)  # how many sessions may begin
        # Makes what stands in front of the first datagram of a session, of the packed address of the user.
        self.header_of: Callable[[bytes], bytes] | None = None

    def __len__(self) -> int:
        return len(self._conns)

    def send(self, datagrams: list[Datagram]) -> None:
        """Send datagrams to the service, each from the socket of its user."""
        find, now_s = self._conns.get, time.monotonic()
        for user, payload in datagrams:
            conn = find(user)
            if conn is None or now_s > conn.look_s:
                known, was_refused = conn, conn is not None and conn.is_refused
                conn = self._begin(user) if conn is None else self._look_at(user, conn)
                if conn is None:
                    self._meter.dropped += 1
                    continue
                if self.header_of is not None and (conn is not known or was_refused):
                    self._introduce(user, conn, payload, self.header_of)
                    continue
            conn.used_s = now_s
            if conn.standing == ANSWERED:
                self._conns.promote(user, conn)
            if not conn.send(payload):
                self._meter.dropped += 1

    def _introduce(
        self, user: bytes, conn: DatagramConn, payload: bytes, header_of: Callable[[bytes], bytes]
    ) -> None:
        """Send a datagram with a header: the first of a session, or the first behind a refusal.

        If both do not fit into one, or cannot be sent, the session begins with the next datagram.
        """
        conn.used_s = time.monotonic()
        if not conn.send(header_of(user) + payload):
            self._meter.dropped += 1
            self._conns.end(user)

    def _on_answers(self, datagrams: list[Datagram]) -> None:
        user = datagrams[0][0]
        conn = self._conns.get(user)
        if conn is None:  # it has ended
            return
        began_s = conn.used_s
        if conn.standing == UNANSWERED:
            self._conns.promote(user, conn)
        self._answer(datagrams)
        pause_s = share.pause_after(began_s)
        if pause_s and len(datagrams) == BATCH:  # so that what users send has its turn
            conn.pause(pause_s)

    def _on_stray(self, conn: DatagramConn, source: Sockaddr) -> None:
        """Count and tell of a datagram from elsewhere: a service with several addresses, or TFTP."""
        self._meter.dropped += 1
        self._strays.warning(
            self._log,
            "dropped an answer from %s instead of %s; udp-any-source lets such answers through",
            format_address(source),
            format_address(conn.address),
        )

    def end_first(self) -> None:
        """End the session that has to go first; there has to be one."""
        self._conns.end_first()

    def close(self) -> None:
        """End all sessions."""
        self._conns.close()

    # ---- beginning and ending ------------------------------------------------------------------------------

    def _begin(self, user: bytes) -> DatagramConn | None:
        """Return the socket of a new session; None if the service cannot be reached, or many others begin."""
        if not self._new.take_now(1):
            return None
        try:
            conn = self._open()
        except DialError as exc:
            self._failures.warning(self._log, "no session with the local service: %s", exc)
            return None
        self._failures.end(self._log)
        self._conns.add(user, conn)
        conn.serve(self._on_answers, user, self._on_stray)
        self._meter.begin_session()
        _all.count += 1
        _all.owners.add(self)
        conn.is_asked, conn.look_s = True, conn.used_s + SILENT_S
        return conn

    def _open(self) -> DatagramConn:
        """Return a new socket; if there are too many files, another session ends. Raises `DialError`."""
        if _all.count >= (most := _all.most()):
            _all.make_room(self, f"UDP has {most} descriptors, half of what this process may have")
        elif _all.count and not descriptors.has_room(1):
            _all.make_room(self, descriptors.why_short)
        try:
            return self._target.open()
        except DialError as exc:
            if not _all.count or not is_out_of_files(exc):
                raise
            _all.make_room(self, str(exc))
        return self._target.open()

    def _look_at(self, user: bytes, conn: DatagramConn) -> DatagramConn | None:
        """The service refuses datagrams, or says nothing: return the same socket or a better one."""
        now_s = time.monotonic()
        if conn.is_refused:
            conn.is_refused, conn.is_asked, conn.look_s = False, True, now_s + SILENT_S
            is_better = self._target.refused(conn)
        elif conn.is_asked:
            conn.look_s = now_s + RECHECK_S
            is_better = self._target.silent(conn)
        else:  # nobody was asked for a while: the silence begins now
            conn.is_asked, conn.look_s = True, now_s + SILENT_S
            is_better = False
        if not is_better:
            return conn
        self._conns.end(user)
        return self._begin(user)

    def _on_end(self, _user: bytes, conn: DatagramConn) -> None:
        conn.close()
        self._meter.end_session()
        _all.count -= 1
        if not self._conns:
            _all.owners.discard(self)
