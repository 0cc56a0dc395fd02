"""A name by which users come, through the ports that all names share; knows no client."""

from __future__ import annotations

from gnar_lib.proto import ProxyReq
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.table import AWAY_S, Names
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.upstream import Upstream


class NamedIngress:
    """A name in `names`, which has been taken for the proxy; its users belong to the proxy.

    `where` is the URL at which users find the proxy.
    """

    request: ProxyReq  # what the client has asked for; `making.fit` says so
    port = 0
    public_port = 0

    def __init__(self, name: Name, where: str, proxy: Proxy, names: Names) -> None:
        self.proxy = proxy
        self.name = name
        self.where = where
        self.key = name.key  # what no other ingress of the server has
        self._names = names

    @property
    def named(self) -> NamedIngress:
        """The ingress of the proxy's name: this one."""
        return self

    def start(self) -> None:
        """Take users from now on."""
        self._names.open(self.name, self.proxy)

    def pause(self) -> None:
        """Do nothing: the port that all names share takes no users."""

    def rest(self, nobody: Upstream) -> None:
        """Have users wait for `nobody` until `go_on`: the client is away."""
        self.proxy.move_to(nobody)

    def go_on(self, upstream: Upstream) -> None:
        """Have users reach the client by `upstream` from now on."""
        self.proxy.move_to(upstream)
        self.start()

    def leave(self, hold_s: float = AWAY_S) -> None:
        """Take no more users, but hold the name for the client, which is gone."""
        self._names.leave(self.name, self.proxy, hold_s)
        self.proxy.close()

    def close(self) -> None:
        """Take no more users; those who have a data connection stay. More than once does no harm."""
        self._names.release(self.name, self.proxy)
        self.proxy.close()
