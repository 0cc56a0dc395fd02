"""Caddy's admin API: reads and writes its configuration as JSON; knows not what stands in there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gnar_lib import __version__
from gnar_lib.errors import (
    ConfigError,
    ConnClosed,
    ConnError,
    DeadlineError,
    DialError,
    GnarError,
    ProtocolError,
)
from gnar_lib.http import ClientCodec, Limits
from gnar_lib.logger import printable
from gnar_lib.net import SocketConn, deadline
from gnar_lib.net.target import Target, UnixTarget

READ_S = 5.0
# Caddy answers when the new configuration is in force. Before, Caddy may wait for the requests of the old one
# for as long as its `grace_period` says.
WRITE_S = 30.0
MAX_CONFIG_BYTES = 4 * 1024 * 1024  # to read more as JSON would hold up everybody for 0.1 s
MAX_REASON = 300  # characters of what Caddy says of an error
DEFAULT_PORT = 2019
CONFIG = "/config/"
_LIMITS = Limits()
_ABSENT = 404
_NOT_ALLOWED = (401, 403)
_CHANGED = 412

Json = Any
"""A value of JSON, as `json.loads` returns it."""


class CaddyError(GnarError):
    """Caddy cannot be reached, or does not answer as Caddy does."""


class ChangedError(CaddyError):
    """Somebody else has changed the configuration since it was read; nothing was written."""


class HungUpError(CaddyError):
    """Caddy has closed the connection, as it may while it replaces its API. What was asked may be done."""


class NotTakenError(CaddyError):
    """Caddy does not take a configuration, and goes on with the one that it has; `reason` is Caddy's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Caddy does not take the configuration: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Config:
    """Caddy's whole configuration as it was read; `etag` stands for this state of it."""

    value: Json  # None if Caddy has none
    etag: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    kind: str  # the media type
    etag: str
    body: bytes

    def json(self) -> Json:
        """Return the body; raises `ValueError` if it is not JSON."""
        if self.kind != "application/json":
            raise ValueError(self.kind)
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    @property
    def reason(self) -> str:
        """What Caddy says of an error, or the status if there is nothing."""
        with suppress(ValueError):
            said = self.json()
            if isinstance(said, dict) and isinstance(said.get("error"), str):
                return printable(said["error"][:MAX_REASON])
        return f"the answer was {self.status}"


class Api:
    """The admin API at an address such as http://127.0.0.1:2019 or unix//run/caddy/admin.sock.

    Raises `ConfigError` if the address is neither. One greenlet at a time may use it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._target, self._host = _target(url)
        # Caddy compares Origin with its list `origins`, also where it asks for no Origin. So none is sent
        # unless Caddy has refused a request without.
        self._sends_origin = False
        self._watched: SocketConn | None = None

    def __str__(self) -> str:
        return f"Caddy's admin API at {self._url}"

    def read(self) -> Config:
        """Return the whole configuration, and watch it from now on; raises `CaddyError`."""
        try:
            return self._config_of(self._ask("GET", CONFIG, watch=True))
        except CaddyError:
            self.close()
            raise

    def _config_of(self, answer: _Answer) -> Config:
        """Return the configuration that an answer consists of; raises `CaddyError` if it is not Caddy's."""
        with suppress(ValueError):
            value = answer.json()
            if answer.status == 200 and isinstance(value, dict | None):  # noqa: PLR2004  (OK)
                if not answer.etag:
                    raise CaddyError(f"{self} sends no ETag: gnar needs Caddy 2.5 or a newer one")
                return Config(value, answer.etag)
        shown = f"{answer.status}, {printable(answer.kind[:MAX_REASON]) or 'of no media type'}"
        raise CaddyError(f"what answers at {self._url} is not Caddy's admin API (the answer was {shown})")

    def write(self, path: str, value: Json, etag: str) -> None:
        """Set what is at a path of the configuration, if nothing has changed since `etag`; Caddy loads it.

        Raises `ChangedError`, `NotTakenError`, or another `CaddyError`.
        """
        body = json.dumps(value, separators=(",", ":")).encode()
        answer = self._ask("POST", path, body, etag)
        if answer.status == _CHANGED:
            raise ChangedError("somebody else has changed Caddy's configuration meanwhile")
        if not 200 <= answer.status < 300:  # noqa: PLR2004  (RFC 9110, section 15.3)
            raise NotTakenError(answer.reason)

    def wait_for_change(self, seconds: float) -> None:
        """Return as soon as the configuration that was read last may have changed, or after `seconds`.

        Caddy replaces its admin API with each configuration, and with itself, and then closes connections
        that are idle. So this needs no requests, each of which would be a line in Caddy's log.
        """
        conn = self._watched
        if conn is None:
            return
        with suppress(ConnError), deadline(seconds, "a change"):
            conn.recv(1)  # the end of the stream, since nothing was asked
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        conn, self._watched = self._watched, None
        if conn is not None:
            conn.close()

    def _ask(
        self, method: str, path: str, body: bytes = b"", etag: str = "", *, watch: bool = False
    ) -> _Answer:
        """Return the answer to a request, once with an Origin if Caddy wants that; raises `CaddyError`."""
        answer = self._ask_once(method, path, body, etag, watch=watch)
        if answer.status in _NOT_ALLOWED and self._host and not self._sends_origin:
            self._sends_origin = True
            answer = self._ask_once(method, path, body, etag, watch=watch)
        if answer.status in _NOT_ALLOWED:
            self._sends_origin = False
            raise CaddyError(
                f"{self} refuses gnar ({answer.reason}): add {self._host or 'gnar'} to the `origins` "
                "of Caddy's option `admin`, or give --caddy-api an address that Caddy takes"
            )
        return answer

    def _ask_once(self, method: str, path: str, body: bytes, etag: str, *, watch: bool) -> _Answer:
        with self._translated(), deadline(WRITE_S if body else READ_S, "the answer"):
            conn = self._target.dial()
            try:
                codec = ClientCodec(conn, _LIMITS)
                codec.send_head(method, path, self._fields(body, etag, watch=watch))
                if body:
                    codec.send_body(body)
                codec.end_body()
                answer = _receive(codec)
                if watch:
                    self.close()
                    self._watched, conn = conn, None  # type: ignore[assignment]
                return answer
            finally:
                if conn is not None:
                    conn.close()

    def _fields(self, body: bytes, etag: str, *, watch: bool) -> Iterator[tuple[str, str]]:
        yield "Host", self._host
        yield "User-Agent", f"gnar/{__version__}"
        if self._sends_origin:
            yield "Origin", f"http://{self._host}"
        if not watch:
            yield "Connection", "close"
        if body:
            yield "Content-Type", "application/json"
            yield "Content-Length", str(len(body))
            yield "If-Match", etag

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise what goes wrong in the block as `CaddyError`, in words that stay the same."""
        try:
            yield
        except DialError as exc:
            raise CaddyError(f"{self} cannot be reached: {exc}") from exc
        except DeadlineError as exc:
            raise CaddyError(f"{self} does not answer in time") from exc
        except ConnError as exc:
            raise HungUpError(f"{self} has closed the connection without an answer") from exc
        except ProtocolError as exc:
            raise CaddyError(f"what answers at {self._url} does not speak HTTP as Caddy does") from exc


def _receive(codec: ClientCodec) -> _Answer:
    """Receive an answer; raises `ConnClosed` if there is none, and `CaddyError` if it is too long."""
    if not codec.wait_for_head():
        raise ConnClosed("the stream has ended")
    head = codec.receive_head()
    body = bytearray()
    while piece := codec.receive_body():
        body += piece
        if len(body) > MAX_CONFIG_BYTES:
            raise CaddyError(f"Caddy's configuration is longer than {MAX_CONFIG_BYTES >> 20} MiB")
    kind = b"".join(head.values(b"content-type")[:1]).partition(b";")[0].strip().lower()
    # Caddy before 2.7 sends the ETag behind the body.
    etags = [*head.values(b"etag"), *(value for name, value in codec.trailers if name == b"etag")]
    return _Answer(head.status, kind.decode("latin-1"), b"".join(etags[:1]).decode("latin-1"), bytes(body))


def _target(url: str) -> tuple[Target | UnixTarget, str]:
    """Return what is dialled for a URL, and the value of Host; raises `ConfigError`."""
    if url.startswith("unix/"):
        path = url.removeprefix("unix/")
        if not path.startswith("/"):
            raise ConfigError(f"caddy-api: {url!r} names no path: write unix//run/caddy/admin.sock")
        return UnixTarget(path), ""  # Caddy takes no other Host at a Unix socket
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ConfigError(f"caddy-api: {url!r} is no URL") from None
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise ConfigError(
            f"caddy-api: {url!r} should look like http://127.0.0.1:2019 or unix//run/caddy/admin.sock"
        )
    return Target(parts.hostname, port, socket.AF_UNSPEC), _host_header(parts.hostname, port)


def _host_header(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
