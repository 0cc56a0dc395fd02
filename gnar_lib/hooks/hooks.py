"""The hooks of one process: starts them, takes those of new settings over, and ends them."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.config import HookConfig
from gnar_lib.errors import UsageError
from gnar_lib.events import Side
from gnar_lib.net import Crew

if TYPE_CHECKING:
    from ssl import SSLContext

    from gnar_lib.hooks.hook import Hook
    from gnar_lib.hooks.outcome import Deliverer

KILL_S = 1.0  # how long commands may take to be killed
LAST_S = 2.0  # for what is still to be delivered when the process stops, or a hook is removed

_log = logger.get("hooks")


class Hooks:
    """The hooks of a server or of a client. Without a hook in the settings, nothing is imported or done.

    `crew` has a greenlet for each hook. `finish` and the wait for the crew end all of them.
    """

    def __init__(self, side: Side) -> None:
        self.crew = Crew("hooks")
        self._side = side.value
        self._running: list[Hook] = []
        self._context: SSLContext | None = None  # from the first https URL on

    def use(self, configs: Iterable[HookConfig]) -> None:
        """Start the hooks of new settings, and end those that are not among them; equal ones go on.

        Raises `UsageError`, and changes nothing, if this Python cannot do what a hook asks for.
        """
        before = {hook.config: hook for hook in self._running}
        wanted = dict.fromkeys(configs)
        fresh = [self._make(config) for config in wanted if config not in before]
        self._running = [before[config] for config in wanted if config in before] + fresh
        for config in before.keys() - wanted.keys():
            before[config].finish(LAST_S)
        for hook in fresh:
            hook.start()
            self.crew.spawn(hook.run)

    def finish(self) -> None:
        """Take no more events, and have `crew` deliver those that wait, within `LAST_S`."""
        self.use(())

    def close(self) -> None:
        """End everything at once."""
        self.finish()
        self.crew.kill()
        self.crew.wait_empty(KILL_S)

    def _make(self, config: HookConfig) -> Hook:
        from gnar_lib.hooks.hook import Hook

        deliverer: Deliverer
        if config.command:
            from gnar_lib.hooks.command import Command

            if shutil.which(config.command[0]) is None:
                _log.warning("there is no program %s", config.command[0])
            deliverer = Command(config)
        else:
            from gnar_lib.hooks.post import Poster

            deliverer = Poster(config, self._tls_context(config))
        return Hook(config, deliverer, self._side, socket.gethostname())

    def _tls_context(self, config: HookConfig) -> SSLContext | None:
        """Return the settings of TLS, if the URL needs any; raises `UsageError`."""
        if self._context is None and config.url.reveal().lower().startswith("https:"):
            try:
                from gnar_lib.transport.tls import client_context
            except ImportError:
                raise UsageError("hooks: this Python has no TLS, which an https URL needs") from None
            self._context = client_context()
        return self._context
