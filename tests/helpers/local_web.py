"""Local web services in threads of this process, and users who come to them by name."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.helpers.harness import LOOPBACK, WAIT_S, dial, wait_until

DOMAIN = "gnar.localhost"  # whose names curl and chromium look for on this machine
MIB = 1 << 20
Value = TypeVar("Value")
HALF_BYTES = 2 * MIB  # more than all buffers between service and user hold
EVENTS = 3
PAGE = b"""<!doctype html><title>by name</title><body><script>
const got = window.got = [];
new EventSource("/events").onmessage = ({ data }) => got.push(`event ${data}`);
const socket = new WebSocket(`ws://${location.host}/ws`);
socket.onopen = () => socket.send("hello");
socket.onmessage = ({ data }) => got.push(`socket ${data}`);
</script>"""


# ---- services ----------------------------------------------------------------------------------------------


class App(ThreadingHTTPServer):
    """An HTTP/1.1 service of many ways to answer; `close` ends it.

    /show answers with the request as JSON, /chunked in chunks, /page with a page, /length/N with N bytes.
    /events sends server-sent events, and /half/FRAMING half of a body; before each further event, and
    before the other half, the service waits for `go_on`. Uploads are answered with what has come.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        self.go_on = threading.Semaphore(0)
        super().__init__((LOOPBACK, 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Say nothing: users who leave are part of tests."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def port(self) -> int:
        return self.server_port


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: App

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        match path.strip("/").split("/"):
            case ["page"]:
                self._answer(PAGE, "text/html")
            case ["chunked"]:
                self._start("chunked", "text/plain")
                for piece in (b"one ", b"two ", b"three"):
                    self._send_chunk(piece)
                self._send_chunk(b"")
            case ["length", size]:
                self._answer(bytes(int(size)))
            case ["half", framing]:
                self._send_halves(framing)
            case ["events"]:
                self._send_events()
            case _:
                shown = {"method": self.command, "path": self.path, "headers": {**self.headers}}
                self._answer(json.dumps(shown).encode(), "application/json")

    def do_PUT(self) -> None:
        digest, size = hashlib.sha256(), 0
        for data in self._body():
            digest.update(data)
            size += len(data)
        self._answer(f"{size} {digest.hexdigest()}".encode())

    def _body(self) -> Iterator[bytes]:
        """Yield the body of the request."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            left = int(self.headers.get("Content-Length", 0))
            while left and (data := self.rfile.read1(min(left, MIB))):
                left -= len(data)
                yield data
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send_halves(self, framing: str) -> None:
        """Send one half of a body, wait, and send the other one."""
        self._start(framing, "application/octet-stream", 2 * HALF_BYTES)
        send = self._send_chunk if framing == "chunked" else self._send
        send(bytes(HALF_BYTES))
        self.server.go_on.acquire(timeout=3 * WAIT_S)
        send(bytes(HALF_BYTES))
        if framing == "chunked":
            send(b"")

    def _send_events(self) -> None:
        """Send events, each of which waits for `go_on`, but for the first one."""
        self._start("close", "text/event-stream")
        for number in range(EVENTS):
            if number:
                self.server.go_on.acquire(timeout=3 * WAIT_S)
            self._send(b"data: %d\n\n" % number)

    def _start(self, framing: str, kind: str, length: int = 0) -> None:
        """Send the head of an answer; `framing` is length, chunked, or close."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        match framing:
            case "length":
                self.send_header("Content-Length", str(length))
            case "chunked":
                self.send_header("Transfer-Encoding", "chunked")
            case _:
                self.close_connection = True
        self.end_headers()
        self.wfile.flush()

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _send_chunk(self, data: bytes) -> None:
        self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def _answer(self, body: bytes, kind: str = "text/plain") -> None:
        self._start("length", kind, len(body))
        self._send(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def app() -> Iterator[App]:
    """Run the service for the block."""
    running = App()
    try:
        yield running
    finally:
        running.close()


@contextmanager
def websocket_echo() -> Iterator[int]:
    """Run a service that sends each message of a WebSocket back, and yield its port."""

    def echo(conn: ServerConnection) -> None:
        for message in conn:
            conn.send(message)

    with serve(echo, LOOPBACK, 0, max_size=None, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.socket.getsockname()[1]


# ---- users -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def host_of(label: str) -> str:
    """Return the whole name of a label."""
    return f"{label}.{DOMAIN}"


def get(port: int, label: str, path: str = "/show", **fields: str) -> Got:
    """Ask for a path of a name on a connection of its own, and return the answer."""
    conn = http.client.HTTPConnection(LOOPBACK, port, timeout=2 * WAIT_S)
    with closing(conn):
        return get_on(conn, label, path, **fields)


def get_on(conn: http.client.HTTPConnection, label: str, path: str = "/show", **fields: str) -> Got:
    """Ask on a connection, which may have been used before and may be used again."""
    conn.request("GET", path, headers={"Host": host_of(label), **fields})
    answer = conn.getresponse()
    return Got(answer.status, answer.headers, answer.read())


class WebSocket:
    """A user's WebSocket to /ws of a name, by TLS if a certificate is trusted; the block's end closes it.

    One thread reads and writes: two of them must not share a TLS socket of Python's.
    """

    def __init__(self, port: int, label: str, trusted: Path | None = None) -> None:
        context = None if trusted is None else ssl.create_default_context(cafile=str(trusted))
        url = f"{'ws' if trusted is None else 'wss'}://{host_of(label)}/ws"
        self._loop = asyncio.new_event_loop()

        async def open_it() -> ClientConnection:
            return await connect(
                url, sock=dial(port), ssl=context, max_size=None, compression=None, ping_interval=None
            )

        self._conn = self._run(open_it())

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._conn.close())
        self._loop.close()

    def _run(self, waiting: Awaitable[Value]) -> Value:
        return self._loop.run_until_complete(asyncio.wait_for(waiting, 2 * WAIT_S))

    def ask(self, message: str | bytes) -> str | bytes:
        """Send a message, and return the next one that comes."""

        async def exchange() -> str | bytes:
            await self._conn.send(message)
            return await self._conn.recv()

        return self._run(exchange())

    def ping(self) -> None:
        """Wait for the answer to a ping."""

        async def exchange() -> None:
            await (await self._conn.ping())

        self._run(exchange())

    def close(self) -> int | None:
        """Close the WebSocket, and return the code that the other end has given."""
        self._run(self._conn.close())
        return self._conn.close_code


def curl(*arguments: object, status: int = 0) -> str:
    """Return what curl writes; it has to end with this status."""
    ended = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--max-time", "60", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=90,
    )
    assert ended.returncode == status, (ended.returncode, ended.stdout[:2000], ended.stderr)
    return ended.stdout.decode()


def h2load(port: int, label: str, path: str, *, requests: int, users: int) -> None:
    """Send requests on connections that stay; each has to be answered with a status 2xx."""
    there = ("--h1", f"--connect-to={LOOPBACK}:{port}", f"http://{host_of(label)}{path}")
    amount = ("-n", str(requests), "-c", str(users))
    shown = subprocess.run(
        ["h2load", *amount, *there], capture_output=True, text=True, check=True, timeout=90
    ).stdout
    assert f"{requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout" in shown, shown
    assert f"status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx" in shown, shown


class Users:
    """Users who ask for a name one after the other; `failed` has what was no answer 200.

    One half come on connections of their own, the other half on one connection.
    """

    def __init__(self, port: int, label: str) -> None:
        self.served = 0
        self.failed: list[str] = []
        self._port, self._label = port, label
        self._is_over = False
        self._threads = [threading.Thread(target=self._come, args=(stays,)) for stays in (False, True)]
        for thread in self._threads:
            thread.start()

    def _come(self, stays: bool) -> None:
        conn = http.client.HTTPConnection(LOOPBACK, self._port, timeout=2 * WAIT_S)
        while not self._is_over:
            try:
                got = get_on(conn, self._label)
                if got.status != 200:
                    self.failed.append(f"after {self.served}: {got}")
                self.served += 1
            except (OSError, http.client.HTTPException) as exc:
                self.failed.append(f"after {self.served}: {exc!r}, on a connection that stays: {stays}")
            if not stays:
                conn.close()
        conn.close()

    def wait_served(self, count: int) -> None:
        """Wait until so many more have been served."""
        wanted = self.served + count
        wait_until(lambda: self.served >= wanted or bool(self.failed), f"{count} more users are served")

    def end(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()


@contextmanager
def users_of(port: int, label: str) -> Iterator[Users]:
    """Have users ask for a name during the block, each of whom has to get an answer 200."""
    users = Users(port, label)
    try:
        users.wait_served(5)
        yield users
        users.wait_served(5)
    finally:
        users.end()
    assert not users.failed, users.failed[:5]
