"""Runs a program and waits for it without holding the loop up; knows nothing of hooks.

POSIX's own spawn is used, not fork: forking a process that holds a lot of memory stops it for tens of
milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import gevent.event
import gevent.os
from gevent import monkey
from gevent.hub import get_hub

LOOK_S = 0.02  # between two looks whether a program has ended

# Each program has a process group of its own, the default action for every signal, and no descriptor of this
# process but 0, 1 and 2: Python opens all others so that programs do not inherit them, and `keep_files` is
# for what this process has inherited itself.
if sys.platform != "win32":
    # The original functions: the `close` of gevent waits for the loop to turn, which can take long, and its
    # other two have the loop wait for all children of this process, whoever has started them.
    _close_file: Callable[[int], None] = monkey.get_original("os", "close")
    _posix_spawnp: Callable[..., int] = monkey.get_original("os", "posix_spawnp")
    _waitpid: Callable[[int, int], tuple[int, int]] = monkey.get_original("os", "waitpid")
    _SIGNALS = [each for each in signal.Signals if each not in {signal.SIGKILL, signal.SIGSTOP}]

    def keep_files() -> None:
        """Have no program inherit what this process itself has inherited, besides its standard streams."""
        with suppress(OSError):  # a bare system may have no such folder
            for name in os.listdir("/dev/fd"):
                if int(name) > 2:  # noqa: PLR2004  (standard error)
                    with suppress(OSError):  # the folder itself, which is closed again
                        os.set_inheritable(int(name), False)

    class RunningProgram:
        """A program that runs; `kill` has to be called in the end. Raises `OSError` if it does not start.

        Its output goes to the file `output`.
        """

        def __init__(self, words: Sequence[str], env: Mapping[str, str], output: int) -> None:
            self._status: int | None = None  # from its end on
            self._ended: gevent.event.Event = gevent.event.Event()
            stdin, self._stdin = os.pipe()
            try:
                gevent.os.make_nonblocking(self._stdin)
                self._pid = _spawn(words, env, (stdin, output, output))
            except BaseException:
                _close_file(self._stdin)
                raise
            finally:
                _close_file(stdin)
            self._timer: Any = get_hub().loop.timer(LOOK_S, LOOK_S)
            self._timer.start(self._look)

        def _look(self) -> None:
            """Note the exit status once there is one; called in the hub, also after `kill`."""
            try:
                pid, status = _waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # somebody else was told, as where SIGCHLD is ignored
                pid, status = self._pid, 0
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._timer.stop()
                self._ended.set()

        def run(self, data: bytes) -> int:
            """Give the program its standard input, wait for its end and return its exit status.

            The status is below 0 if a signal has ended the program. Waits for as long as the program runs.
            """
            rest = memoryview(data)
            with suppress(OSError):  # it does not want to know
                while rest:
                    rest = rest[gevent.os.nb_write(self._stdin, rest) :]
            self._close()
            self._ended.wait()
            return self._status or 0

        def kill(self) -> None:
            """End the program, with all that it has started in its group; none of it if it has ended."""
            self._close()
            if self._status is None:
                with suppress(OSError):
                    os.killpg(self._pid, signal.SIGKILL)

        def _close(self) -> None:
            if self._stdin >= 0:
                _close_file(self._stdin)
                self._stdin = -1

    def _spawn(words: Sequence[str], env: Mapping[str, str], streams: tuple[int, int, int]) -> int:
        """Start a program with these standard streams, and return its process id; raises `OSError`."""
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(streams)]
        return _posix_spawnp(
            words[0], [*words], env, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=_SIGNALS
        )

else:
    import subprocess

    def keep_files() -> None:
        """Do nothing: what a program inherits is named one by one."""

    class RunningProgram:
        """The same on Windows, where `kill` ends the program alone, and not what it has started."""

        def __init__(self, words: Sequence[str], env: Mapping[str, str], output: int) -> None:
            self._process = subprocess.Popen(  # noqa: S603  (whoever has written the file chooses the program)
                words,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=env,
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW,
            )

        def run(self, data: bytes) -> int:
            """Give the program its standard input, wait for its end and return its exit status."""
            self._process.communicate(data)
            return self._process.returncode

        def kill(self) -> None:
            """End the program, unless it has ended."""
            with suppress(OSError):
                self._process.kill()
