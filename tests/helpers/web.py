"""An HTTP service of ours in this process, and peers that send it bytes."""

from __future__ import annotations

import io
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from typing import Any, cast

import gevent

from gnar_lib.errors import ConnError, WriteError
from gnar_lib.http import Request, Response, Routes, Service
from gnar_lib.net import Crew, SocketConn, deadline, dial, listen
from tests.helpers.loop import wait_until
from tests.peers.mux import clean

LOOPBACK = "127.0.0.1"
WAIT_S = 20.0


class Served:
    """A service that listens on a port of this process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.crew = Crew("http")
        self._listener = listen(LOOPBACK, 0)
        self._listener.serve(self.crew, service.serve)
        self.port = self._listener.port

    def dial(self) -> SocketConn:
        """Return a connection to the service; the caller closes it."""
        return dial(socket.AF_INET, (LOOPBACK, self.port))

    def ask(self, data: bytes, pieces: Iterable[bytes] = (), *, end: bool = False) -> bytes:
        """Send bytes, in pieces if these are given, and return all that comes back.

        The service gets each piece by itself. With `end`, the peer says that nothing else follows.
        """
        conn = self.dial()
        try:
            with deadline(WAIT_S, "an answer"):
                for piece in pieces or [data]:
                    with suppress(WriteError):  # the service has had enough
                        conn.sendall(piece)
                    gevent.idle()  # the service reads the piece
                if end:
                    conn.shutdown(socket.SHUT_WR)
                return received(conn)
        finally:
            conn.close()

    def close(self) -> None:
        """Stop listening, end everything, and see that nothing stays."""
        self._listener.close()
        self.service.close()
        self.crew.kill()
        wait_until(lambda: not len(self.crew), "no connection is served")
        assert len(self.service.crowd) == self.service.crowd.streams == 0


def received(conn: SocketConn) -> bytes:
    """Return all that comes, to the end of the stream or to a reset."""
    data = bytearray()
    try:
        while piece := conn.recv(1 << 16):
            data += piece
    except ConnError:
        data += b"[reset]"
    return bytes(data)


@contextmanager
def serving(routes: Routes | None = None, **options: Any) -> Iterator[Served]:
    """Serve some routes for the block; fails if anything stays behind."""
    with clean(4 * WAIT_S):
        served = Served(Service(routes or echo_routes(), **options))
        try:
            yield served
        finally:
            served.close()


def curl(served: Served, *arguments: str) -> str:
    """Return what curl writes; "@" in an argument is the address of the service."""
    where = f"http://{LOOPBACK}:{served.port}"
    return output_of("curl", "-sS", "--noproxy", "*", *(each.replace("@", where) for each in arguments))


def output_of(*command: str) -> str:
    """Return what a program writes, which this process serves meanwhile."""
    # Not waited for by gevent.subprocess: from then on, that would take the exit status of every child of
    # this process, also of those that other tests start.
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: running.poll() is not None, f"{command[0]} has ended")
        finally:
            running.kill()
            running.wait()
        output.seek(0)
        shown = output.read()
    assert running.returncode == 0, shown
    return shown


def echo_routes() -> Routes:
    """Return routes that show what they were asked."""
    routes = Routes()
    routes.add("GET", "/", lambda _request: Response(200, b"home"))
    routes.add("POST", "/echo", lambda request: Response(200, request.body))
    routes.add("GET", "/show/{name}", show)
    return routes


def show(request: Request, name: str) -> Response:
    """Answer with the request as JSON."""
    shown = {"name": name, "path": request.path, "query": request.query, "headers": request.headers}
    return Response.json({**shown, "method": request.method, "version": request.version})


@dataclass(frozen=True)
class Got:
    """A response as the standard library reads it."""

    status: int
    headers: Message
    body: bytes


def responses(data: bytes, methods: Iterable[str] = ()) -> list[Got]:
    """Return the responses that some bytes consist of; `methods` are those of the requests if not GET."""
    stream = io.BytesIO(data)
    order = iter(methods)
    found = []
    while stream.tell() < len(data):
        response = HTTPResponse(cast("socket.socket", _Unclosed(stream)), method=next(order, "GET"))
        response.begin()
        found.append(Got(response.status, response.headers, response.read()))
    return found


class _Unclosed:
    """A stream as what `HTTPResponse` takes for a socket: it must not close the stream."""

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream

    def makefile(self, _mode: str) -> _Unclosed:
        return self

    def close(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
