"""Posts messages to a URL: one request for each try, on a connection of its own.

The variables that name HTTP proxies are not read, and no redirect is followed.
"""

from __future__ import annotations

import http.client
import io
import time
from contextlib import ExitStack, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gnar_lib import __version__, logger
from gnar_lib.config import HookConfig
from gnar_lib.errors import ConnError, GnarError
from gnar_lib.hooks.message import Message, signature
from gnar_lib.hooks.outcome import Outcome
from gnar_lib.net import Conn, deadline
from gnar_lib.net.target import Target

if TYPE_CHECKING:
    from ssl import SSLContext

MAX_HEAD_BYTES = 65536  # of an answer, with all that stands in front of it
MAX_BODY_BYTES = 65536  # that are read of an answer, so that the receiver can end well
MAX_WAIT_S = 600.0  # that a receiver can ask for
MAX_REASON = 200  # characters of an answer's first line
PORTS = {"http": 80, "https": 443}
_ERRORS = (GnarError, OSError, ValueError, http.client.HTTPException)  # of a try
_AGAIN = (408, 429)  # of the answers 4xx, those after which another try can end better

_log = logger.get("hooks")


class Poster:
    """Posts the messages of one hook to its URL."""

    def __init__(self, config: HookConfig, context: SSLContext | None) -> None:
        self._config = config
        url = urlsplit(config.url.reveal())
        self._host = url.hostname or ""
        self._context = context if url.scheme == "https" else None
        self._host_header = url.netloc
        self._port = url.port or PORTS[url.scheme]
        self._target = Target(self._host, self._port)
        self._path = (url.path or "/") + (f"?{url.query}" if url.query else "")

    def deliver(self, message: Message) -> Outcome:
        """Post a message once."""
        until_s = time.monotonic() + self._config.timeout_s
        try:
            with ExitStack() as stack:
                with deadline(self._config.timeout_s, "the answer"):
                    conn = self._open(stack)
                    response = self._ask(conn, message)
                return self._take(response, until_s)
        except GnarError as exc:
            return Outcome(str(exc), may_retry=True)
        except _ERRORS as exc:  # an answer that is none
            reason = str(exc) or type(exc).__name__
            return Outcome(f"no answer of HTTP: {reason[:MAX_REASON]}", may_retry=True)

    def _open(self, stack: ExitStack) -> Conn:
        """Return a new conn to the receiver, which `stack` closes."""
        conn = self._target.dial()
        stack.callback(conn.close)
        if self._context is None:
            return conn
        from gnar_lib.transport.tls import TlsConn

        secure = TlsConn.connect(conn, self._context, self._host)
        stack.callback(secure.close)
        return secure

    def _ask(self, conn: Conn, message: Message) -> http.client.HTTPResponse:
        """Send the request, and return the answer, of which the head has come."""
        content_type, body = message.body(self._config)
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = _Socket(conn)
        connection.putrequest("POST", self._path, skip_host=True, skip_accept_encoding=True)
        for name, value in self._headers(message, content_type, body).items():
            connection.putheader(name, value.encode())
        connection.endheaders(body)
        return connection.getresponse()

    def _take(self, response: http.client.HTTPResponse, until_s: float) -> Outcome:
        """Read the body, so that the receiver can end well, and return what the answer means.

        The head alone decides: a body that does not end well is no reason to post again what was taken.
        """
        body = b""
        with suppress(*_ERRORS), deadline(max(until_s - time.monotonic(), 0.0), "the answer"):
            body = response.read(MAX_BODY_BYTES)
        outcome = _outcome(response)
        if not outcome:
            _log.debug("%s answered %d: %r", self._config.label, response.status, body[:MAX_REASON])
        return outcome

    def _headers(self, message: Message, content_type: str, body: bytes) -> dict[str, str]:
        """Return the headers of a request: those of the hook's settings take the place of the first two."""
        timestamp = str(int(time.time()))
        headers = {
            "content-type": content_type,
            "user-agent": f"gnar/{__version__}",
            **{name.lower(): value.reveal() for name, value in self._config.headers},
            "host": self._host_header,
            "content-length": str(len(body)),
            "connection": "close",
            "x-gnar-event": message.event,
            "x-gnar-delivery": message.id,
            "x-gnar-timestamp": timestamp,
        }
        if self._config.secret:
            headers["x-gnar-signature"] = signature(self._config.secret, timestamp, body)
        return {name.title(): value for name, value in headers.items()}


def _outcome(response: http.client.HTTPResponse) -> Outcome:
    """Return what an answer means."""
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004  (RFC 9110, section 15.3)
        return Outcome()
    reason = f"the answer was {status} {response.reason[:MAX_REASON]}".rstrip()
    if 300 <= status < 400:  # noqa: PLR2004  (section 15.4)
        return Outcome(f"{reason}: no redirect is followed")
    may_retry = status in _AGAIN or status >= 500  # noqa: PLR2004  (section 15.6)
    return Outcome(reason, may_retry, _wait_s(response.getheader("Retry-After", "")) if may_retry else 0.0)


def _wait_s(text: str) -> float:
    """Return the seconds that a Retry-After asks for, in either form (RFC 9110, section 10.2.3)."""
    try:
        seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_WAIT_S)


class _Socket:
    """Gives `http.client` a conn in the place of a socket; the conn's owner closes it."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self._conn.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what reads the answer."""
        return io.BufferedReader(_Answer(self._conn))

    def close(self) -> None:
        """Do nothing."""


class _Answer(io.RawIOBase):
    """Reads an answer, up to a limit, so that no receiver can keep this process busy."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self._left = MAX_HEAD_BYTES + MAX_BODY_BYTES

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into `buffer`; raises `ConnError` past the limit."""
        if not self._left:
            raise ConnError("the answer is too long")
        data = self._conn.recv(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)
