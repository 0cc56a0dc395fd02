"""The web ports of a server that has none: it loads nothing of HTTP."""

from __future__ import annotations

from gnar_lib.config import ServerConfig
from gnar_lib.net import Listener


class NoWeb:
    """Has the methods of `WebIngress` that others call, which do nothing here."""

    expects_requests = False

    @property
    def listeners(self) -> dict[str, Listener]:
        """None."""
        return {}

    def start(self, given: dict[str, Listener] | None = None) -> None:
        """Close the `given` listeners, which are no longer wanted."""
        for listener in (given or {}).values():
            listener.close()

    def use(self, _config: ServerConfig) -> None:
        """Do nothing: ports come with a restart."""

    def pause(self) -> None:
        """Do nothing."""

    def resume(self) -> None:
        """Do nothing."""

    def stop_listening(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
