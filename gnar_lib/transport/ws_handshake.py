"""How a WebSocket begins, by wsproto: the request and its answer, for both ends; does no I/O.

A request with an Origin is refused, since browsers alone send one. Otherwise a page could have its reader's
browser log in at a server that asks for no token, from within the reader's network.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from http import HTTPStatus
from typing import Final

import h11
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from gnar_lib import __version__
from gnar_lib.errors import DialError, ProtocolError, UnreachableError
from gnar_lib.http.message import phrase

MAX_HEAD_BYTES: Final = 16 * 1024
HEAD_END: Final = b"\r\n\r\n"
KEY_BYTES: Final = 16  # RFC 6455, section 4.1
MAX_SHOWN: Final = 200  # characters of what the other end has said
_BEGINNING: Final = b"HTTP/1."  # of every answer
_REDIRECTS, _FAILURES = range(300, 400), range(500, 600)  # RFC 9110, section 15
_VERSION: Final = ((b"Sec-WebSocket-Version", b"13"),)
_Fields = tuple[tuple[bytes, bytes], ...]


# ---- the client's end --------------------------------------------------------------------------------------


class Asking:
    """A request of a client for a WebSocket, and what the server answers.

    `host` is the server's as Host names it, with the port where that is not the usual one; `is_tls`: there is
    TLS below. Raises `DialError` if nothing of this name can be asked for.
    """

    def __init__(self, host: str, path: str, *, is_tls: bool) -> None:
        self._is_tls = is_tls
        self._where = f"{'wss' if is_tls else 'ws'}://{host}{path}"
        self._handshake = H11Handshake(ConnectionType.CLIENT)
        agent = f"gnar/{__version__}".encode()
        try:
            self.request = self._handshake.send(
                Request(host=host, target=path, extra_headers=[(b"User-Agent", agent)])
            )
        except (UnicodeError, h11.LocalProtocolError) as exc:
            raise DialError(f"no WebSocket can be at {self._where[:MAX_SHOWN]!r}") from exc

    def head_size(self, data: bytes | bytearray) -> int:
        """Return how long the head of the answer is with which `data` begins, 0 if more of it has to come.

        Raises `DialError`.
        """
        if data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
            raise DialError(f"{self._where} does not answer in HTTP: is the port right?")
        end = data.find(HEAD_END)
        size = end + len(HEAD_END) if end >= 0 else 0
        if (size or len(data)) > MAX_HEAD_BYTES:
            raise DialError(f"{self._where} answers with more than {MAX_HEAD_BYTES} bytes of header fields")
        return size

    def check(self, head: bytes) -> None:
        """Raise `DialError` unless the answer with this head begins a WebSocket."""
        try:
            self._handshake.receive_data(head)
            event = next(self._handshake.events(), None)
        except (RemoteProtocolError, UnicodeError) as exc:
            reason = str(exc) if isinstance(exc, RemoteProtocolError) else "a header field is malformed"
            raise DialError(f"{self._where} answers with no WebSocket: {_shown(reason)}") from exc
        if isinstance(event, RejectConnection):
            raise self._refusal(event)
        if not isinstance(event, AcceptConnection):
            raise DialError(f"{self._where} answers with no WebSocket")

    def _refusal(self, event: RejectConnection) -> DialError:
        status, fields = event.status_code, dict(event.headers)
        answer = f"{self._where} answers {status} {phrase(status)}".rstrip()
        if status in _REDIRECTS and b"location" in fields:
            return DialError(f"{answer}, and points to {_shown(fields[b'location'].decode('latin-1'))}")
        kind = UnreachableError if status in _FAILURES else DialError
        if status == HTTPStatus.BAD_REQUEST and not self._is_tls:
            return kind(f"{answer}: is this a port of TLS (wss://)?")
        if advice := _ADVICE.get(status):
            return kind(f"{answer}: {advice}")
        if fields.get(b"content-type", b"").lower().startswith(b"text/html"):
            return kind(f"{answer}, with a page for browsers: no gnar server is at this path")
        return kind(f"{answer}, and begins no WebSocket")


_AWAY: Final = "what stands in front of the gnar server does not reach it"
_ADVICE: Final[dict[int, str]] = {
    HTTPStatus.BAD_REQUEST: "perhaps something in between lets no WebSocket through",
    HTTPStatus.UNAUTHORIZED: "something in between wants a login",
    HTTPStatus.FORBIDDEN: "something in between does not allow that",
    HTTPStatus.NOT_FOUND: "is the path that of the server's --ws-path?",
    HTTPStatus.METHOD_NOT_ALLOWED: "no gnar server is at this path",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "a proxy in between wants a login",
    HTTPStatus.UPGRADE_REQUIRED: "something in between lets no WebSocket through",
    HTTPStatus.BAD_GATEWAY: _AWAY,
    HTTPStatus.SERVICE_UNAVAILABLE: _AWAY,
    HTTPStatus.GATEWAY_TIMEOUT: _AWAY,
}


# ---- the server's end --------------------------------------------------------------------------------------


class RefusedError(ProtocolError):
    """A request begins no WebSocket; `answer` is what its sender is told."""

    def __init__(self, reason: str, status: int = HTTPStatus.BAD_REQUEST, fields: _Fields = ()) -> None:
        super().__init__(f"a request for a WebSocket: {reason}")
        body = f"{reason}\n".encode()
        lines = [
            b"HTTP/1.1 %d %b" % (status, phrase(status).encode()),
            b"Content-Type: text/plain",
            b"Content-Length: %d" % len(body),
            b"Connection: close",
            *(b"%b: %b" % field for field in fields),
        ]
        self.answer = b"\r\n".join([*lines, b"", body])


def answer_to(head: bytes) -> bytes:
    """Return the answer to a request with this head, behind which a WebSocket begins.

    Raises `RefusedError`.
    """
    line, _, _ = head.partition(b"\r\n")
    if not line.startswith(b"GET "):
        raise RefusedError("the method has to be GET", HTTPStatus.METHOD_NOT_ALLOWED, ((b"Allow", b"GET"),))
    if not line.endswith(b" HTTP/1.1"):
        raise RefusedError("a WebSocket needs HTTP/1.1", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        handshake.receive_data(head)
        request = next(handshake.events(), None)
    except RemoteProtocolError as exc:
        hint = exc.event_hint
        if isinstance(hint, RejectConnection) and hint.status_code == HTTPStatus.UPGRADE_REQUIRED:
            reason = "the version of WebSocket has to be 13"
            raise RefusedError(reason, HTTPStatus.UPGRADE_REQUIRED, _VERSION) from exc
        raise RefusedError(str(exc)) from exc
    except UnicodeError as exc:
        raise RefusedError("a header field is malformed") from exc
    if not isinstance(request, Request):
        raise RefusedError("the head is not whole")
    _check_fields(request)
    try:
        return handshake.send(AcceptConnection())
    except (LocalProtocolError, h11.LocalProtocolError) as exc:
        raise RefusedError("the request begins no WebSocket") from exc


def _check_fields(request: Request) -> None:
    """Check what wsproto does not; raises `RefusedError`."""
    names = [bytes(name).lower() for name, _ in request.extra_headers]
    if b"origin" in names:
        raise RefusedError("this is for gnar clients, and not for pages in a browser", HTTPStatus.FORBIDDEN)
    if b"content-length" in names or b"transfer-encoding" in names:
        raise RefusedError("a body cannot come in front of a WebSocket")
    keys = [value for name, value in request.extra_headers if bytes(name).lower() == b"sec-websocket-key"]
    try:
        is_good = [len(b64decode(key, validate=True)) for key in keys] == [KEY_BYTES]
    except binascii.Error:
        is_good = False
    if not is_good:
        raise RefusedError(f"Sec-WebSocket-Key has to be {KEY_BYTES} bytes in base64")


def _shown(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_SHOWN])
