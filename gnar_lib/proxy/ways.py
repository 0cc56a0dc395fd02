"""Copies one direction to its end, in the fastest way that both conns allow at each moment.

Knows neither pairs nor users. A direction begins with reads into a shared buffer, since most connections are
short. When a read shows that bulk has begun, and both conns are plain sockets, the kernel moves the bytes
(`splice.py`) until the bulk is over. Bulk on a stream of a multiplexed session goes on over a conn beside the
stream, if both ends have one there, and then is between two sockets as well.
"""

from __future__ import annotations

import sys

from gnar_lib.net import Conn, SocketConn, give_way
from gnar_lib.pio.flow import Flow
from gnar_lib.proxy.buffer import FULL_IN_A_ROW, copy_buffered
from gnar_lib.yamux import Stream

if sys.platform == "linux":
    from gnar_lib.proxy.splice import Pipe, copy_spliced

BULK_READS = 4  # full reads, of 64 KiB each: then a direction of a stream is worth a connection of its own
ASK_AGAIN_READS = 512  # full reads after which such a connection is asked for again, if none has come


def copy_to_end(src: Conn, dst: Conn, flow: Flow) -> None:
    """Copy one direction until `src` has ended; raises `ConnError`."""
    if isinstance(src, Stream):
        _copy_from_stream(src, dst, flow)
    elif isinstance(src, SocketConn):
        src.keep_reading = True  # from here on, this greenlet waits only for conns
        try:
            _copy_from_socket(src, dst, flow)
        finally:  # the end of a stream can be read again and again: a watcher would keep the loop busy
            src.stop_reading()
    else:
        copy_buffered(src, dst, flow)


def _copy_from_stream(src: Stream, dst: Conn, flow: Flow) -> None:
    if flow.limit is None:
        while rest := src.pass_on(dst.send_now, flow):
            dst.sendall(bytes(rest))
    else:
        while not copy_buffered(src, dst, flow, until_bulk=True) and src.reads_on is None:
            pass
    if (conn := src.reads_on) is not None:
        copy_to_end(conn, dst, flow)


def _copy_from_socket(src: SocketConn, dst: Conn, flow: Flow) -> None:
    if isinstance(dst, Stream):
        moved_to = dst.sends_on or _copy_until_moved(src, dst, flow)
        if moved_to is None:
            return
        dst = moved_to
    if sys.platform == "linux" and isinstance(dst, SocketConn):
        _copy_between_sockets(src, dst, flow)
    else:
        copy_buffered(src, dst, flow)


def _copy_until_moved(src: SocketConn, dst: Stream, flow: Flow) -> Conn | None:
    """Copy until `src` has ended, or until the direction goes on over the conn beside `dst`: return that."""
    full = 0
    while not copy_buffered(src, dst, flow, until_bulk=True):
        full += 1
        if full >= BULK_READS:
            if full % ASK_AGAIN_READS == BULK_READS:
                dst.ask_beside()
            if dst.move():
                return dst.sends_on
        if full % FULL_IN_A_ROW == 0:
            give_way()  # nothing here ever waits while both ends keep up
    return None


if sys.platform == "linux":

    def _copy_between_sockets(src: SocketConn, dst: SocketConn, flow: Flow) -> None:
        while not copy_buffered(src, dst, flow, until_bulk=True):
            pipe = Pipe.take()
            if pipe is None:
                copy_buffered(src, dst, flow)
                return
            try:
                ended = copy_spliced(src, dst, flow, pipe)
            except BaseException:
                pipe.discard()
                raise
            pipe.keep()
            if ended:
                return
