"""A terminal with a person in front of it: a program runs in a real one, and pyte shows what it shows."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyte

from tests.helpers.harness import SOON_S, WAIT_S, wait_until

CTRL_C, CTRL_Q, CTRL_S, CTRL_Z = "\x03", "\x11", "\x13", "\x1a"
ENTERS, LEAVES = b"\x1b[?1049h", b"\x1b[?1049l"

# Makes the terminal that is standard input the controlling one of the session, then becomes the program.
_ATTACH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_OTHER_BUFFER = 1049


class _TwoBuffers(pyte.Screen):
    """A screen that knows the other buffer of xterm, which pyte leaves out."""

    _kept: tuple[Any, Any] | None = None

    @property
    def is_other(self) -> bool:
        return self._kept is not None

    def set_mode(self, *modes: int, **how: Any) -> None:
        if how.get("private") and _OTHER_BUFFER in modes and self._kept is None:
            self._kept = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **how)

    def reset_mode(self, *modes: int, **how: Any) -> None:
        if how.get("private") and _OTHER_BUFFER in modes and self._kept is not None:
            self.buffer, self.cursor = self._kept
            self._kept = None
        super().reset_mode(*modes, **how)


class Terminal:
    """Runs a program in a terminal; the end of the block kills the program."""

    def __init__(
        self,
        *argv: str,
        columns: int = 80,
        lines: int = 24,
        env: dict[str, str] | None = None,
        term: str = "xterm-256color",
    ) -> None:
        self._screen = _TwoBuffers(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""  # all that was written to the terminal
        self._master, slave = pty.openpty()
        self._set_size(columns, lines)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ATTACH, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": term, "LANG": "C.UTF-8", **(env or {})},
            start_new_session=True,
        )
        self._slave = slave  # kept, so that the terminal outlives the program
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(WAIT_S)
        os.close(self._slave)
        if kind is not None:
            print("---- terminal ----", *self.shown, "---- all of it ----", repr(self.raw), sep="\n")

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the slave is closed
            while data := os.read(self._master, 65536):
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)
        os.close(self._master)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    # ---- what a person does and sees -----------------------------------------------------------------------

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the window."""
        with self._lock:
            self._screen.resize(lines, columns)
        self._set_size(columns, lines)

    @property
    def shown(self) -> list[str]:
        """The lines on the screen."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The lines on the screen as one text."""
        return "\n".join(self.shown).rstrip()

    @property
    def is_other(self) -> bool:
        """Whether the other buffer is shown, as by a live view."""
        return self._screen.is_other

    @property
    def has_cursor(self) -> bool:
        """Whether the cursor is shown."""
        return not self._screen.cursor.hidden

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as it does for a shell."""
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def is_given_back(self) -> bool:
        """Tell whether the terminal is as a program without a live view leaves it."""
        return self.has_cursor and self.echoes and not self.is_other

    def wait_shown(self, *texts: str, timeout_s: float = WAIT_S) -> str:
        """Wait until all texts are on the screen, and return the whole screen."""
        wait_until(lambda: all(text in self.text for text in texts), f"{texts} on the terminal", timeout_s)
        return self.text

    def wait_for(self, fact: Callable[[str], bool], what: str) -> str:
        """Wait until a fact holds for the text on the screen, and return the text."""
        found: Sequence[str] = []

        def holds() -> bool:
            nonlocal found
            found = [self.text]
            return fact(found[0])

        wait_until(holds, what)
        return found[0]

    def wait_exit(self, timeout_s: float = SOON_S) -> int:
        """Wait for the end of the program, and return its exit status."""
        return self.process.wait(timeout_s)
