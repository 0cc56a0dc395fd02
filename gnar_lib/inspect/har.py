"""Exchanges as an HTTP Archive (HAR 1.2), without the secrets in header fields; knows no store."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl

from gnar_lib import __version__
from gnar_lib.inspect.curl import url_of
from gnar_lib.inspect.decode import decoded
from gnar_lib.inspect.exchange import Body, Exchange, Field, Message, text_of, value_of
from gnar_lib.inspect.masks import masked

_FORM = "application/x-www-form-urlencoded"
MAX_HAR_CHARACTERS = 32 << 20  # of entries, from which on bodies are left out
MAX_PARAMETERS = 1000  # of a query, or of a form


def har_text(exchanges: Iterable[Exchange], give_way: Callable[[], None] = lambda: None) -> str:
    """Return the archive of some exchanges as JSON; `give_way` is called between two, since that takes time.

    The last bodies of an archive that becomes too long are left out.
    """
    about = json.dumps({"version": "1.2", "creator": {"name": "gnar", "version": __version__}})
    entries, size = [], 0
    for each in exchanges:
        entry = json.dumps(_entry_of(each, with_bodies=size < MAX_HAR_CHARACTERS), separators=(",", ":"))
        entries.append(entry)
        size += len(entry)
        give_way()
    return f'{{"log":{about[:-1]},"entries":[{",".join(entries)}]}}}}'


def _entry_of(exchange: Exchange, *, with_bodies: bool) -> dict[str, Any]:
    """Return one exchange as an entry of an archive. Fields that are gnar's own begin with an underscore."""
    seconds = exchange.seconds
    sent_s = min(exchange.request_s or 0.0, seconds)
    first_s = seconds if exchange.first_byte_s is None else exchange.first_byte_s
    wait_s = max(first_s - sent_s, 0.0)
    entry: dict[str, Any] = {
        "startedDateTime": datetime.fromtimestamp(exchange.began_at, timezone.utc).isoformat(),
        "time": _ms(seconds),
        "request": _request(exchange, with_body=with_bodies),
        "response": _response(exchange, with_body=with_bodies),
        "cache": {},
        "timings": {
            "send": _ms(sent_s),
            "wait": _ms(wait_s),
            "receive": _ms(max(seconds - sent_s - wait_s, 0.0)),
        },
        "comment": f"proxy {exchange.proxy}",
        "_id": exchange.id,
        "_user": exchange.user,
        "_state": exchange.state.value,
    }
    if exchange.problem:
        entry["_problem"] = exchange.problem
    if exchange.replay_of:
        entry["_replayOf"] = exchange.replay_of
    if exchange.is_websocket:
        entry["_resourceType"] = "websocket"
        entry["_webSocketMessages"] = [_message(each) for each in exchange.messages if with_bodies]
    return entry


def _request(exchange: Exchange, *, with_body: bool) -> dict[str, Any]:
    fields = exchange.request_fields
    request = {
        "method": exchange.method,
        "url": url_of(exchange),
        "httpVersion": f"HTTP/{exchange.version}",
        "cookies": [
            _cookie(each) for each in text_of(value_of(masked(fields), b"cookie")).split("; ") if each
        ],
        "headers": _named(masked(fields)),
        "queryString": _parameters(text_of(exchange.query)),
        "headersSize": exchange.request_head_bytes,
        "bodySize": exchange.request_body.size,
    }
    if exchange.request_body.size and with_body:
        request["postData"] = _posted(exchange.request_body, fields)
    return request


def _response(exchange: Exchange, *, with_body: bool) -> dict[str, Any]:
    fields = exchange.response_fields
    set_cookies = [text_of(value) for name, value in masked(fields) if name.lower() == b"set-cookie"]
    return {
        "status": exchange.status,
        "statusText": text_of(exchange.reason),
        "httpVersion": f"HTTP/{exchange.response_version or exchange.version}",
        "cookies": [_cookie(each.partition(";")[0]) for each in set_cookies],
        "headers": _named(masked(fields)),
        "content": _content(exchange.response_body, fields, with_body=with_body),
        "redirectURL": text_of(value_of(fields, b"location")),
        "headersSize": exchange.response_head_bytes or -1,
        "bodySize": exchange.response_body.size,
    }


def _content(body: Body, fields: list[Field], *, with_body: bool) -> dict[str, Any]:
    found = decoded(body if with_body else Body(0), fields)
    content: dict[str, Any] = {
        "size": len(found.data) if found.undone and not found.is_cut else body.size,
        "mimeType": text_of(value_of(fields, b"content-type")) or "application/octet-stream",
    }
    if found.data:
        content["text"] = base64.b64encode(found.data).decode() if found.text is None else found.text
        if found.text is None:
            content["encoding"] = "base64"
    if not with_body:
        content["comment"] = "left out, since the archive would be too long"
    elif found.is_cut:
        content["comment"] = "the end is missing"
    return content


def _posted(body: Body, fields: list[Field]) -> dict[str, Any]:
    found = decoded(body, fields)
    text = base64.b64encode(found.data).decode() if found.text is None else found.text
    posted: dict[str, Any] = {
        "mimeType": text_of(value_of(fields, b"content-type")) or "application/octet-stream",
        "text": text,
        "params": _parameters(text) if found.media_type == _FORM else [],
    }
    if found.text is None:
        posted["comment"] = "the text is base64"
    elif found.is_cut:
        posted["comment"] = "the end is missing"
    return posted


def _message(message: Message) -> dict[str, Any]:
    """Return a message as the developer tools of browsers have it in archives."""
    is_text = message.kind == "text" and not message.is_compressed
    data = message.data.decode(errors="replace") if is_text else base64.b64encode(message.data).decode()
    codes = {"text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
    return {
        "type": "send" if message.is_of_user else "receive",
        "time": message.at,
        "opcode": codes[message.kind],
        "data": data,
        "_size": message.size,
    }


def _parameters(text: str) -> list[dict[str, str]]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return []
    return [{"name": name, "value": value} for name, value in pairs]


def _named(fields: list[Field]) -> list[dict[str, str]]:
    return [{"name": text_of(name), "value": text_of(value)} for name, value in fields]


def _cookie(pair: str) -> dict[str, str]:
    name, _, value = pair.partition("=")
    return {"name": name.strip(), "value": value.strip()}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
