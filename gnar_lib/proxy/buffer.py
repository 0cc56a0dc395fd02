"""Copies one direction of any two conns, through memory that is borrowed for as long as nothing waits."""

from __future__ import annotations

from gevent.hub import get_hub

from gnar_lib.net import LENT_BYTES, Conn, SocketConn, give_way
from gnar_lib.pio.flow import Flow, Limit

FULL_IN_A_ROW = 8  # after so many full reads, other greenlets have their turn


def copy_buffered(src: Conn, dst: Conn, flow: Flow, *, until_bulk: bool = False) -> bool:
    """Copy until `src` has ended, and return True.

    With `until_bulk`, return False after the first read that brought as much as a read can bring, and whose
    bytes have been sent: there is a faster way to copy the bytes behind them. Raises `ConnError`.
    """
    limit = flow.limit
    if limit is None and isinstance(src, SocketConn) and isinstance(dst, SocketConn):
        return _copy_sockets(src, dst, flow, until_bulk=until_bulk)
    full, turn, loop = 0, 0.0, get_hub().loop
    while lent := src.borrow():
        count = len(lent)
        send_counted(lent, dst, flow)
        if count == LENT_BYTES:
            if until_bulk:
                return False
            if turn != loop.now():  # something has waited, and others had their turn
                full, turn = 0, loop.now()
            full += 1
            if full % FULL_IN_A_ROW == 0:
                give_way()  # nothing here ever waits while both ends keep up
    return True


def send_counted(data: memoryview | bytes, dst: Conn, flow: Flow) -> None:
    """Send bytes, which may lie in memory that is lent, as fast as the flow allows, and count them."""
    flow.bytes += len(data)
    if flow.limit is not None:
        _send_as_granted(bytes(data), dst, flow.limit)
    elif (sent := dst.send_now(data)) < len(data):
        dst.sendall(bytes(data[sent:]))


def _copy_sockets(src: SocketConn, dst: SocketConn, flow: Flow, *, until_bulk: bool) -> bool:
    full = 0
    while True:
        lent, sent = src.pass_on(dst, flow)
        count = len(lent)
        if sent < count:
            dst.sendall(bytes(lent[sent:]))
        if not count:
            return True
        if count == LENT_BYTES:
            if until_bulk:
                return False
            full += 1
            if full % FULL_IN_A_ROW == 0:
                give_way()  # as above


def _send_as_granted(data: bytes, dst: Conn, limit: Limit) -> None:
    """Send all bytes, as fast as the limit allows."""
    rest = memoryview(data)
    while rest:
        granted = limit.take(len(rest))
        dst.sendall(rest[:granted])
        rest = rest[granted:]
