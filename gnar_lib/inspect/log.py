"""A file with a line of JSON for each exchange that has ended; knows not how exchanges come about."""

from __future__ import annotations

import json
import os
from typing import Any

from gnar_lib.errors import StorageError
from gnar_lib.inspect.exchange import Exchange, Field, text_of
from gnar_lib.inspect.masks import masked
from gnar_lib.writer import Writer

# A pipe that nobody reads is an error, and holds nothing up.
_OPEN = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
CLOSE_S = 1.0  # for the disk, when the process ends


class ExchangeLog:
    """Appends to a file, in a thread, so that a slow disk holds nobody up. The file is this user's alone."""

    def __init__(self, path: str) -> None:
        """Raises `StorageError`."""
        try:
            number = os.open(path, _OPEN, 0o600)
            self._file = os.fdopen(number, "a", encoding="utf-8", errors="replace")
        except OSError as exc:
            raise StorageError(f"inspect-log: cannot write to {path}: {exc.strerror}") from exc
        self._writer = Writer(self._file)
        self._writer.lost_line = _lost_line

    def write(self, exchange: Exchange) -> None:
        """Append a line; never waits."""
        self._writer.put(json.dumps(line_of(exchange), ensure_ascii=False, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Wait a moment for what is to be written, and close the file."""
        self._writer.close(CLOSE_S)
        self._file.close()


def line_of(exchange: Exchange) -> dict[str, Any]:
    """Return what the log tells of an exchange: no bodies, and no secrets of header fields."""
    return {
        "id": exchange.id,
        "at": round(exchange.began_at, 3),
        "proxy": exchange.proxy,
        "user": exchange.user,
        "method": exchange.method,
        "target": text_of(exchange.target),
        "status": exchange.status,
        "state": exchange.state.value,
        "problem": exchange.problem,
        "first_byte_s": None if exchange.first_byte_s is None else round(exchange.first_byte_s, 6),
        "duration_s": round(exchange.seconds, 6),
        "request_bytes": exchange.request_body.size,
        "response_bytes": exchange.response_body.size,
        "request_headers": _pairs(exchange.request_fields),
        "response_headers": _pairs(exchange.response_fields),
        "messages": exchange.messages_total,
        "replay_of": exchange.replay_of,
    }


def _pairs(fields: list[Field]) -> list[list[str]]:
    return [[text_of(name), text_of(value)] for name, value in masked(fields)]


def _lost_line(count: int) -> str:
    return json.dumps({"lost": count}) + "\n"
