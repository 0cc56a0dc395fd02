"""One client's control connection: its proxies, its heartbeats, its waiting data connections.

The message loop reads like the protocol: one case per message, one call per case. Everything that the client
holds is freed in one place, `end`, however the connection died.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import gevent

from gnar_lib import auth, logger
from gnar_lib.errors import (
    ConnClosed,
    ConnError,
    GnarError,
    ListenError,
    MuxError,
    ProtocolError,
    ProxyRefusedError,
)
from gnar_lib.net import Conn, SocketConn, format_address, host_of
from gnar_lib.proto import Heartbeat, Login, Message, ProxyCancel, ProxyReq, ProxyResp, numbers, recv
from gnar_lib.proto.msg import STATUS_FAILED, STATUS_SUCCESS
from gnar_lib.proto.outbox import Outbox
from gnar_lib.server.proxy import Proxy
from gnar_lib.server.resources import PROXY_TYPES
from gnar_lib.server.udp import UdpProxy
from gnar_lib.server.waiting import WaitingConns
from gnar_lib.yamux import Session as Mux

if TYPE_CHECKING:
    from gnar_lib.server.serve import Server

HEARTBEAT_S = 1.0
SILENCE_S = 10.0  # our own clients send a heartbeat every second
GO_USER_TIMEOUT_S = 30.0  # a Go client is silent by nature: it must acknowledge our heartbeats
MAX_PROXIES = 1024  # of one client
NO_CONN_ID = "-"  # in the Exchange of a data connection that is there already: nothing is to be claimed

_log = logger.get("control")


def limit_silence(conn: SocketConn, session: auth.Session | None) -> None:
    """Have the kernel give up a client that no longer acknowledges what is sent to it."""
    conn.set_user_timeout(SILENCE_S if session else GO_USER_TIMEOUT_S)


class Control:
    """A client that is logged in; `session` is None for a Go client, `mux` unless it multiplexes."""

    def __init__(
        self, server: Server, conn: Conn, session: auth.Session | None, client_id: str, mux: Mux | None
    ) -> None:
        self.server = server
        self.mux = mux
        self.conn = conn
        self.session = session
        self.client_id = client_id
        self.address = format_address(conn.getpeername())
        self.host = host_of(conn.getpeername())
        self.waiting = WaitingConns(lambda number: self.post(Heartbeat(waiting=number)))
        self._numbers = auth.ReplayWindow()
        self._outbox = Outbox(conn, server.crew)
        self._proxies: dict[tuple[str, int], Proxy | UdpProxy] = {}
        self._heard_s = time.monotonic()
        self._is_ended = False

    def run(self, first: Message) -> None:
        """Serve the client until its control connection ends, then free all it has."""
        self.server.crew.spawn(self._tick)
        try:
            self._handle(first)
            while True:
                self._handle(recv(self.conn))
        except ConnError as exc:
            _log.info("client %s has gone: %s", self.address, exc)
        except ProtocolError as exc:
            _log.warning("client %s broke the protocol: %s", self.address, exc)
        finally:
            self.end()

    def _handle(self, message: Message) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Heartbeat():
                pass
            case ProxyReq():
                self._open_proxy(message)
            case ProxyCancel():
                self.cancel(message)
            case _:
                raise ProtocolError(f"{type(message).__name__} on a control connection")

    def _tick(self) -> None:
        """Once a second: say that we live, notice that the client does not, tend what waits."""
        while not self._is_ended:
            self.post(Heartbeat())
            if self.session is not None and time.monotonic() - self._heard_s > SILENCE_S:
                _log.info("client %s has been silent for %g s", self.address, SILENCE_S)
                self.conn.abort()
                return
            if self._may_wait:
                self.waiting.tend()
            gevent.sleep(HEARTBEAT_S)

    # ---- proxies -------------------------------------------------------------------------------------------

    def _open_proxy(self, request: ProxyReq) -> None:
        """Open what the client asks for, and answer; a failure is an answer, too."""
        log = logger.get(f"{request.proxy_type.upper()} [{request.proxy_name}]")
        try:
            proxy = self._opened(request)
        except GnarError as exc:
            log.warning("refused to %s: %s", self.address, exc)
            self._answer(request, STATUS_FAILED, error=str(exc), retry=not isinstance(exc, ProxyRefusedError))
            return
        log.info("port %d is open for %s", proxy.port, self.address)
        self._answer(request, STATUS_SUCCESS, remote_port=proxy.port)
        if self._may_wait and proxy.type == "tcp":
            self.waiting.open()
        proxy.start()

    def _opened(self, request: ProxyReq) -> Proxy | UdpProxy:
        if self.server.stopping:
            raise ListenError("the server is stopping")
        if request.proxy_type not in PROXY_TYPES:
            raise ProxyRefusedError(f"proxy type {request.proxy_type!r} is not supported by this server")
        if request.subdomain:
            raise ProxyRefusedError("this server has no domain: leave the subdomain out")
        if len(self._proxies) >= MAX_PROXIES:
            raise ProxyRefusedError(f"one client may have {MAX_PROXIES} proxies")
        ports, allowed = self.server.ports, self.server.config.allow_ports
        proxy: Proxy | UdpProxy
        if request.proxy_type == "udp":
            proxy = UdpProxy(self, request.proxy_name, ports.bind_udp(request.remote_port, allowed))
        else:
            proxy = Proxy(self, request.proxy_name, ports.listen(request.remote_port, allowed))
        if self._is_ended:  # while the address to bind to was looked up; nobody would close it any more
            proxy.close()
            raise ConnClosed("the control connection has ended")
        ports.hold(proxy.type, proxy.port, proxy)
        self._proxies[proxy.type, proxy.port] = proxy
        return proxy

    def _answer(
        self, request: ProxyReq, status: str, *, error: str = "", retry: bool = False, remote_port: int = 0
    ) -> None:
        if self.session is None:  # the Go program gets what it knows
            self.post(ProxyResp(domain="", status=status))
            return
        self.post(
            ProxyResp(
                domain="",
                status=status,
                error=error,
                retry=retry,
                remote_port=remote_port,
                proxy_name=request.proxy_name,
            )
        )

    def cancel(self, message: ProxyCancel) -> None:
        """Close a proxy of this client; users that are there stay. One that it does not have is refused."""
        found = (self._proxies.get((kind, message.remote_port)) for kind in PROXY_TYPES)
        proxy = next((each for each in found if each is not None and each.name == message.proxy_name), None)
        if proxy is None:
            _log.warning(
                "refused: %s cancels %r on port %d", self.address, message.proxy_name, message.remote_port
            )
            return
        self._close(proxy)
        proxy.log.info("cancelled by %s", self.address)
        if self.session is None and proxy.type == "tcp":  # as the Go server says of a listener that it closes
            self.post(ProxyResp(domain="", status=STATUS_FAILED))

    def _close(self, proxy: Proxy | UdpProxy) -> None:
        del self._proxies[proxy.type, proxy.port]
        self.server.ports.release(proxy.type, proxy.port, proxy)
        proxy.close()
        if not self._proxies:
            self.waiting.close()

    @property
    def udp_users(self) -> int:
        """How many users of UDP proxies were heard of lately."""
        return sum(proxy.users for proxy in self._proxies.values() if isinstance(proxy, UdpProxy))

    # ---- data connections ----------------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """Send a message to the client; never waits."""
        self._outbox.post(message)

    @property
    def _may_wait(self) -> bool:
        return self.mux is None and self.session is not None and numbers.FEATURE_WAIT in self.session.features

    def admit_waiting(self, conn: SocketConn, login: Login) -> None:
        """Keep a data connection for the next user, when it proves to be this session's and no replay."""
        session = self.session
        is_signed = session is not None and session.is_signed(auth.waiting_id(login.waiting), login.proof)
        if is_signed and self._numbers.take(login.waiting):
            self.waiting.add(conn)
        else:
            _log.warning("refused %s: a data connection that proves nothing", conn)
            conn.close()

    def take_data_conn(self, proxy: Proxy, user: SocketConn) -> Conn | None:
        """Return a data connection that needs no asking for, its Exchange sent; None when there is none.

        Multiplexed, that is a stream that we open; otherwise one that has been waiting.
        """
        while (conn := self._next_data_conn()) is not None:
            try:
                conn.sendall(proxy.frame_for(NO_CONN_ID, user))
            except ConnError:
                conn.close()
            else:
                return conn
        return None

    def _next_data_conn(self) -> Conn | None:
        if self._may_wait:
            return self.waiting.take()
        if self.mux is None or self.session is None or numbers.FEATURE_MUX not in self.session.features:
            return None
        try:
            return self.mux.open()
        except MuxError:  # the session is ending, and so is this control connection
            return None

    # ---- the end -------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Take no more users."""
        for proxy in self._proxies.values():
            proxy.close()

    def end(self) -> None:
        """Free the ports and the waiting users, close the conns; more than once does no harm."""
        if self._is_ended:
            return
        self._is_ended = True
        self._outbox.close()
        self.conn.close()
        if self.mux is not None:
            self.mux.close()
        for proxy in [*self._proxies.values()]:
            self._close(proxy)
        self.server.forget(self)
