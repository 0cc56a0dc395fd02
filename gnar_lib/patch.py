"""Makes the standard library cooperate with gevent; imported first of all, and by gnar.py alone."""

from __future__ import annotations

from gevent import config, monkey


def patch_all() -> None:
    """Patch the standard library of this process, for the one kind of loop that `net` works with.

    On Windows gevent prefers libuv's, and an installed gevent has it; but libuv wants watchers to be closed.
    """
    config.loop = "libev-cext"
    monkey.patch_all(ssl=False)  # gnar speaks no TLS, and some Pythons lack it
