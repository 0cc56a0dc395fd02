"""What a request becomes that is sent again, as it was or edited; knows no conn."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

from gnar_lib.http import HTTPError
from gnar_lib.inspect import Exchange

MAX_TARGET = 8192  # bytes
MAX_HEADERS = 200
MAX_HEADER_BYTES = 32 * 1024  # of all together
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_TARGET = re.compile(r"[\x21-\x7e\x80-\U0010ffff]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
# What holds for the connection it came on, and what is said anew.
_OF_CONNECTION = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
_WITH_BODY = ("POST", "PUT", "PATCH")


@dataclass(frozen=True, slots=True)
class Edited:
    """A request that is to be sent."""

    method: str
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def encoded(self) -> bytes:
        """Return the bytes to send; the connection is for this request alone."""
        fields = [each for each in self.fields if each[0].lower() not in _OF_CONNECTION]
        if self.body or self.method in _WITH_BODY:
            fields.append((b"Content-Length", b"%d" % len(self.body)))
        fields.append((b"Connection", b"close"))
        lines = [b"%b %b HTTP/1.1" % (self.method.encode(), self.target)]
        lines += [b"%b: %b" % field for field in fields]
        return b"\r\n".join([*lines, b"", self.body])


def edited(exchange: Exchange, changes: Any) -> Edited:
    """Return the request of an exchange with changes, which are JSON: whatever is not there stays as it was.

    Raises `HTTPError`.
    """
    if not isinstance(changes, dict) or not changes.keys() <= {
        "method",
        "target",
        "headers",
        "body",
        "base64",
    }:
        raise HTTPError(400, "expected an object with method, target, headers, and body or base64")
    if exchange.is_switched:
        raise HTTPError(409, "a WebSocket, or another protocol, cannot be sent again")
    method = changes.get("method", exchange.method)
    if not isinstance(method, str) or not _METHOD.fullmatch(method) or method == "CONNECT":
        raise HTTPError(400, "method: expected a word such as GET or POST")
    target = exchange.target
    if "target" in changes:
        target = _target(changes["target"])
    fields = tuple(exchange.request_fields)
    if "headers" in changes:
        fields = _fields(changes["headers"])
    return Edited(method, target, fields, _body(exchange, changes))


def _target(value: Any) -> bytes:
    if not isinstance(value, str) or not _TARGET.fullmatch(value) or len(value.encode()) > MAX_TARGET:
        raise HTTPError(
            400, f"target: expected a path such as /a?b=c, without spaces, at most {MAX_TARGET} bytes"
        )
    return value.encode(errors="replace")


def _fields(value: Any) -> tuple[tuple[bytes, bytes], ...]:
    if not isinstance(value, list) or len(value) > MAX_HEADERS:
        raise HTTPError(400, f"headers: expected a list of at most {MAX_HEADERS} pairs")
    fields = []
    for pair in value:
        match pair:
            case [str(name), str(text)] if _TOKEN.fullmatch(name) and _VALUE.fullmatch(text.strip()):
                fields.append((name.encode(), text.strip().encode(errors="replace")))
            case _:
                raise HTTPError(400, f"headers: {str(pair)[:100]!r} is no name with a value")
    if sum(len(name) + len(text) for name, text in fields) > MAX_HEADER_BYTES:
        raise HTTPError(400, "headers: they are too long")
    return tuple(fields)


def _body(exchange: Exchange, changes: dict[str, Any]) -> bytes:
    if "body" in changes:
        if not isinstance(changes["body"], str):
            raise HTTPError(400, "body: expected text")
        return changes["body"].encode(errors="replace")
    if "base64" in changes:
        try:
            return base64.b64decode(changes["base64"], validate=True)
        except (TypeError, binascii.Error):
            raise HTTPError(400, "base64: expected base64") from None
    if exchange.request_body.is_truncated:
        raise HTTPError(
            409,
            "only the beginning of the body was kept; a larger --inspect-bodies keeps more of the next one",
        )
    return bytes(exchange.request_body.data)
