"""The orderly end of a session's conn: the peer gets what was sent last, and closes first.

A conn that is closed while its peer still sends is reset, and with it goes what the peer has not received. So
the conn ends its direction behind the last frame, and is read until the peer has ended, too.
"""

from __future__ import annotations

import socket

from gnar_lib.errors import ConnError
from gnar_lib.net import Crew, EventedConn, deadline, give_way

PART_S = 10.0  # for a peer that does not end
MAX_PARTING = 128  # conns; a further one is closed at once
MAX_OWED_BYTES = 8 << 20  # that all of them together have yet to send
READ_BYTES = 64 * 1024

parting = Crew("parting")  # a greenlet for each conn; whoever ends the process waits for them


class _Owed:
    """How many bytes all conns that part have yet to send."""

    count = 0


def part(conn: EventedConn, rest: bytes) -> None:
    """Send `rest`, wait until the peer has ended, and close `conn`; returns at once."""
    conn.call_when_readable(None)
    conn.call_when_writable(None)
    if len(parting) >= MAX_PARTING or _Owed.count + len(rest) > MAX_OWED_BYTES:
        conn.close()
    else:
        _Owed.count += len(rest)
        parting.spawn(_part, conn, rest)


def _part(conn: EventedConn, rest: bytes) -> None:
    try:
        with deadline(PART_S, "the end of a session"):
            conn.sendall(rest)
            conn.shutdown(socket.SHUT_WR)
            while conn.recv(READ_BYTES):
                give_way()
    except ConnError:
        pass  # the peer has gone, or never ends
    finally:
        _Owed.count -= len(rest)
        conn.close()
