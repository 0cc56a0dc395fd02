"""A server that is played by hand for the links of a client: what they say to it, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from gnar_lib.client.link import Callbacks, Link
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.shared import Shared
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.net import SocketConn, listen
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import Heartbeat, Login, Message, ProxyReq, ProxyResp, Welcome, recv, send
from gnar_lib.proto.numbers import FEATURE_MUX, FEATURE_WAIT
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream
from tests.helpers.conns import accept

TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"


def proxy(name: str, remote_port: int = 0, kind: str = "tcp") -> ClientProxy:
    config = ProxyConfig(proxy_name=name, local_port=1, remote_port=remote_port, proxy_type=kind)
    return ClientProxy(config, Meter())


def opened(name: str, port: int) -> ProxyResp:
    return ProxyResp(domain="", status="success", remote_port=port, proxy_name=name)


def refused(name: str, *, retry: bool) -> ProxyResp:
    return ProxyResp(domain="", status="failed", error="no", retry=retry, proxy_name=name)


@dataclass
class Server:
    """The server's end of a link: accepts control connections and receives messages one by one."""

    left_over: list[str] = field(default_factory=list)  # names of the proxies that need links of their own
    links: list[Link] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)  # names of the proxies that the link has given up
    conns: list[SocketConn] = field(default_factory=list)
    sessions: list[Mux] = field(default_factory=list)
    logins: list[Login] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = listen(LOOPBACK, 0)
        config = ClientConfig(Address(LOOPBACK, self.listener.port), (), tls="off")
        self.shared = Shared(config)

    def start(self, *proxies: ClientProxy) -> Link:
        """Start a link with these proxies and return the link."""
        callbacks = Callbacks(
            lambda _: None,
            lambda proxy: self.refusals.append(proxy.name),
            lambda proxy: self.left_over.append(proxy.name),
        )
        link = Link(self.shared, [*proxies], callbacks)
        self.links.append(link)
        self.shared.crew.spawn(link.run)
        return link

    def accept(self) -> SocketConn:
        """Accept a control connection, and receive the Login."""
        conn = accept(self.listener)
        self.conns.append(conn)
        login = recv(conn)
        assert isinstance(login, Login)
        self.logins.append(login)
        return conn

    def log_in(self) -> SocketConn:
        """Let a control connection in, and receive the first request."""
        conn = self.accept()
        assert isinstance(recv(conn), ProxyReq)
        send(conn, Welcome(session="a session", features=(FEATURE_WAIT,)))
        return conn

    def log_in_multiplexed(self) -> tuple[Mux, Stream]:
        """Let a multiplexed session in; return it, and its control connection."""
        conn = self.accept()
        send(conn, Welcome(session="a session", features=(FEATURE_MUX,)))
        mux = Mux(conn, is_client=False)
        self.sessions.append(mux)
        control = mux.accept()
        assert isinstance(recv(control), ProxyReq)
        return mux, control

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        for link in self.links:
            link.end()
        self.shared.crew.kill()
        assert self.shared.crew.wait_empty(TIMEOUT_S)
        assert self.shared.users.wait_empty(TIMEOUT_S)
        self.listener.close()
        for conn in self.conns:
            conn.close()


def heard(conn: SocketConn) -> Message:
    """Return the next message that is not a heartbeat."""
    while isinstance(message := recv(conn), Heartbeat):
        pass
    return message


def hear_ticks(conn: SocketConn, count: int = 3) -> None:
    """Wait for this many heartbeats of the link; fails if any other message comes."""
    for _ in range(count):
        assert isinstance(recv(conn), Heartbeat)
