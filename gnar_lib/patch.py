"""Makes the standard library cooperate with gevent; called before all else, and by gnar.py alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_COMMANDS_WITHOUT_GEVENT = {"--version", "completion", "man", "health"}
_HELP = {"-h", "--help"}
_HUB_FILES = 4  # descriptors that a hub may need; libev aborts the process when it gets none


def is_needed(argv: Sequence[str]) -> bool:
    """Tell whether a command line (without the program's name) needs gevent, which takes time to load."""
    return _COMMANDS_WITHOUT_GEVENT.isdisjoint(argv[:1]) and _HELP.isdisjoint(argv)


def patch_all() -> None:
    """Patch the standard library of this process, and make the main thread's hub.

    Raises `OSError` when the process may not open enough files. Ends the process with one line on standard
    error when gevent does not start with the GEVENT variables of the environment.
    """
    from gevent import config, get_hub, monkey

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
        monkey.patch_all(ssl=False)  # gnar speaks no TLS, and some Pythons lack it
    except Exception as exc:
        if not names or isinstance(exc, OSError):
            raise
        settings = " ".join(f"{name}={os.environ[name]}" for name in names)
        reason = str(exc).partition("\n")[0]
        raise SystemExit(f"gnar: gevent does not start with {settings!a}: {reason}") from None


def _check_files_left(count: int) -> None:
    """Raise `OSError` unless this process may open that many more files."""
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    finally:
        for file in opened:
            os.close(file)


@contextmanager
def lack_of_files_in_one_line() -> Iterator[None]:
    """End the process with one line when it may not open as many files as Python needs to import a module."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise SystemExit(f"gnar: {exc.strerror}: raise the limit of this process (ulimit -n)") from None
