"""What only the system knows of a terminal: its modes, and whether it is this process's turn to use it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

if sys.platform == "win32":
    IS_SUPPORTED = False

    def keys_at_once(_file: int) -> Any:
        """Return None: there are no modes to set."""
        return None

    def set_modes(_file: int, _modes: Any) -> None:
        """Do nothing."""

    def let_output_go_on(_file: int) -> None:
        """Do nothing."""

    def is_in_foreground(_file: int) -> bool:
        """Return True: there is no job control."""
        return True

    def has_gone(_file: int) -> bool:
        """Return True: nothing is read but at the end."""
        return True

    def stop_this_process() -> None:
        """Do nothing: there is no job control."""

else:
    import termios

    IS_SUPPORTED = True
    _LOCAL, _CHARACTERS = 3, 6  # places in what `tcgetattr` returns

    def keys_at_once(file: int) -> Any:
        """Have each key reach this process at once, unseen; ^C, ^Z, ^S and ^Q do what they always do.

        Returns the modes before, for `set_modes`; None if they could not be changed.
        """
        with suppress(termios.error):
            before = termios.tcgetattr(file)
            modes = termios.tcgetattr(file)
            modes[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
            modes[_CHARACTERS][termios.VMIN] = modes[_CHARACTERS][termios.VTIME] = 0  # a read never waits
            termios.tcsetattr(file, termios.TCSANOW, modes)
            return before
        return None

    def set_modes(file: int, modes: Any) -> None:
        """Give a terminal its modes back; does nothing if the terminal has gone."""
        with suppress(termios.error):
            termios.tcsetattr(file, termios.TCSANOW, modes)

    def let_output_go_on(file: int) -> None:
        """Take back the ^S of a terminal."""
        with suppress(termios.error):
            termios.tcflow(file, termios.TCOOFF)  # Linux lets output go on only if a program has stopped it
            termios.tcflow(file, termios.TCOON)

    def is_in_foreground(file: int) -> bool:
        """Tell whether the terminal's keys are for this process: a shell's job may be in the background."""
        try:
            return os.tcgetpgrp(file) == os.getpgrp()
        except OSError:  # it is no terminal of this session, so nobody's job
            return False

    def has_gone(file: int) -> bool:
        """Tell whether a terminal has hung up: it answers nothing then.

        Asks for no POLLHUP, since gevent replaces `select.poll`, and macOS polls no terminals.
        """
        try:
            termios.tcgetattr(file)
        except termios.error:
            return True
        return False

    def stop_this_process() -> None:
        """Stop this process as ^Z does, until SIGCONT; SIGTSTP must have its default effect.

        Returns at once where nobody could continue the process: there is no shell above it.
        """
        signal.raise_signal(signal.SIGTSTP)
