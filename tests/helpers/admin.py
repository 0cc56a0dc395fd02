"""Asks at admin ports: of a process, as any program would, or of a server in this process."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from gnar_lib.config import AdminConfig
from gnar_lib.config.model import NO_SECRET, Secret
from gnar_lib.net import SocketConn, deadline, dial
from gnar_lib.server.admin.serve import Admin
from tests.helpers.servers import Running, serving
from tests.helpers.web import responses

LOOPBACK = "127.0.0.1"
WAIT_S = 20.0
PASSWORD = "an open sesame"
READ_TOKEN = "only a look"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The body as a JSON value."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Told:
    """One event of an event stream."""

    name: str
    data: Any
    id: str


def told_of(block: str) -> Told | None:
    """Return the event that some lines make; None for a comment."""
    lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
    fields = {name: value for name, _, value in lines}
    return Told(fields["event"], json.loads(fields["data"]), fields.get("id", "")) if fields else None


# ---- a process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asker:
    """A program that asks at an admin port of another process."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def with_secret(self, secret: str, **headers: str) -> Asker:
        """Return one that gives a password or a token with each request."""
        return Asker(self.port, {**self.headers, "Authorization": f"Bearer {secret}", **headers})

    def __call__(self, method: str, path: str, value: object = None, **headers: str) -> Answer:
        """Ask, with a JSON value as the body if one is given."""
        with closing(self._ask(method, path, value, headers)) as conn:
            answer = conn.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str) -> Any:
        """Return what a path of the API tells."""
        answer = self("GET", f"/api/v1/{path}")
        assert answer.status == 200, answer
        return answer.json

    def _ask(self, method: str, path: str, value: object, headers: dict[str, str]) -> HTTPConnection:
        conn = HTTPConnection(LOOPBACK, self.port, timeout=WAIT_S)
        sent = {**self.headers, **headers}
        body = None if value is None else json.dumps(value).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        conn.request(method, path, body, sent)
        return conn

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[Iterator[Told]]:
        """Yield the events of an event stream."""
        with closing(self._ask("GET", path, None, headers)) as conn, conn.getresponse() as answer:
            assert answer.status == 200, answer.read()
            assert answer.headers["Content-Type"] == "text/event-stream"
            yield _events_of(answer)


def _events_of(answer: HTTPResponse) -> Iterator[Told]:
    block = ""
    while line := answer.readline().decode():
        if line != "\n":
            block += line
        else:
            told, block = told_of(block), ""
            if told is not None:
                yield told


# ---- this process ------------------------------------------------------------------------------------------


@dataclass
class Page:
    """A port of this process at which pages ask; other greenlets go on while a test asks."""

    port: int

    def ask(self, method: str, path: str, body: bytes = b"", /, **headers: str) -> Answer:
        """Ask with these header fields, in whose names "_" is a hyphen."""
        conn = self._send(method, path, body, headers, "1.1")
        try:
            data = bytearray()
            while piece := conn.recv(1 << 16):
                data += piece
        finally:
            conn.close()
        (got,) = responses(bytes(data), [method])
        return Answer(got.status, got.headers, got.body)

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str], version: str) -> SocketConn:
        sent = {"Host": f"localhost:{self.port}", "Connection": "close"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            sent |= {"Content-Length": str(len(body))}
        lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in sent.items())]
        conn = dial(socket.AF_INET, (LOOPBACK, self.port))
        conn.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return conn

    def post(self, path: str, value: object, **headers: str) -> Answer:
        """Ask by POST with a JSON value."""
        return self.ask("POST", path, json.dumps(value).encode(), Content_Type="application/json", **headers)

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[Callable[[], Told | None]]:
        """Yield a function that returns the next event of an event stream, None at its end."""
        conn = self._send("GET", path, b"", headers, "1.0")  # so that the stream comes without chunks
        received = bytearray()

        def take(end: bytes) -> bytes | None:
            while (at := received.find(end)) < 0:
                data = conn.recv(1 << 16)
                if not data:
                    return None
                received.extend(data)
            taken = bytes(received[:at])
            del received[: at + len(end)]
            return taken

        def take_event() -> Told | None:
            while (block := take(b"\n\n")) is not None:
                if (told := told_of(block.decode())) is not None:
                    return told
            return None

        try:
            head = take(b"\r\n\r\n")
            assert head is not None
            assert b" 200 " in head.partition(b"\r\n")[0], head
            yield take_event
        finally:
            conn.close()


@dataclass
class Watched(Page):
    """A server in this process with its admin port."""

    running: Running
    admin: Admin

    def get(self, path: str) -> Any:
        """Return what a path of the API tells without a password."""
        answer = self.ask("GET", f"/api/v1/{path}")
        assert answer.status == 200, answer
        return answer.json


@contextmanager
def watched(password: str = "", read_token: str = "", **settings: Any) -> Iterator[Watched]:
    """Run a server with its admin port, and with further settings, for the block."""
    secrets = [Secret(text) if text else NO_SECRET for text in (password, read_token)]
    with serving(admin=AdminConfig(0, LOOPBACK, *secrets), **settings) as running:
        server = running.server
        admin = Admin(server.shared, server.control_ingress)
        port = admin.start()
        try:
            with deadline(WAIT_S, "the test"):
                yield Watched(port, running, admin)
        finally:
            admin.close()
