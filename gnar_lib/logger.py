"""Logging: one line per event on standard error, with a prefix such as `TCP [demo]`, or as JSON.

Also what a person is shown on standard output, and that both exist.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import MutableMapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO

_root = logging.getLogger("gnar")
_root.propagate = False
_root.addHandler(logging.NullHandler())
logging.raiseExceptions = False  # a closed standard error is no reason to end, nor to write there

_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

BURST_REPORT_S = 60.0


def printable(text: str) -> str:
    """Return text without control characters, so that what a peer sent cannot forge lines or colours."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def have_streams() -> None:
    """Give the process the standard streams that it was started without.

    Otherwise their numbers would go to the first sockets, and what is meant for a person to whoever is there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for the whole process)


def takes_escapes(stream: TextIO) -> bool:
    """Tell whether a terminal shows the stream, one that knows colours and links; Windows' may not."""
    return stream.isatty() and sys.platform != "win32"


def show(text: str) -> bool:
    """Show text on standard output; tells whether that went well, since whoever read it may have gone."""
    stream = sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        return show(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
    except OSError:
        # What is left in the buffer would fail again at the end of the process, with a complaint.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return False
    return True


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:  # Python 3.10 cannot subscript it
    _Adapter = logging.LoggerAdapter


class Logger(_Adapter):
    """A logger with a prefix in front of every message."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Hand the prefix to the formatter."""
        kwargs["extra"] = self.extra
        return msg, kwargs


def get(prefix: str) -> Logger:
    """Return the logger of one part of the program."""
    return Logger(_root, {"prefix": printable(prefix)})


class _Lines(logging.Formatter):
    """`2026-01-02 15:04:05 INFO  TCP [demo] text`, the level in colour on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<5}"
        if self._colour and record.levelno in _COLOURS:
            level = f"\033[{_COLOURS[record.levelno]}m{level}\033[0m"
        line = f"{when} {level} {getattr(record, 'prefix', '')} {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc)
        fields = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "prefix": getattr(record, "prefix", ""),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def setup(stream: TextIO | None = None) -> None:
    """Start logging, as `DEBUG=1`, `GNAR_LOG=json` and `NO_COLOR` say."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_json = os.environ.get("GNAR_LOG", "").lower() == "json"
    colour = takes_escapes(stream) and not os.environ.get("NO_COLOR")
    handler.setFormatter(_Json() if is_json else _Lines(colour=colour))
    logging.addLevelName(logging.WARNING, "WARN")
    _root.handlers = [handler]
    _root.setLevel(logging.DEBUG if os.environ.get("DEBUG", "") not in ("", "0") else logging.INFO)


class Burst:
    """A warning that many users cause is logged as it begins, each minute that it lasts, and at its end.

    With `lines`, the first so many of each minute are logged: where each may be about somebody else.
    """

    def __init__(self, report_s: float = BURST_REPORT_S, lines: int = 1) -> None:
        self._report_s = report_s
        self._lines = self._left = lines
        self._unreported = 0
        self._next_s = 0.0
        self._is_on = False

    def warning(self, log: Logger, message: str, *args: object) -> None:
        """Log, or only count while the burst lasts."""
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
        """What was wrong is right again."""
        if self._is_on:
            log.info("works again%s", f" ({self._unreported} more failed)" if self._unreported else "")
            self._is_on, self._unreported = False, 0
