"""The screen of a terminal while this process has it: enters it, paints it, and gives it back as it was.

What is painted is on the terminal's other buffer, so that the scrollback stays as it is. Painting does not
wait: a terminal that is stopped by ^S is painted again when it goes on. Knows nothing of signals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from gnar_lib.terminal import modes
from gnar_lib.writer import Writer, writer_to

MIN_COLUMNS, MIN_LINES = 1, 1
USUAL_SIZE = (80, 24)  # where the terminal does not say
READ_BYTES = 1024
MAX_WAITING_BYTES = 4096  # for a slow reader, before another picture is painted
LEAVE_S = 0.2  # how long the reader of a terminal is waited for as the screen is left, twice

# Control sequences of xterm, which other terminals took over: the other buffer (1049), the cursor (25), what
# becomes of too long a line (7: it does not go on below), and to show all of what is written at once (2026).
_ENTER = "\033[?1049h\033[?25l\033[?7l\033[H\033[2J"
_LEAVE = "\033[?2026l\033[0m\033[H\033[2J\033[?7h\033[?25h\033[?1049l"
_BEGIN, _END = "\033[?2026h", "\033[?2026l"


def is_usable(environ: Mapping[str, str]) -> bool:
    """Tell whether standard input, output and error are one terminal that can be painted on."""
    if not modes.IS_SUPPORTED or environ.get("TERM", "") in ("", "dumb"):
        return False
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if not all(stream is not None and stream.isatty() for stream in streams):
        return False
    keyboard, output, log = (stream.fileno() for stream in streams)
    return os.path.sameopenfile(keyboard, output) and os.path.sameopenfile(output, log)


class Screen:
    """A terminal, to which `paint` puts lines between `enter` and `leave`; both may be called again."""

    def __init__(self, keyboard: TextIO | None = None, output: TextIO | None = None) -> None:
        self._keyboard = keyboard or sys.stdin
        self._output = output or sys.stdout
        self.is_entered = False
        self._modes: Any = None  # of the terminal before `enter`
        self._painted: list[str] | None = None  # the lines that are there; None: nobody knows

    @property
    def keyboard(self) -> int:
        """The descriptor of the keyboard."""
        return self._keyboard.fileno()

    @property
    def is_in_foreground(self) -> bool:
        """Whether it is this process's turn: a job in the background must leave the terminal alone."""
        return modes.is_in_foreground(self.keyboard)

    def size(self) -> tuple[int, int]:
        """Return the columns and lines of the terminal."""
        try:
            columns, lines = os.get_terminal_size(self._output.fileno())
        except OSError:  # it has gone
            columns, lines = 0, 0
        if not columns or not lines:  # such as on a serial line
            return USUAL_SIZE
        return max(columns, MIN_COLUMNS), max(lines, MIN_LINES)

    def enter(self) -> None:
        """Take the terminal, also again: after this process was stopped, nobody knows what it looks like."""
        before = modes.keys_at_once(self.keyboard)
        if not self.is_entered:
            self._modes = before
        self.is_entered = True
        self._painted = None
        self._writer.put(_ENTER)

    def leave(self) -> None:
        """Give the terminal back as it was; more than once does no harm."""
        if not self.is_entered:
            return
        self.is_entered = False
        self._writer.put(_LEAVE)
        if not self.is_in_foreground:
            return
        if self._modes is not None:
            modes.set_modes(self.keyboard, self._modes)
        if not self._writer.flush(LEAVE_S):  # ^S was pressed: nobody would see that the process has ended
            modes.let_output_go_on(self.keyboard)
            self._writer.flush(LEAVE_S)

    def forget(self) -> None:
        """Have the next `paint` write all lines: the size of the terminal has changed."""
        self._painted = None

    def paint(self, lines: Sequence[str]) -> bool:
        """Write the lines that differ from those on the screen; return False if the reader is behind."""
        if not self.is_entered or self._writer.waiting_bytes > MAX_WAITING_BYTES:
            return False
        before = self._painted
        parts = ["\033[H\033[2J"] if before is None else []
        for number in range(max(len(lines), len(before or ()))):
            line = lines[number] if number < len(lines) else ""
            was = before[number] if before is not None and number < len(before) else ""
            if line != was:
                parts.append(f"\033[{number + 1};1H\033[2K{self._encodable(line)}")
        if parts:
            self._writer.put("".join([_BEGIN, *parts, _END]))
        self._painted = [*lines]
        return True

    def read(self) -> bytes | None:
        """Return what was typed, without waiting; None if the terminal has gone.

        Nothing at all is returned where there was something to read: another process has read or flushed it.
        """
        try:
            return os.read(self.keyboard, READ_BYTES) or (None if modes.has_gone(self.keyboard) else b"")
        except BlockingIOError:
            return b""
        except OSError:
            return None

    @property
    def _writer(self) -> Writer:
        return writer_to(self._output)

    def _encodable(self, text: str) -> str:
        """Return text with a question mark for each character that the terminal's encoding lacks."""
        encoding = self._output.encoding or "utf-8"
        return text.encode(encoding, "replace").decode(encoding)
