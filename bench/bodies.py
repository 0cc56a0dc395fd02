"""Serves HTTP bodies, and moves them as a user does; a program of its own that prints JSON.

    bodies.py serve IP PORT                   answers GET /N with N bytes, and PUT after the whole body
    bodies.py get IP PORT HOST PATH SECONDS   gets a path over one connection, again and again until the time
                                              is up
    bodies.py put IP PORT HOST BYTES SECONDS  puts bodies of that size, as `get` gets them

A user prints the bytes of all bodies and the seconds. An answer that is incomplete, or whose status is not
200, is an error.
The program imports nothing else of bench, so that any Python can run it.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable

TIMEOUT_S = 15.0
BUFFER_BYTES = 1 << 20
ZEROS = memoryview(bytes(BUFFER_BYTES))  # are sent as bodies
MAX_HEAD_BYTES = 1 << 16
HEAD_END = b"\r\n\r\n"


class Peer:
    """The other end of a connection: heads are read as text, bodies are only counted."""

    def __init__(self, conn: socket.socket) -> None:
        self._conn = conn
        self._rest = b""  # what came beyond the last head
        self._into = memoryview(bytearray(BUFFER_BYTES))  # for what nobody reads

    def head(self) -> tuple[str, dict[str, str]] | None:
        """Return the first line and the fields of a head; None if the peer has ended before it."""
        got = self._rest
        while HEAD_END not in got:
            more = self._conn.recv(MAX_HEAD_BYTES)
            if not more and not got:
                return None
            if not more or len(got) > MAX_HEAD_BYTES:
                raise ConnectionError("closed within a head, or the head is too long")
            got += more
        text, _, self._rest = got.partition(HEAD_END)
        first, *lines = text.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return first, {name.lower(): value.strip() for name, _, value in fields}

    def skip(self, count: int) -> None:
        """Read a body of `count` bytes; raises ConnectionError if fewer come."""
        left = count - len(self._rest[:count])
        self._rest = self._rest[count:]
        while left:
            got = self._conn.recv_into(self._into, min(left, len(self._into)))
            if not got:
                raise ConnectionError(f"closed with {left} of {count} bytes missing")
            left -= got

    def send(self, head: str, count: int = 0) -> None:
        """Send the lines of a head, and `count` bytes."""
        self._conn.sendall(head.replace("\n", "\r\n").encode() + HEAD_END)
        while count:
            part = min(count, len(ZEROS))
            self._conn.sendall(ZEROS[:part])
            count -= part


def serve(ip: str, port: int) -> None:
    """Serve for as long as the program runs, with a thread for each connection."""
    with socket.create_server((ip, port), backlog=128) as server:
        while True:
            threading.Thread(target=_serve_conn, args=(server.accept()[0],), daemon=True).start()


def _serve_conn(conn: socket.socket) -> None:
    """Answer the requests of one connection until it ends."""
    with conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(conn)
        try:
            while _answer(peer):
                pass
        except (OSError, ValueError) as exc:
            say({"error": f"{type(exc).__name__}: {exc}"})


def _answer(peer: Peer) -> bool:
    """Answer one request; return whether others may follow. Raises OSError and ValueError."""
    head = peer.head()
    if head is None:
        return False
    method, path, version = head[0].split(" ")
    if method == "PUT" and "content-length" not in head[1]:
        peer.send("HTTP/1.1 411 Length Required\nContent-Length: 0\nConnection: close")
        return False
    peer.skip(int(head[1].get("content-length", 0)))
    count = 0 if method == "PUT" else int(path[1:])
    peer.send(f"HTTP/1.1 200 OK\nContent-Length: {count}", count)
    return version == "HTTP/1.1" and head[1].get("connection", "").lower() != "close"


def get(peer: Peer, host: str, path: str) -> int:
    """Get a path once; return the bytes of the body."""
    peer.send(f"GET {path} HTTP/1.1\nHost: {host}")
    return _finish(peer)


def put(peer: Peer, host: str, count: int) -> int:
    """Put a body of `count` bytes once; return them."""
    peer.send(f"PUT /body HTTP/1.1\nHost: {host}\nContent-Length: {count}", count)
    _finish(peer)
    return count


def _finish(peer: Peer) -> int:
    """Read an answer and return the bytes of its body; raises ConnectionError unless it has status 200."""
    head = peer.head()
    if head is None:
        raise ConnectionError("closed without an answer")
    if head[0].split()[1:2] != ["200"] or "content-length" not in head[1]:
        raise ConnectionError(f"not a body of known length with status 200: {head[0]}")
    count = int(head[1]["content-length"])
    peer.skip(count)
    return count


def repeat(ip: str, port: int, seconds: float, move: Callable[[Peer], int]) -> dict[str, float]:
    """Move bodies over one connection until the time is up, but one at least; return bytes and seconds."""
    with socket.create_connection((ip, port), TIMEOUT_S) as conn:
        peer, count, start = Peer(conn), 0, time.perf_counter()
        while True:
            count += move(peer)
            took = time.perf_counter() - start
            if took >= seconds:
                return {"bytes": count, "seconds": took}


def say(what: object) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status; an error is one line on standard error."""
    what, ip, port, *rest = argv
    try:
        if what == "serve":
            serve(ip, int(port))
        elif what == "get":
            host, path, seconds = rest
            say(repeat(ip, int(port), float(seconds), lambda peer: get(peer, host, path)))
        else:
            host, size, seconds = rest
            say(repeat(ip, int(port), float(seconds), lambda peer: put(peer, host, int(size))))
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
