"""A web port in this process, in front of services of this process or of others: names without clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from gnar_lib.auth import Credential
from gnar_lib.config import ServerConfig
from gnar_lib.errors import ConnError, DialError
from gnar_lib.http import Limits
from gnar_lib.net import Conn, Crew, Sockaddr, SocketConn, listen
from gnar_lib.net.target import Target
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import ProxyReq
from gnar_lib.server.balancers import Balancers
from gnar_lib.server.ingress.web import WebIngress
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.table import Names
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.web.settings import WebSettings
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.web import LOOPBACK
from tests.peers.mux import clean


class Rules:
    """Rules for addresses that refuse some of them."""

    def __init__(self) -> None:
        self.refused: set[str] = set()

    def refusal(self, address: tuple[str, int]) -> str:
        return "refused" if address[0] in self.refused else ""


class Service:
    """A proxy as the web port sees it, whose way to the service is a plain connection."""

    kind = "http"
    idle_timeout_s = 0.0

    def __init__(self, port: int, **settings: Any) -> None:
        self.name = "web"
        self.is_away = False
        self.meter = Meter()
        self.limits = UserLimits()
        self.places = Places("proxy 'web'", self.limits)
        request = ProxyReq(remote_port=0, proxy_name="web", subdomain="a", proxy_type="http", **settings)
        self.web = WebSettings.of(request)
        self.rules = Rules()
        self.reach: object = None
        self.connects = 0
        self.told: list[Sockaddr] = []  # the addresses of users, of which the client has been told
        self._target = Target(LOOPBACK, port)

    def connect(self, _user: Conn, address: Sockaddr) -> Conn | None:
        """Return a conn, which is aborted if there is no service, as a client's data connection is."""
        self.connects += 1
        self.told.append(address)
        try:
            return self._target.dial()
        except DialError:
            from tests.proxy.test_stream import tcp_pair

            near, far = tcp_pair()
            far.abort()
            return near


class FakeNames:
    """The proxies by host alone."""

    def __init__(self) -> None:
        self.proxies: dict[str, Service] = {}
        self.with_paths: set[str] = set()

    def find(self, host: str, _path: str) -> Service | None:
        return self.proxies.get(host)

    def has_paths(self, host: str) -> bool:
        return host in self.with_paths

    def find_tls(self, _host: str) -> None:
        return None

    def knows(self, host: str) -> bool:
        return host in self.proxies


class SiteOfTest:
    """A web port in this process; `ask` as `tests.helpers.web.Served` does."""

    def __init__(self, names: FakeNames, limits: Limits | None, **settings: Any) -> None:
        self.names = names
        self.crew = Crew("user")
        listener = listen(LOOPBACK, 0)
        config = ServerConfig(**{"trust_forwarded": (), "http_port": listener.port, **settings})
        shared: Any = SimpleNamespace(
            names=names,
            config=config,
            control_port=config.port,
            users=self.crew,
            answers=[0] * 6,
            balancers=Balancers(config.accept_proxy_protocol),
        )
        self.ingress = WebIngress(shared)
        if limits is not None:
            self.ingress.site.use_limits(limits)
        self.ingress.start({"http": listener})
        self.port = listener.port

    def dial(self) -> SocketConn:
        from tests.helpers.web import Served

        return Served.dial(self)  # type: ignore[arg-type]

    def ask(self, data: bytes, pieces: Any = (), *, end: bool = False) -> bytes:
        from tests.helpers.web import Served

        return Served.ask(self, data, pieces, end=end)  # type: ignore[arg-type]

    def close(self) -> None:
        self.ingress.close()
        self.crew.kill()
        wait_until(lambda: not len(self.crew), "no user is served")
        assert not len(self.ingress.site.crowd)


@contextmanager
def site_before(
    port: int, *, limits: Limits | None = None, wanted: dict[str, Any] | None = None, **settings: Any
) -> Iterator[SiteOfTest]:
    """Serve the name `a` for the block, whose service is at `port`; fails if anything stays behind.

    `wanted` is what the client of the name asks for, besides HTTP/2; `settings` are those of the server.
    """
    names = FakeNames()
    names.proxies["a"] = Service(port, **{"http2": True, **(wanted or {})})
    with clean(80.0):
        site = SiteOfTest(names, limits, **settings)
        try:
            yield site
        finally:
            site.close()


class Scripted:
    """A service of this process whose connections a test serves by itself: `serve(conn)`, which closes it."""

    def __init__(self, serve: Callable[[SocketConn], None]) -> None:
        self.crew = Crew("service")
        self._listener = listen(LOOPBACK, 0)
        self._listener.serve(self.crew, self._serve)
        self._function = serve
        self.port = self._listener.port

    def _serve(self, conn: SocketConn) -> None:
        try:
            self._function(conn)
        finally:
            conn.close()

    def close(self) -> None:
        self._listener.close()
        self.crew.kill()
        wait_until(lambda: not len(self.crew), "no connection of the service is served")


@contextmanager
def scripted(serve: Callable[[SocketConn], None]) -> Iterator[Scripted]:
    """Run a service for the block."""
    service = Scripted(serve)
    try:
        yield service
    finally:
        service.close()


def tell_request(conn: SocketConn) -> None:
    """Serve requests without bodies: each is answered with its head."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            if not (more := conn.recv(4096)):
                return
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        body = b"told: " + head
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Passed(Service):
    """A proxy of TLS that is passed through: it keeps what has come."""

    kind = "https"

    def __init__(self) -> None:
        super().__init__(0)
        self.received = b""

    def serve(self, conn: SocketConn) -> None:
        try:
            with suppress(ConnError):
                while more := conn.recv(4096):
                    self.received += more
        finally:
            conn.close()


def give_name(names: Names, host: str, proxy: Any) -> None:
    """Have a proxy without a client at a name."""
    holder: Any = SimpleNamespace(is_silent=False)
    name = Name(proxy.kind, host)
    names.take(name, proxy, (Credential("none", TOKEN), LOOPBACK), holder)
    names.open(name, proxy)


def read_until(conn: SocketConn, end: bytes) -> bytes:
    """Return what comes up to `end`, or to the end of the stream."""
    data = b""
    while end not in data and (more := conn.recv(1 << 16)):
        data += more
    return data
