"""The web ports of a server without names: it loads nothing of them."""

from __future__ import annotations

from gnar_lib.config import ServerConfig
from gnar_lib.http.limits import Limits
from gnar_lib.net import EventedConn, Listener, SocketConn


class NoWeb:
    """Has the methods of `WebIngress` that others call, which do nothing here."""

    expects_requests = False
    has_control_port = False
    limits = Limits()

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

    def has_name(self, _host: str) -> bool:
        """Return False: there are no names."""
        return False

    def take(self, conn: EventedConn, _scheme: str) -> None:
        """Close the conn; nobody is a user here."""
        conn.close()

    def takes_tls(self, _conn: SocketConn, _host: str) -> bool:
        """Return False: there are no names."""
        return False
