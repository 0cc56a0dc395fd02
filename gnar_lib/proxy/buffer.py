"""Copies one direction in Python: two sockets through one shared buffer, other conns chunk by chunk."""

from __future__ import annotations

from gnar_lib.net import Conn
from gnar_lib.proxy.flow import Flow, TakesTokens

# Large enough that a bulk transfer shows itself by a full read, and that a short send leaves little to keep.
BUFFER_BYTES = 64 * 1024

# One for all: nothing switches to another greenlet between a read that returned and the send behind it.
_buffer = memoryview(bytearray(BUFFER_BYTES))


def copy_chunks(src: Conn, dst: Conn, flow: Flow) -> None:
    """Copy until the end of the stream, chunk by chunk: a stream of a session keeps what it is given."""
    bucket = flow.bucket
    while chunk := src.recv(BUFFER_BYTES):
        flow.bytes += len(chunk)
        if bucket is not None:
            _send_as_granted(chunk, dst, bucket)
        elif (sent := dst.send_now(chunk)) < len(chunk):
            dst.sendall(memoryview(chunk)[sent:])


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
            _send_as_granted(bytes(buffer[:count]), dst, bucket)
        if until_bulk and count == BUFFER_BYTES:
            return False
    return True


def _send_as_granted(data: bytes, dst: Conn, bucket: TakesTokens) -> None:
    """Send everything, as fast as the limit allows."""
    rest = memoryview(data)
    while rest:
        granted = bucket.take(len(rest))
        dst.sendall(rest[:granted])
        rest = rest[granted:]
