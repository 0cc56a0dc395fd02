"""Exchanges as JSON for the page; decides nothing and changes nothing."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qsl

from gnar_lib.inspect import Body, Exchange, Message, decoded, host_of, text_of, url_of, value_of

MAX_PARAMETERS = 1000  # of a query, or of a form
MAX_TARGET = 2000  # characters, in the list
_FORM = "application/x-www-form-urlencoded"
Row = dict[str, Any]
Field = tuple[bytes, bytes]


def summary(exchange: Exchange) -> Row:
    """Return what the list shows of an exchange."""
    return {
        "id": exchange.id,
        "change": exchange.change,
        "at": exchange.began_at,
        "proxy": exchange.proxy,
        "user": exchange.user,
        "method": exchange.method,
        "target": text_of(exchange.target)[:MAX_TARGET],
        "host": host_of(exchange),
        "status": exchange.status,
        "state": exchange.state.value,
        "problem": exchange.problem,
        "seconds": exchange.duration_s,
        "request_bytes": exchange.request_body.size,
        "response_bytes": exchange.response_body.size,
        "media_type": text_of(value_of(exchange.response_fields, b"content-type")).partition(";")[0],
        "messages": exchange.messages_total,
        "is_websocket": exchange.is_websocket,
        "replay_of": exchange.replay_of,
    }


def detail(exchange: Exchange) -> Row:
    """Return everything that is kept of an exchange."""
    return summary(exchange) | {
        "target": text_of(exchange.target),
        "url": url_of(exchange),
        "query": _pairs_of(text_of(exchange.query)),
        "version": exchange.version,
        "reason": text_of(exchange.reason),
        "interim": exchange.interim,
        "request_s": exchange.request_s,
        "first_byte_s": exchange.first_byte_s,
        "has_lost_messages": exchange.has_lost_messages,
        "kept_messages": [_message(each) for each in exchange.messages],
        "request": _side(exchange.request_fields, exchange.request_head_bytes, exchange.request_body),
        "response": _side(exchange.response_fields, exchange.response_head_bytes, exchange.response_body),
    }


def _side(fields: list[Field], head_bytes: int, body: Body) -> Row:
    return {
        "headers": [[text_of(name), text_of(value)] for name, value in fields],
        "head_bytes": head_bytes,
        "body": _body(body, fields),
    }


def _body(body: Body, fields: list[Field]) -> Row:
    found = decoded(body, fields)
    row: Row = {
        "size": body.size,
        "kept": len(body.data),
        "is_cut": found.is_cut,
        "media_type": found.media_type,
        "undone": [*found.undone],
        "left": found.left,
        "text": found.text,
    }
    if found.text is None:
        row["base64"] = base64.b64encode(found.data).decode()
    elif found.media_type == _FORM:
        row["form"] = _pairs_of(found.text)
    return row


def _message(message: Message) -> Row:
    row: Row = {
        "number": message.number,
        "at": message.at,
        "is_of_user": message.is_of_user,
        "kind": message.kind,
        "size": message.size,
        "is_cut": message.size > len(message.data),
        "is_compressed": message.is_compressed,
    }
    data = message.data
    if message.kind == "close" and len(data) > 1:
        row["code"] = int.from_bytes(data[:2], "big")
        data = data[2:]
    if message.kind in ("text", "close"):
        return row | {"text": data.decode(errors="replace")}
    return row | {"base64": base64.b64encode(data).decode()}


def _pairs_of(text: str) -> list[list[str]]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return []
    return [[name, value] for name, value in pairs]
