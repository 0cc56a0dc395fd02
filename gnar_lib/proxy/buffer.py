"""Copies one direction through a buffer that all connections share; any two conns will do."""

from __future__ import annotations

from gnar_lib.net import Conn
from gnar_lib.proxy.flow import Flow

# Large enough that a bulk transfer shows itself by a full read, and that a short send leaves little to keep.
BUFFER_BYTES = 64 * 1024

# One for all: nothing switches to another greenlet between a read that returned and the send behind it.
_buffer = memoryview(bytearray(BUFFER_BYTES))


def copy_buffered(src: Conn, dst: Conn, flow: Flow, *, until_bulk: bool = False) -> bool:
    """Copy until the end of the stream and return True.

    With `until_bulk` return False as soon as a read filled the whole buffer (its bytes were sent): there is
    a faster way for what follows.
    """
    buffer, bucket = _buffer, flow.bucket
    while count := src.recv_into(buffer):
        flow.bytes += count
        if bucket is None:
            sent = dst.send_now(buffer[:count])
            if sent < count:  # what is left over must leave the buffer before anything waits
                dst.sendall(bytes(buffer[sent:count]))
        else:
            rest = bytes(buffer[:count])
            while rest:
                granted = bucket.take(len(rest))
                dst.sendall(rest[:granted])
                rest = rest[granted:]
        if until_bulk and count == BUFFER_BYTES:
            return False
    return True
