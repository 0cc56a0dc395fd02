"""The conn beside a stream: bulk goes on there, so that it neither fills the session nor waits for a window.

Each direction goes over by itself, and once. Both ends have the conn before either of them uses it: an end
that cannot bring one leaves the stream as it is.
"""

from __future__ import annotations

from typing import Final

from gnar_lib.net import EventedConn

# Flags of WindowUpdate frames, beyond those of hashicorp/yamux: only peers that have agreed on it get them.
MOVED: Final = 0x10  # with FIN: what the sender of this frame sends next comes over that conn
ASK: Final = 0x20  # the other end is to bring a conn
READY: Final = 0x40  # the conn that the other end has brought is there
BESIDE_FLAGS: Final = MOVED | ASK | READY


class Beside:
    """The conn beside one stream, which closes it, and what goes over the conn.

    The end of a direction there is the end of what the user has sent. So a process that is killed must not
    end it in order, as the kernel would otherwise.
    """

    __slots__ = ("conn", "is_ready", "receives", "sends")

    def __init__(self, conn: EventedConn, *, is_ready: bool) -> None:
        self.conn = conn
        conn.reset_if_killed(wanted=True)
        self.is_ready = is_ready  # the peer has the conn, too
        self.sends = False  # what this end sends goes over the conn
        self.receives = False  # what the peer sends comes over the conn, once the stream has been read

    def close(self) -> None:
        """Close the conn in order; more than once does no harm."""
        if not self.conn.closed:  # else it was reset
            self.conn.reset_if_killed(wanted=False)
            self.conn.close()
