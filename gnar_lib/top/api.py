"""Asks the admin port of a server, and says in one line what went wrong; knows nothing of what is shown.

Whoever answers may be anybody: each answer has a bound and a deadline.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

from gnar_lib.config import Secret
from gnar_lib.errors import AuthError, ConnError, ProtocolError, UsageError

DEFAULT_PORT = 8911
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
TIMEOUT_S = 10.0  # of each wait: the live stream says something every second
ANSWER_S = 20.0  # of a whole answer, and of each event of a stream, however little comes at a time
MAX_BYTES = 16 << 20  # of an answer: a server with thousands of proxies takes a few MiB
MAX_EVENT_BYTES = 4 << 20  # of all clients and 200 proxies; as objects they can be fifty times as large
BASE = "/api/v1"

# What a server answers that has too much to do, and a proxy in front of one that does not answer.
_BUSY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_HOW = "GNAR_ADMIN_READ_TOKEN or GNAR_ADMIN_PASSWORD"


class BusyError(ConnError):
    """The server, or a proxy in front of it, asks to be asked later."""


class Api:
    """The API behind a URL; raises `UsageError` for a text that is no such URL.

    Several threads may ask at the same time.
    """

    def __init__(self, url: str, secret: Secret) -> None:
        parts = _split(url)
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._is_encrypted = parts.scheme == "https"
        default = http.client.HTTPS_PORT if self._is_encrypted else http.client.HTTP_PORT
        self._host, self._port = parts.hostname or "", parts.port or default
        self._path = parts.path.rstrip("/") + BASE
        self._secret = secret
        if not secret.reveal().isprintable():
            raise UsageError("the password or token has characters that HTTP cannot carry")

    def get(self, what: str) -> dict[str, Any]:
        """Return the object that the API has under a path; raises as `fail` does, and `AuthError`."""
        try:
            with closing(self._connection()) as conn:
                conn.connect()
                with self.limit(conn.sock), closing(self._ask(conn, what)) as answer:
                    data = answer.read(MAX_BYTES + 1)
                    if answer.length and len(data) <= MAX_BYTES:
                        raise ConnError(f"{self.url} hung up")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            self.fail(exc)
        return self.object_of(data)

    def stream(self, what: str, **query: object) -> Stream:
        """Return the events under a path; raises as `get` does. The caller closes the stream."""
        conn = self._connection()
        try:
            conn.connect()
            sock = conn.sock  # the answer takes it over
            asked = f"{what}?{urlencode(query)}" if query else what
            with self.limit(sock):
                answer = self._ask(conn, asked, "text/event-stream")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            conn.close()
            self.fail(exc)
        except BaseException:
            conn.close()
            raise
        return Stream(self, conn, answer, sock)

    @contextmanager
    def limit(self, sock: socket.socket) -> Iterator[Limit]:
        """Raise `ConnError` in place of what the block raises, or at its end, if its time was over."""
        limit = Limit(sock, ANSWER_S)
        try:
            yield limit
        except Exception as exc:
            if limit.is_over:
                raise ConnError(f"no whole answer from {self.url} within {ANSWER_S:g} s") from exc
            raise
        finally:
            limit.end()
        if limit.is_over:
            raise ConnError(f"no whole answer from {self.url} within {ANSWER_S:g} s")

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_encrypted:
            return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            import ssl
        except ImportError as exc:  # some Pythons lack it
            raise ConnError("this Python cannot speak https: its module ssl is missing") from exc
        trusted = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=trusted)

    def _ask(
        self, conn: http.client.HTTPConnection, what: str, kind: str = "application/json"
    ) -> http.client.HTTPResponse:
        conn.putrequest("GET", self._path + what)
        conn.putheader("Accept", kind)
        if self._secret:
            conn.putheader("Authorization", b"Bearer " + self._secret.reveal().encode())
        conn.endheaders()
        answer = conn.getresponse()
        try:
            if answer.status != HTTPStatus.OK:
                self._refuse(answer.status)
            if not answer.headers.get("Content-Type", "").startswith(kind):
                raise ProtocolError(self.stranger("it answers with something else"))
        except BaseException:
            answer.close()
            raise
        return answer

    def _refuse(self, status: int) -> NoReturn:
        """Raise what a status other than 200 means."""
        if status == HTTPStatus.UNAUTHORIZED and not self._secret:
            raise AuthError(f"{self.url} wants a password: set {_HOW}")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise AuthError(f"{self.url} does not take the password or token that was given: see {_HOW}")
        if status in _BUSY:
            raise BusyError(f"{self.url} is busy (status {status}): try again")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise AuthError(f"{self.url} has had too many wrong passwords from here: wait for a minute")
        raise ProtocolError(self.stranger(f"it answers with status {status}"))

    def object_of(self, data: bytes) -> dict[str, Any]:
        """Return the object that JSON holds; raises `ProtocolError`."""
        if len(data) > MAX_BYTES:
            raise ProtocolError(self.stranger("its answer does not end"))
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise ProtocolError(self.stranger("its answer is no JSON")) from exc
        if not isinstance(value, dict):
            raise ProtocolError(self.stranger("its answer is no object"))
        return value

    def fail(self, error: Exception) -> NoReturn:
        """Raise what an error of the standard library means: `ConnError`, `AuthError` or `ProtocolError`."""
        if why := getattr(error, "verify_message", ""):  # of `SSLCertVerificationError`
            raise AuthError(f"the certificate of {self.url} is not to be trusted: {why}") from error
        if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
            raise ConnError(f"{self.url} hung up") from error
        if isinstance(error, http.client.HTTPException):
            raise ProtocolError(self.stranger("this is not HTTP")) from error
        if isinstance(error, TimeoutError):
            raise ConnError(f"no answer from {self.url} within {TIMEOUT_S:g} s") from error
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        hint = "; was the server started with -a?" if isinstance(error, ConnectionRefusedError) else ""
        raise ConnError(f"no answer from {self.url}: {reason}{hint}") from error

    def stranger(self, why: str) -> str:
        """Return the text of an error about somebody who answers, and is no gnar server."""
        return f"{self.url} is not the admin port of a gnar server: {why}"


class Limit:
    """Shuts a socket down, by a thread of its own, when its time is over: the timeout is that of one wait."""

    def __init__(self, sock: socket.socket, limit_s: float) -> None:
        self.is_over = False
        self._sock = sock
        self._limit_s = limit_s
        self._ended = threading.Event()
        self.renew()
        threading.Thread(target=self._run, name="limit", daemon=True).start()

    def renew(self) -> None:
        """Begin anew: something has come as a whole."""
        self._until_s = time.monotonic() + self._limit_s

    def end(self) -> None:
        """Leave the socket alone from now on."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(max(self._until_s - time.monotonic(), 0.0)):
            if time.monotonic() >= self._until_s:
                self.is_over = True
                with suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                return


class Stream:
    """Server-sent events, as they come (HTML standard, 9.2)."""

    def __init__(
        self,
        api: Api,
        conn: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        sock: socket.socket,
    ) -> None:
        self._api = api
        self._conn = conn
        self._answer = answer
        self._sock = sock

    def close(self) -> None:
        """End the stream."""
        self._answer.close()
        self._conn.close()

    def cut(self) -> None:
        """Have the thread that reads the stream get a `ConnError`; may be called by another thread."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the object of each event; raises as `Api.get`, also at the end of the stream."""
        with self._api.limit(self._sock) as limit:
            for event in self._events():
                limit.renew()
                yield event
                limit.renew()

    def _events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name, data = "", bytearray()
        for line in self._lines():
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"data":
                data += value + b"\n"
            elif not line:
                if data:
                    yield name, self._api.object_of(bytes(data))
                name, data = "", bytearray()
            if len(data) > MAX_EVENT_BYTES:
                raise ProtocolError(self._api.stranger("its answer does not end"))

    def _lines(self) -> Iterator[bytes]:
        while True:
            try:
                line = self._answer.readline(MAX_EVENT_BYTES)
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as exc:  # also: closed
                self._api.fail(exc)
            if not line:
                raise ConnError(f"{self._api.url} hung up")
            if len(line) >= MAX_EVENT_BYTES:
                raise ProtocolError(self._api.stranger("its answer does not end"))
            yield line.rstrip(b"\r\n")


def _split(url: str) -> Any:
    """Return the parts of a URL; raises `UsageError`."""
    given = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"url: {url!r}: {exc}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"url: {url!r}: expected such as {DEFAULT_URL} or https://example.com")
    if "@" in parts.netloc:
        raise UsageError(f"url: a password is not for command lines: set {_HOW}")
    if "://" not in url and port is None:
        parts = parts._replace(netloc=f"{parts.netloc}:{DEFAULT_PORT}")
    return parts
