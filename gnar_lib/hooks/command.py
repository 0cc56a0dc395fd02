"""Runs the command of a hook: the event is in its environment, and as JSON on its standard input."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.lock import BoundedSemaphore

from gnar_lib import logger
from gnar_lib.config import HookConfig
from gnar_lib.errors import DeadlineError
from gnar_lib.hooks.message import Message
from gnar_lib.hooks.outcome import Outcome
from gnar_lib.hooks.process import RunningProgram, keep_files
from gnar_lib.net import deadline

MOST_AT_ONCE = 4  # commands that run, of all hooks
MAX_OUTPUT_BYTES = 4096  # that the log shows of what a command writes

_log = logger.get("hooks")
_places = BoundedSemaphore(MOST_AT_ONCE)


class Command:
    """Runs the command of one hook. A command that fails is not run again."""

    def __init__(self, config: HookConfig) -> None:
        self._config = config
        keep_files()

    def deliver(self, message: Message) -> Outcome:
        """Run the command for a message."""
        try:
            with _places, _output() as output:
                return self._run(message, output)
        except OSError as exc:
            return Outcome(f"cannot run it: {exc.strerror or exc}")

    def _run(self, message: Message, output: int) -> Outcome:
        program = RunningProgram(self._config.command, _environment(message), output)
        try:
            with deadline(self._config.timeout_s, "the command"):
                status = program.run(message.json() + b"\n")
        except DeadlineError as exc:
            return Outcome(f"{exc}, and was killed")
        finally:
            program.kill()
        if status < 0:
            return Outcome(f"signal {-status} has ended it")
        return Outcome(f"exit status {status}" if status else "")


def _environment(message: Message) -> dict[str, str]:
    """Return the environment of a command: this process's, with the event in place of gnar's own variables.

    Those hold secrets.
    """
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith("GNAR_")}
    return {**kept, **message.variables()}


@contextmanager
def _output() -> Iterator[int]:
    """Open a file for the output of a command; with DEBUG=1, its beginning is logged in the end."""
    if not _log.isEnabledFor(logging.DEBUG):
        with open(os.devnull, "wb") as nowhere:
            yield nowhere.fileno()
        return
    with tempfile.TemporaryFile() as kept:  # not a pipe, which somebody would have to read all the time
        yield kept.fileno()
        kept.seek(0)
        for line in kept.read(MAX_OUTPUT_BYTES).decode(errors="replace").splitlines():
            _log.debug("the command says: %s", line)
