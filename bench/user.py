"""Plays users on a host, for the long path and idle connections; a program of its own that prints JSON lines.

    user.py first IP PORT COUNT [PAUSE_S]   milliseconds from connect to the first byte of an HTTP answer, of
                                            users one after the other
    user.py together IP PORT USERS          milliseconds until the last of many users at the same time has its
                                            first byte
    user.py busy IP PORT COUNT              like `first`, while another connection downloads
    user.py mixed IP PORT KEPT SHORT SECONDS
                                            milliseconds of the requests of users side by side: of KEPT ones
                                            whose connection stays, of SHORT ones with another each time
    user.py hold IP PORT COUNT              opens connections, uses each once, and holds them until standard
                                            input closes; then prints how many were lost

The program imports nothing else of bench, so that any Python can run it.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
import time

TIMEOUT_S = 15.0
PAUSE_S = 0.3  # between two users, so that a tunnel can open new waiting connections
WARM_UP_S = 2.0  # for a download to reach its speed
READ_BYTES = 1 << 20
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
DOWNLOAD = b"GET /big HTTP/1.1\r\nHost: bench\r\n\r\n"


def first_byte_ms(ip: str, port: int) -> float:
    """Open a connection; return the milliseconds from connect to the first byte of the answer."""
    start = time.perf_counter()
    with socket.create_connection((ip, port), TIMEOUT_S) as conn:
        conn.sendall(REQUEST)
        if not conn.recv(1):
            raise ConnectionError("closed without an answer")
        return (time.perf_counter() - start) * 1e3


def first(ip: str, port: int, count: int, pause_s: float = PAUSE_S) -> list[float]:
    """Return the milliseconds to the first byte, of `count` users one after the other."""
    times = []
    for _ in range(count):
        time.sleep(pause_s)
        times.append(first_byte_ms(ip, port))
    return times


def together(ip: str, port: int, users: int) -> float:
    """Return the milliseconds until the last of `users` users at the same time has its first byte."""
    time.sleep(PAUSE_S)
    start, waiting = time.perf_counter(), users
    with selectors.DefaultSelector() as selector:
        for _ in range(users):
            conn = socket.socket()
            conn.setblocking(False)
            conn.connect_ex((ip, port))
            selector.register(conn, selectors.EVENT_WRITE, conn)
        while waiting:
            events = selector.select(TIMEOUT_S)
            if not events:
                raise TimeoutError(f"{waiting} of {users} users had no answer in {TIMEOUT_S:.0f} s")
            for key, mask in events:
                waiting -= _on_ready(selector, key.data, mask)
        return (time.perf_counter() - start) * 1e3


def _on_ready(selector: selectors.BaseSelector, conn: socket.socket, mask: int) -> int:
    """Send the request of a user, or read the answer and close; return 1 when the answer has come, else 0."""
    if mask & selectors.EVENT_WRITE:
        conn.sendall(REQUEST)  # raises the error of a failed connect
        selector.modify(conn, selectors.EVENT_READ, conn)
        return 0
    if not conn.recv(1):
        raise ConnectionError("closed without an answer")
    selector.unregister(conn)
    conn.close()
    return 1


def busy(ip: str, port: int, count: int) -> dict[str, object]:
    """Measure as `first` does, while another connection downloads; return times and the download's Mbit/s."""
    done, got = threading.Event(), [0]
    with socket.create_connection((ip, port), TIMEOUT_S) as conn:
        conn.sendall(DOWNLOAD)
        reader = threading.Thread(target=_download, args=(conn, done, got))
        reader.start()
        try:
            time.sleep(WARM_UP_S)
            before, start = got[0], time.perf_counter()
            times = first(ip, port, count)
            rate = (got[0] - before) * 8 / 1e6 / (time.perf_counter() - start)
        finally:
            done.set()
            reader.join(TIMEOUT_S + 1)
    return {"ms": times, "mbit": rate}


def _download(conn: socket.socket, done: threading.Event, got: list[int]) -> None:
    """Read until `done` is set; counts the bytes in `got[0]`."""
    buffer = memoryview(bytearray(READ_BYTES))
    while not done.is_set():
        try:
            count = conn.recv_into(buffer)
        except OSError:
            count = 0
        if not count:
            return
        got[0] += count


class _Visitor:
    """A user who asks again and again, on one connection or with a new one for each request.

    The time of a request on a new connection is from connect. Users do not time the first request of a
    connection that stays.
    """

    def __init__(self, address: tuple[str, int], selector: selectors.BaseSelector, *, stays: bool) -> None:
        self.times: list[float] = []  # milliseconds of each request
        self._address, self._selector, self._stays = address, selector, stays
        self._is_first = True
        self._connect()

    def _connect(self) -> None:
        self._start, self._answer = time.perf_counter(), b""
        self._conn = socket.socket()
        self._conn.setblocking(False)
        self._conn.connect_ex(self._address)
        self._selector.register(self._conn, selectors.EVENT_WRITE, self)

    def on_ready(self, mask: int, end: float) -> None:
        """Send the request, or read of its answer and ask again, unless the time is over."""
        if mask & selectors.EVENT_WRITE:
            self._conn.sendall(REQUEST)  # raises the error of a failed connect
            self._selector.modify(self._conn, selectors.EVENT_READ, self)
            return
        got = self._conn.recv(READ_BYTES)
        if not got:
            raise ConnectionError("closed without a whole answer")
        self._answer += got
        if is_whole(self._answer):
            self._on_answer(end)

    def _on_answer(self, end: float) -> None:
        now = time.perf_counter()
        if not self._is_first or not self._stays:
            self.times.append((now - self._start) * 1e3)
        self._is_first, is_over = False, now >= end
        if self._stays and not is_over:
            self._start, self._answer = now, b""
            self._conn.sendall(REQUEST)
            return
        self._selector.unregister(self._conn)
        self._conn.close()
        if not is_over:
            self._connect()


def is_whole(answer: bytes) -> bool:
    """Tell whether an answer of HTTP with a Content-Length is there to the end."""
    head, ends, body = answer.partition(b"\r\n\r\n")
    _, found, length = head.lower().partition(b"\r\ncontent-length:")
    return bool(ends and found) and len(body) >= int(length.split(b"\r\n")[0])


def _times_of(users: list[_Visitor]) -> list[float]:
    return [time_ms for user in users for time_ms in user.times]


def mixed(ip: str, port: int, kept: int, short: int, seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of the requests of both kinds of users, who come side by side.

    Requests that are under way in the end are waited for: the slowest would be missing otherwise.
    """
    end = time.perf_counter() + seconds
    with selectors.DefaultSelector() as selector:
        users = [_Visitor((ip, port), selector, stays=number < kept) for number in range(kept + short)]
        while selector.get_map():
            events = selector.select(TIMEOUT_S)
            if not events:
                raise TimeoutError(f"no answer to anybody in {TIMEOUT_S:.0f} s")
            for key, mask in events:
                key.data.on_ready(mask, end)
    return {"kept": _times_of(users[:kept]), "short": _times_of(users[kept:])}


def hold(ip: str, port: int, count: int) -> None:
    """Open connections, send one request over each, and hold them until standard input closes."""
    conns: list[socket.socket] = []
    start = time.perf_counter()
    try:
        for _ in range(count):
            conn = socket.create_connection((ip, port), TIMEOUT_S)
            conns.append(conn)
            conn.sendall(REQUEST)
            if not conn.recv(READ_BYTES):
                raise ConnectionError(f"connection {len(conns)} was closed without an answer")
        say({"held": len(conns), "seconds": time.perf_counter() - start})
        sys.stdin.read()
        say({"lost": sum(map(_is_closed, conns))})
    finally:
        for conn in conns:
            conn.close()


def _is_closed(conn: socket.socket) -> bool:
    """Tell whether the other side has closed a connection."""
    conn.setblocking(False)
    try:
        return conn.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def say(what: object) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status; an error is one line on standard error."""
    what, ip, port, count = argv[0], argv[1], int(argv[2]), int(argv[3])
    try:
        if what == "first":
            say({"ms": first(ip, port, count, *map(float, argv[4:]))})
        elif what == "together":
            say({"ms": together(ip, port, count)})
        elif what == "busy":
            say(busy(ip, port, count))
        elif what == "mixed":
            say(mixed(ip, port, count, int(argv[4]), float(argv[5])))
        else:
            hold(ip, port, count)
    except OSError as exc:
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
