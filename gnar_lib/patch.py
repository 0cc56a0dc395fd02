"""Prepares a process, and makes the standard library cooperate with gevent; used by gnar.py alone."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_COMMANDS_WITHOUT_GEVENT = {"--version", "completion", "man", "health", "top"}
_HELP = {"-h", "--help"}
_HUB_FILES = 4  # descriptors that a hub may need; libev aborts the process when it gets none


@contextmanager
def prepared_process(argv: Sequence[str]) -> Iterator[None]:
    """Prepare this process for a command line (without the program's name), which the `with` block runs.

    Keeps early signals from ending a process that is to run for long, opens standard streams that are closed,
    and patches the standard library if the command needs gevent, which takes time to load. Ends the process
    with one line on standard error when it may not open as many files as Python needs to import a module.
    """
    try:
        runs_for_long = _COMMANDS_WITHOUT_GEVENT.isdisjoint(argv[:1]) and _HELP.isdisjoint(argv)
        if runs_for_long:
            outlive_early_signals()
        _open_missing_streams()
        if runs_for_long:
            patch_all()
        yield
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise SystemExit(f"gnar: {exc.strerror}: raise the limit of this process (ulimit -n)") from None


class EarlySignals:
    """What came before the process was set up to handle it."""

    hangup = False  # a SIGHUP has come


def outlive_early_signals() -> None:
    """Have SIGHUP and SIGUSR1 not end this process, as they do by default, while it is being set up.

    From then on `lifecycle.Stopper` handles them. A SIGHUP that nohup(1) ignores stays ignored.
    """
    for name in ("SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)  # Windows has neither
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _note_early_signal)


def _note_early_signal(number: int, _frame: object) -> None:
    EarlySignals.hangup = EarlySignals.hangup or number == getattr(signal, "SIGHUP", None)


def _open_missing_streams() -> None:
    """Open the null device for each standard stream that is closed in this process.

    A closed stream leaves its descriptor (0, 1 or 2) to the first socket, and messages for people would be
    sent to whoever is at the other end of that socket.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _open_nothing()  # gets the lowest free descriptor, which is `number`
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  (for good)


def _open_nothing() -> None:
    """Open the null device; on a bare system that lacks it, a folder, to which nobody can write either."""
    try:
        os.open(os.devnull, os.O_RDWR)
    except FileNotFoundError:
        os.open(os.sep, os.O_RDONLY)


def patch_all() -> None:
    """Patch the standard library of this process, and make the main thread's hub.

    Raises `OSError` when the process may not open enough files. Ends the process with one line on standard
    error when gevent does not start with the GEVENT variables of the environment.
    """
    from gevent import config, events, get_hub, monkey

    # Gevent would look for plugins in all packages of this Python: code that is none of gnar's. With many
    # packages, looking is half of the time that a start takes.
    events.notify_and_call_entry_points = lambda _event: None  # type: ignore[attr-defined]
    _check_files_left(_HUB_FILES)
    names = sorted(name for name in os.environ if name.startswith("GEVENT"))
    try:
        # The one kind of loop that `net` works with. On Windows gevent would choose libuv, whose watchers
        # have to be closed one by one.
        config.loop = "libev-cext"
        hub = get_hub()  # before patching: a patched Python would try to make a hub again when it ends
        if names:  # all of them are used now, since an error would come during the work otherwise
            for setting in config.settings.values():
                if setting.environment_key in names:
                    setting.get()
            _ = hub.resolver, hub.threadpool
        monkey.patch_all(ssl=False)  # TLS works in memory alone, and some Pythons lack it
    except Exception as exc:
        # A module that is there and cannot be loaded: the installation is damaged.
        is_damaged = isinstance(exc, ImportError) and exc.path is not None
        if not names or is_damaged or isinstance(exc, OSError):
            raise
        settings = " ".join(f"{name}={os.environ[name]}" for name in names)
        reason = str(exc).partition("\n")[0]
        raise SystemExit(f"gnar: gevent does not start with {settings!a}: {reason}") from None


def _check_files_left(count: int) -> None:
    """Raise `OSError` unless this process may open that many more files."""
    opened: list[int] = []
    try:
        opened.extend(os.dup(0) for _ in range(count))  # no path: a bare system may lack /dev/null
    finally:
        for file in opened:
            os.close(file)
