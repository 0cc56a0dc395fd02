"""A proxied TCP port: accepts users and hands each to the proxy; knows no client."""

from __future__ import annotations

import socket

from gnar_lib.net import Crew, Listener
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.upstream import Upstream


class TcpIngress:
    """A listener whose users belong to one proxy; a greenlet of `users` serves each."""

    def __init__(self, listener: Listener, proxy: Proxy, users: Crew) -> None:
        self.proxy = proxy
        self.port = listener.port
        self.key = ("tcp", self.port)  # what no other ingress of the server has
        self._listener = listener
        self._users = users

    def start(self) -> None:
        """Take users from now on."""
        self._listener.serve(self._users, self.proxy.serve, is_for_users=True)

    def pause(self) -> None:
        """Take no users until `start`: they wait in the kernel."""
        self._listener.pause()

    def rest(self, nobody: Upstream) -> None:
        """Have users wait, in the kernel or for `nobody`, until `go_on`: the client is away."""
        self._listener.pause()
        self.proxy.move_to(nobody)

    def go_on(self, upstream: Upstream) -> None:
        """Take users again, who reach the client by `upstream` from now on."""
        self.proxy.move_to(upstream)
        self.start()

    @property
    def sock(self) -> socket.socket:
        """The listening socket."""
        return self._listener.sock

    def close(self) -> None:
        """Take no more users; those who have a data connection stay. More than once does no harm."""
        self._listener.close()
        self.proxy.close()
