"""A proxied TCP port: accepts users and hands each to the proxy; knows no client."""

from __future__ import annotations

from gnar_lib.net import Crew, Listener
from gnar_lib.server.proxies import Proxy


class TcpIngress:
    """A listener whose users belong to one proxy; a greenlet of `users` serves each."""

    def __init__(self, listener: Listener, proxy: Proxy, users: Crew) -> None:
        self.proxy = proxy
        self.port = listener.port
        self._listener = listener
        self._users = users

    def start(self) -> None:
        """Take users from now on."""
        self._listener.serve(self._users, self.proxy.serve, is_for_users=True)

    def close(self) -> None:
        """Take no more users; those who have a data connection stay. More than once does no harm."""
        self._listener.close()
        self.proxy.close()
