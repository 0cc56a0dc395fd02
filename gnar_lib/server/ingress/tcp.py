"""A proxied TCP port: accepts users and hands each to the proxy; knows no client."""

from __future__ import annotations

import socket
from functools import partial

from gnar_lib.net import Listener
from gnar_lib.proto import ProxyReq
from gnar_lib.server.ingress.named import NamedIngress
from gnar_lib.server.names.table import AWAY_S
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.shared import Shared
from gnar_lib.server.upstream import Upstream


class TcpIngress:
    """A listener whose users belong to one proxy.

    Users whom a load balancer brings have the address that it tells. `named` is the ingress of the proxy's
    name, if there is one, which does what this one does. `is_local`: users of the port come from this machine
    alone, and the client knows of no port.
    """

    request: ProxyReq  # what the client has asked for; `making.fit` says so

    def __init__(
        self,
        listener: Listener,
        proxy: Proxy,
        shared: Shared,
        named: NamedIngress | None = None,
        *,
        is_local: bool = False,
    ) -> None:
        self.proxy = proxy
        self.named = named
        self.where = "" if named is None else named.where  # the URL of the name
        self.port = listener.port
        self.key = ("tcp", self.port)  # what no other ingress of the server has
        self.public_port = 0 if is_local else self.port
        self._listener = listener
        self._users = shared.users
        self._serve = partial(shared.balancers.serve, serve=proxy.serve)

    def start(self) -> None:
        """Take users from now on."""
        self._listener.serve(self._users, self._serve, is_for_users=True)
        if self.named is not None:
            self.named.start()

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

    def leave(self, hold_s: float = AWAY_S) -> None:
        """Take no more users, but hold the name for the client, which is gone."""
        self._listener.close()
        if self.named is not None:
            self.named.leave(hold_s)
        self.proxy.close()

    def close(self) -> None:
        """Take no more users; those who have a data connection stay. More than once does no harm."""
        self._listener.close()
        if self.named is not None:
            self.named.close()
        self.proxy.close()
