"""Writes log lines and errors to standard error, and texts for people to standard output.

A log line has a prefix such as `TCP [demo]`, or is a JSON object.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO

_root = logging.getLogger("gnar")
_root.propagate = False
_root.addHandler(logging.NullHandler())
logging.raiseExceptions = False  # a log line that cannot be written is dropped, without a traceback

_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
_LEVEL_NAMES = {"WARNING": "WARN"}  # shorter than in logging, so that the lines align
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

BURST_REPORT_S = 60.0  # how often a warning is logged while its cause lasts


def printable(text: str) -> str:
    """Return text with control characters escaped, so that text of a peer cannot forge lines or colours."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def takes_escapes(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colours and links. Windows' terminals may not."""
    return stream.isatty() and sys.platform != "win32"


def complain(text: str) -> None:
    """Write an error to standard error as one line, if standard error can be written to."""
    with suppress(OSError):
        sys.stderr.write(f"gnar: {printable(text)}\n")


def show(text: str) -> bool:
    """Write text to standard output; returns whether all of it was written.

    An error is reported on standard error, unless the reader of a pipe has gone.
    """
    stream = sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        return show(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
    except OSError as exc:
        # Python writes the rest of the buffer at the end of the process: that must not fail a second time.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        if not isinstance(exc, BrokenPipeError):
            complain(f"cannot write to standard output: {exc.strerror or exc}")
        return False
    return True


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:  # Python 3.10 cannot subscript the class
    _Adapter = logging.LoggerAdapter


class Logger(_Adapter):
    """A logger with a prefix in front of every message."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Pass the prefix on to the formatter, as logging.LoggerAdapter asks for."""
        kwargs["extra"] = self.extra
        return msg, kwargs


def get(prefix: str) -> Logger:
    """Return a logger whose lines begin with `prefix`."""
    return Logger(_root, {"prefix": printable(prefix)})


def _level_of(record: logging.LogRecord) -> str:
    """Return the name of a record's level, in capital letters."""
    return _LEVEL_NAMES.get(record.levelname, record.levelname)


class _LineFormatter(logging.Formatter):
    """Formats a record as `2026-01-02 15:04:05 INFO  TCP [demo] text`, with the level in colour if wanted."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{_level_of(record):<5}"
        if self._colour and record.levelno in _COLOURS:
            level = f"\033[{_COLOURS[record.levelno]}m{level}\033[0m"
        line = f"{when} {level} {getattr(record, 'prefix', '')} {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc)
        fields = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": _level_of(record).lower(),
            "prefix": getattr(record, "prefix", ""),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def setup(stream: TextIO | None = None) -> None:
    """Start logging to `stream`, or to standard error.

    The variables `DEBUG=1`, `GNAR_LOG=json` and `NO_COLOR=1` set level, format and colours.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_json = os.environ.get("GNAR_LOG", "").lower() == "json"
    colour = takes_escapes(stream) and not os.environ.get("NO_COLOR")
    handler.setFormatter(_JsonFormatter() if is_json else _LineFormatter(colour=colour))
    _root.handlers = [handler]
    _root.setLevel(logging.DEBUG if os.environ.get("DEBUG", "") not in ("", "0") else logging.INFO)


class Burst:
    """Limits how often a warning is logged that many users cause at the same time.

    In each period of `report_s` seconds, the first `lines` warnings are logged and the others are counted.
    The next line that is logged says how many were only counted.
    """

    def __init__(self, report_s: float = BURST_REPORT_S, lines: int = 1) -> None:
        self._report_s = report_s
        self._lines = lines
        self._left = lines  # lines that may still be logged in this period
        self._unreported = 0  # warnings since the last line that was logged
        self._next_s = 0.0  # when the next period begins, as time.monotonic() says
        self._is_on = False  # whether there was a warning since `end`

    def warning(self, log: Logger, message: str, *args: object) -> None:
        """Log a warning, or count it if enough have been logged in this period."""
        now = time.monotonic()
        if not self._is_on or now >= self._next_s:
            self._is_on, self._left, self._next_s = True, self._lines, now + self._report_s
        if not self._left:
            self._unreported += 1
            return
        self._left -= 1
        if self._unreported:
            message, args = message + " (%d more)", (*args, self._unreported)
            self._unreported = 0
        log.warning(message, *args)

    def end(self, log: Logger) -> None:
        """Log, if there was a warning since the last call, that its cause is over."""
        if self._is_on:
            log.info("works again%s", f" ({self._unreported} more failed)" if self._unreported else "")
            self._is_on, self._unreported = False, 0
