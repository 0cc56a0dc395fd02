"""Makes a request of its head: what the target and the fields mean; knows no conn."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from gnar_lib.http.codec import RequestHead
from gnar_lib.http.message import HTTPError, Request
from gnar_lib.net import Sockaddr

MAX_PARAMETERS = 100  # of a query
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(r"https?://([^/?]+)([/?].*)?", re.IGNORECASE)


def make_request(head: RequestHead, peer: Sockaddr) -> Request:
    """Return the request of a head, without a body. Raises `HTTPError`."""
    headers = _headers(head)
    target = _origin_form(head, headers)
    path, _, query = target.partition("?")
    if "#" in target or _BAD_ESCAPE.search(target):
        raise HTTPError(400, "the target is malformed")
    segments = tuple(_decode(each) for each in path.split("/")[1:])
    path = "/" + "/".join(segments)
    return Request(head.method, path, _query(query), headers, peer, head.version, segments=segments)


def _headers(head: RequestHead) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.fields:
        name, value = raw_name.decode(), raw_value.decode("latin-1")
        joint = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{joint}{value}" if name in headers else value
    return headers


def _origin_form(head: RequestHead, headers: dict[str, str]) -> str:
    """Return the target without scheme and host (RFC 9112, 3.2). Raises `HTTPError`."""
    target = head.target
    if target.startswith("/"):
        return target
    if head.method == "CONNECT":
        raise HTTPError(501, "this is no proxy")
    if found := _ABSOLUTE.fullmatch(target):
        # RFC 9112 would have the target win over Host. Whoever sends two different ones means no good.
        if found[1].lower() != headers.get("host", found[1]).lower():
            raise HTTPError(400, "Host is not that of the target")
        rest = found[2] or "/"
        return rest if rest.startswith("/") else f"/{rest}"
    if target == "*" and head.method == "OPTIONS":
        raise HTTPError(404, "options are told for each path")
    raise HTTPError(400, "the target is malformed")


def _decode(part: str) -> str:
    try:
        text = unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise HTTPError(400, "the path is not UTF-8") from None
    if any(character < " " or character == "\x7f" for character in text):
        raise HTTPError(400, "there are control characters in the path")
    return text


def _query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise HTTPError(400, "the query is malformed") from None
    if len(found := dict(pairs)) < len(pairs):
        raise HTTPError(400, "a parameter is given twice")
    return found
