"""Copies a part of what a conn brings: so many bytes, or a chunked body; what follows stays unread.

Knows neither requests nor answers. Bulk goes through a pipe where the kernel can do that, as in `stream`.
"""

from __future__ import annotations

import sys

from gnar_lib.errors import ConnClosed
from gnar_lib.http.chunks import Chunks
from gnar_lib.net import LENT_BYTES, Conn, SocketConn, give_way
from gnar_lib.pio.flow import Flow
from gnar_lib.proxy.buffer import FULL_IN_A_ROW, send_counted
from gnar_lib.proxy.ways import BULK_READS
from gnar_lib.yamux import Stream

if sys.platform == "linux":
    from gnar_lib.proxy.splice import Pipe, splice_length

BULK_BYTES = 256 * 1024  # from here on, a pipe pays
MOVE_BYTES = 1 << 20  # that are still to come: from here on, a connection of its own beside a stream pays
SMALL_CHUNKS_BYTES = 4096  # of a body in tiny chunks, read at once: each chunk takes time
MANY_CHUNKS = 64  # in one read: they are tiny


def copy_length(src: Conn, dst: Conn, count: int, flow: Flow) -> None:
    """Copy `count` bytes. Raises `ConnClosed` if `src` ends before, or another `ConnError`."""
    full = 0
    while count:
        if isinstance(dst, Stream) and full == BULK_READS and count >= MOVE_BYTES:
            dst.ask_beside()
        if sys.platform == "linux" and count >= BULK_BYTES and full:  # the first read has been full
            left = _copy_spliced(src, dst, count, flow)
            if left < count:
                count = left
                continue
        lent = src.borrow()
        if not lent:
            raise ConnClosed(f"{src}: ended within a body")
        if len(lent) > count:
            src.unread(bytes(lent[count:]))
            lent = lent[:count]
        count -= len(lent)
        full = full + 1 if len(lent) == LENT_BYTES else 0
        send_counted(lent, dst, flow)
        if full and full % FULL_IN_A_ROW == 0:
            give_way()  # nothing here ever waits while both ends keep up


if sys.platform == "linux":

    def _copy_spliced(src: Conn, dst: Conn, count: int, flow: Flow) -> int:
        """Copy through a pipe, and return how many of `count` bytes are left: all of them without a pipe.

        A stream is as good as the socket over which it goes on.
        """
        if isinstance(src, Stream):
            src = src.reads_on or src
        if isinstance(dst, Stream):
            dst = (dst.move() and dst.sends_on) or dst
        if not (isinstance(src, SocketConn) and isinstance(dst, SocketConn)) or src.has_unread:
            return count
        pipe = Pipe.take()
        if pipe is None:
            return count
        try:
            left = splice_length(src, dst, count, flow, pipe)
        except BaseException:
            pipe.discard()
            raise
        pipe.keep()
        return left


def copy_chunked(src: Conn, dst: Conn, chunks: Chunks, flow: Flow) -> None:
    """Copy a chunked body, of which `chunks` may have seen the beginning, to its end.

    Raises `ProtocolError` if the body is malformed: then nothing of the last read has been sent.
    """
    size = LENT_BYTES
    while not chunks.has_ended:
        data = src.recv(size)
        if not data:
            raise ConnClosed(f"{src}: ended within a body")
        before = chunks.count
        taken = chunks.feed(data)
        if taken < len(data):
            src.unread(data[taken:])
            data = data[:taken]
        send_counted(data, dst, flow)
        size = SMALL_CHUNKS_BYTES if chunks.count - before > MANY_CHUNKS else LENT_BYTES
        if len(data) >= SMALL_CHUNKS_BYTES:
            give_way()
