"""What users who mean harm may do at the web port, and what that costs others."""

from __future__ import annotations

import gc
import time
import tracemalloc

from gnar_lib.http.heads import read_request
from gnar_lib.http.limits import Limits
from gnar_lib.net import SocketConn
from gnar_lib.server.web.forwarded import Peer, Trust
from tests.helpers.sites import read_until, scripted, site_before

END = b"\r\n\r\n"
CONNS = 64
MORE_KIB = (
    16  # of one connection, with that to the service; the heads alone have 56 KiB, without their fields
)
SHORT, LONG = b"", b"".join(b"X%d: %b\r\n" % (number, b"y" * 140) for number in range(190))


def held_kib(fields: bytes) -> float:
    """Return the memory of each connection on which a request and an answer had these fields."""

    def serve(conn: SocketConn) -> None:
        while read_until(conn, END):
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + fields + b"\r\n")

    def ask(conn: SocketConn) -> None:
        conn.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
        assert read_until(conn, END).startswith(b"HTTP/1.1 200")

    with scripted(serve) as service, site_before(service.port) as site:
        conns = [site.dial() for _ in range(CONNS + 1)]
        ask(conns[0])  # loads what is loaded once
        gc.collect()
        tracemalloc.start()
        try:
            for conn in conns[1:]:
                ask(conn)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] / 1024
        finally:
            tracemalloc.stop()
        for conn in conns:
            conn.close()
    return held / CONNS


def test_connections_that_wait_remember_no_long_heads() -> None:
    short_kib, long_kib = held_kib(SHORT), held_kib(LONG)
    assert long_kib < short_kib + MORE_KIB


def test_a_long_list_of_addresses_takes_no_longer_than_a_short_one() -> None:
    peer = Peer(("127.0.0.1", 1), "http", Trust(["127.0.0.0/8"]))
    took_s = []
    for said in (b"127.0.0.1," * 32, b"127.0.0.1," * 400):
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1," + said + b"\r\n\r\n"
        request = read_request(head, Limits())
        began_s = time.process_time()
        users = {peer.origin_of(request).user for _ in range(20)}
        took_s.append(time.process_time() - began_s)
        assert users == {"127.0.0.1"}  # whoever stands before so many proxies is not looked for
    assert took_s[1] < 4 * took_s[0], took_s
