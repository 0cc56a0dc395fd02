"""Writes log lines and errors to standard error, and texts for people to standard output.

A log line has a prefix such as `TCP [demo]`, or is a JSON object. No log line waits for a reader, and
each kind of line is limited, since peers cause most of them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
import time
from collections import defaultdict, deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO

from gnar_lib.writer import close_all, writer_to

_root = logging.getLogger("gnar")
_root.propagate = False
_root.addHandler(logging.NullHandler())
_asked = logging.getLogger(
    "gnar.asked"
)  # for lines that are logged at any level: somebody has asked for them
logging.raiseExceptions = False  # a log line that cannot be written is dropped, without a traceback

_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
_LEVEL_NAMES = {"WARNING": "WARN"}  # shorter than in logging, so that the lines align

FORMATS = ("json", "text")
LEVELS = ("debug", "info", "warning", "error")
DEFAULT_FORMAT, DEFAULT_LEVEL = "text", "info"

PERIOD_S = 60.0  # for which lines of one kind are limited
LINES_PER_PERIOD = 60  # of one kind; the others are only counted
CHANGES_PER_PERIOD = 5  # how often a cause that comes and goes is told of
MAX_MESSAGE = 2000  # characters of one message: a peer can send names of 64 KiB


def printable(text: str) -> str:
    """Return text with all characters escaped that Python calls unprintable, but for tabs.

    So text of a peer cannot forge lines or colours, and cannot hide or turn around what is beside it: control
    characters, line separators, bidirectional and zero-width ones are not printable.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\t" else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def takes_escapes(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colours and links. Windows' terminals may not."""
    return stream.isatty() and sys.platform != "win32"


def complain(text: str) -> None:
    """Write an error to standard error as one line, if standard error can be written to; does not wait."""
    _terminal.write(sys.stderr, f"gnar: {printable(text)}\n")


def announce(text: str) -> None:
    """Write text for people to standard output, if that can be written to; does not wait."""
    _terminal.write(sys.stdout, text)


def close() -> None:
    """Wait until everything is written, but for a second at most; to be called as the process ends.

    Also before a process replaces itself (`exec`). What is logged afterwards is written as before.
    """
    close_all()


def show(text: str) -> bool:
    """Write text to standard output; returns whether all of it was written.

    Waits for the reader, so this is for commands that do nothing else. An error is reported on standard
    error, unless the reader of a pipe has gone.
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


def get(prefix: str, *, limited: bool = True) -> Logger:
    """Return a logger whose lines begin with `prefix`.

    `limited` is False where no peer can cause the lines: those that whoever runs the process asks for. These
    are logged at any level.
    """
    return Logger(_root if limited else _asked, {"prefix": printable(prefix), "limited": limited})


def _level_of(record: logging.LogRecord) -> str:
    """Return the name of a record's level, in capital letters."""
    return _LEVEL_NAMES.get(record.levelname, record.levelname)


def _message_of(record: logging.LogRecord) -> str:
    """Return the printable text of a record, and how many lines like it were not logged."""
    message = printable(record.getMessage())
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}... ({len(message) - MAX_MESSAGE} characters more)"
    return message + getattr(record, "remark", "")


class _Formatter(logging.Formatter):
    """Formats tracebacks, which may quote a peer."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  (the name is that of logging)
        """Return a traceback whose lines are printable."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


class _LineFormatter(_Formatter):
    """Formats a record as `2026-01-02 15:04:05 INFO  TCP [demo] text`, with the level in colour if wanted."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{_level_of(record):<5}"
        if self._colour and record.levelno in _COLOURS:
            level = f"\033[{_COLOURS[record.levelno]}m{level}\033[0m"
        line = f"{when} {level} {getattr(record, 'prefix', '')} {_message_of(record)}"
        if record.exc_info:  # indented, so that no line of the traceback can pass for a log line
            line += "\n" + textwrap.indent(self.formatException(record.exc_info), "  ", lambda _: True)
        return line


class _JsonFormatter(_Formatter):
    """Formats a record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc)
        fields = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": _level_of(record).lower(),
            "prefix": getattr(record, "prefix", ""),
            "message": _message_of(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class _Handler(logging.Handler):
    """Hands lines to the writer of a stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written soon; one that cannot be formatted is dropped, as logging does it."""
        try:
            line = self.format(record) + "\n"
            _terminal.tell(record)
            _terminal.write(self.stream, line, self._lost_line)
        except Exception:  # noqa: BLE001  (a log line must not end what it tells of)
            self.handleError(record)

    def _lost_line(self, count: int) -> str:
        """Return the line that takes the place of lines that nobody has read in time."""
        fields = {"msg": "%d lines lost: nobody read the log", "args": (count,), "prefix": "log"}
        record = logging.makeLogRecord({**fields, "levelno": logging.WARNING, "levelname": "WARNING"})
        return self.format(record) + "\n"


# ---- while a terminal shows something else -----------------------------------------------------------------

MAX_HELD = 500  # texts that wait for the terminal; of more, the oldest are left out


@dataclass(frozen=True, slots=True)
class Entry:
    """A log line as a live view shows it: when it was logged, its level, and its text with the prefix."""

    at: float  # as time.time() says
    level: int
    text: str


class _Terminal:
    """Passes texts on to their streams, or holds them while a live view has the terminal."""

    def __init__(self) -> None:
        self.listener: Callable[[Entry], None] | None = None
        self._held: deque[tuple[TextIO, str]] | None = None  # None: texts are passed on
        self._left_out = 0

    def tell(self, record: logging.LogRecord) -> None:
        """Tell the listener of a record that is logged."""
        if self.listener is not None:
            text = f"{getattr(record, 'prefix', '')} {_message_of(record)}"
            self.listener(Entry(record.created, record.levelno, text))

    def write(self, stream: TextIO, text: str, lost_line: Callable[[int], str] | None = None) -> None:
        """Have text written soon, or hold it; `lost_line` is for the writer."""
        if self._held is not None:
            self._left_out += len(self._held) == MAX_HELD
            self._held.append((stream, text))
            return
        writer = writer_to(stream)
        if lost_line is not None:
            writer.lost_line = lost_line
        writer.put(text)

    def hold(self) -> None:
        if self._held is None:
            self._held, self._left_out = deque(maxlen=MAX_HELD), 0

    def release(self) -> None:
        held, self._held = self._held or (), None
        if self._left_out:
            complain(f"{self._left_out} lines before these are left out")
            self._left_out = 0
        for stream, text in held:
            writer_to(stream).put(text)


_terminal = _Terminal()


def follow(listener: Callable[[Entry], None] | None) -> None:
    """Have `listener`, which must not wait, called with each log line from now on; None ends that."""
    _terminal.listener = listener


def hold() -> None:
    """Hold what is logged and announced from now on, since something else is on the terminal."""
    _terminal.hold()


def release() -> None:
    """Write what was held since `hold`, and write again at once from now on."""
    _terminal.release()


def setup(stream: TextIO | None = None, log_format: str = DEFAULT_FORMAT, level: str = DEFAULT_LEVEL) -> None:
    """Start logging to `stream`, or to standard error, as `change` says.

    Lines reach a stream that is given, as tests do, at once.
    """
    logging.logThreads = False  # a greenlet is no thread, and would be kept as one for as long as it lives
    # What no line shows need not be found out: see "Optimization" in the documentation of logging.
    logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = _Handler(sys.stderr) if stream is None else logging.StreamHandler(stream)
    handler.addFilter(_Limits())
    _root.handlers = [handler]
    change(log_format, level)


def change(log_format: str, level: str) -> None:
    """Log lines of one of `LEVELS` and above from now on, in one of `FORMATS`; the limits go on.

    Colours are for terminals, and the variable `NO_COLOR=1` turns them off.
    """
    for handler in _root.handlers:
        if isinstance(handler, logging.StreamHandler | _Handler):
            colour = takes_escapes(handler.stream) and not os.environ.get("NO_COLOR")
            is_json = log_format == "json"
            handler.setFormatter(_JsonFormatter() if is_json else _LineFormatter(colour=colour))
    number = logging.getLevelName(level.upper())
    _root.setLevel(number)
    _asked.setLevel(min(number, logging.INFO))


# ---- how much is logged ------------------------------------------------------------------------------------


class Quota:
    """Allows `lines` in each period of `period_s` seconds, and counts the others."""

    def __init__(self, lines: int, period_s: float) -> None:
        self.left = lines  # in this period
        self._lines = lines
        self._period_s = period_s
        self._refused = 0  # since `take_refused`
        self._next_s = 0.0  # when the next period begins, as time.monotonic() says

    @property
    def rest_s(self) -> float:
        """How long this period still lasts, in seconds."""
        return self._next_s - time.monotonic()

    def take(self) -> bool:
        """Tell whether one more line is allowed."""
        if self.rest_s <= 0:
            self.renew()
        if not self.left:
            self._refused += 1
            return False
        self.left -= 1
        return True

    def take_refused(self) -> int:
        """Return how many lines were refused since the last call."""
        count, self._refused = self._refused, 0
        return count

    def renew(self) -> None:
        """Begin a period now."""
        self.left, self._next_s = self._lines, time.monotonic() + self._period_s


class _Limits(logging.Filter):
    """Limits how many lines of each kind are logged, so that no peer can fill a disk.

    Lines with the same message, before its arguments are put in, are of one kind. Lines of debug level have
    no limit: whoever asks for them wants all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._quotas: defaultdict[str, Quota] = defaultdict(lambda: Quota(LINES_PER_PERIOD, PERIOD_S))

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is logged; its `remark` says how many before it were not."""
        if record.levelno <= logging.DEBUG or not getattr(record, "limited", True):
            return True
        quota = self._quotas[record.msg]
        if not quota.take():
            return False
        refused = quota.take_refused()
        remark = f" ({refused} more)" if refused else ""
        if not quota.left:
            remark += f" (such lines are only counted for the next {quota.rest_s:.0f} s)"
        vars(record)["remark"] = remark
        return True


class Burst:
    """Limits how often a warning is logged that many users cause at the same time.

    In each period of `report_s` seconds, the first warning is logged and the others are counted. The next
    line that is logged says how many were only counted.
    """

    def __init__(self, report_s: float = PERIOD_S) -> None:
        self.is_on = False  # whether there was a warning since `end`
        self._is_told = False  # whether one of them was logged
        self._quota = Quota(1, report_s)
        self._changes = Quota(CHANGES_PER_PERIOD, report_s)

    def warning(self, log: Logger, message: str, *args: object) -> None:
        """Log a warning, or count it if one has been logged in this period."""
        if not self.is_on:
            self.is_on = True
            if self._changes.take():  # its cause has come again, which is news
                self._quota.renew()
        if not self._quota.take():
            return
        self._is_told = True
        if refused := self._quota.take_refused():
            message, args = message + " (%d more)", (*args, refused)
        log.warning(message, *args)

    def end(self, log: Logger) -> None:
        """Log, if a warning was logged since the last call, that its cause is over."""
        if self._is_told:
            refused = self._quota.take_refused()
            log.info("works again%s", f" ({refused} more failed)" if refused else "")
        self.is_on = self._is_told = False
