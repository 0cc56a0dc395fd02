"""Users of names: those who come to the web ports, and those whom the control port hands over."""

from __future__ import annotations

import time
from functools import partial
from socket import SHUT_WR
from typing import TYPE_CHECKING, Any

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.config import ServerConfig
from gnar_lib.errors import ConnError, ListenError, PortTakenError
from gnar_lib.http.limits import Limits
from gnar_lib.http.share import handshakes
from gnar_lib.net import Listener, SocketConn, deadline, descriptors, listen, network_of
from gnar_lib.net.descriptors import USER_COSTS
from gnar_lib.proxy.watch import watch
from gnar_lib.server.names.check import https_port_of, serves_at_control_port
from gnar_lib.server.shared import Shared
from gnar_lib.server.web.site import Site
from gnar_lib.server.web.visitor import Visitor
from gnar_lib.transport.peek import host_in_hello

if TYPE_CHECKING:
    from gnar_lib.net import EventedConn
    from gnar_lib.transport.certificates import Certificates

TICK_S = 1.0
ASKING_S = 0.3  # who has come, or has got an answer, within this time is likely to ask something
HELLO_S = 10.0  # for a ClientHello, and again for the rest of the handshake
REFUSING_PIECE_BYTES, MAX_REFUSING_PIECES = 4096, 64  # that are read behind a 503
MAX_REFUSING = 64  # users who get a 503 at the same time; further ones are just closed
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 32\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\nthere are too many connections\r\n"
)
UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"  # a fatal alert of TLS (RFC 6066, section 3)

_log = logger.get("web")


class WebIngress:
    """The HTTP port and the HTTPS port of a server, as far as its settings want them, and users of both.

    Raises `ConfigError` for an error page that cannot be used.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.site = Site(shared.names, shared.config, shared.answers)
        self._visitors: set[Visitor] = set()
        self._listeners: dict[str, Listener] = {}  # by scheme
        # For users of the HTTPS port. A certificate that the server has made is for clients alone.
        self._certificates: Certificates | None = shared.certificates if shared.config.tls_cert else None
        self._greeting: dict[SocketConn, float] = {}  # who shakes hands by TLS, and since when
        self._refusing = 0
        self._timer: Any = None
        # Whether the control port is for users, too. The setting behind that needs a restart.
        self.has_control_port = serves_at_control_port(shared.config)

    def start(self, given: dict[str, Listener] | None = None) -> None:
        """Listen; raises `ListenError`.

        `given` are listeners by scheme that are there already. Those whose port is no longer wanted are
        closed.
        """
        config, given = self._shared.config, given or {}
        self.site.https_port = https_port_of(config, self._shared.control_port)
        ports = {"http": (config.http_bind, config.http_port), "https": (config.bind, config.https_port)}
        for scheme, (bind, port) in ports.items():
            listener = given.pop(scheme, None)
            if listener is not None and listener.port != port:
                listener.close()
                listener = None
            if port:
                self._listeners[scheme] = listener or self._listen(bind, port, scheme)
                _log.info("users of names come to port %d (%s)", self._listeners[scheme].port, scheme.upper())
        if self.has_control_port:
            _log.info("users of names come to the control port, too")
        self.resume()
        self._timer = get_hub().loop.timer(TICK_S, TICK_S)
        self._timer.start(self._tick)

    def _listen(self, bind: str, port: int, scheme: str) -> Listener:
        try:
            return self._shared.ports.given.take(port) or listen(bind, port)
        except PortTakenError as exc:
            raise PortTakenError(f"{exc}; choose another with --{scheme}-port") from exc
        except ListenError as exc:
            raise ListenError(f"{exc}; allow that, or choose another with --{scheme}-port") from exc

    def use(self, config: ServerConfig) -> None:
        """Take new settings over; ports stay. Raises `ConfigError`."""
        self.site.use(config)

    @property
    def listeners(self) -> dict[str, Listener]:
        """The listeners by scheme."""
        return self._listeners

    def pause(self) -> None:
        """Accept nobody until `resume`: whoever comes waits in the kernel, and who is there may ask once."""
        self.site.is_ending = True
        for listener in self._listeners.values():
            listener.pause()

    def resume(self) -> None:
        """Accept users."""
        self.site.is_ending = False
        handlers = {"http": self._serve_http, "https": self._serve_https}
        for scheme, listener in self._listeners.items():
            serve = partial(self._shared.balancers.serve, serve=handlers[scheme])
            listener.serve(self._shared.users, serve, is_for_users=True)

    @property
    def expects_requests(self) -> bool:
        """Whether somebody is likely to ask soon, who would get no answer from a process that has let go."""
        now_s = time.monotonic()
        if any(now_s - began_s < ASKING_S for began_s in self._greeting.values()):
            return True
        return any(visitor.waited_s(now_s) < ASKING_S for visitor in self._visitors)

    def stop_listening(self) -> None:
        """Accept nobody any more, and end connections behind the request that they are at."""
        self.site.is_ending = self.site.is_closing = True
        for listener in self._listeners.values():
            listener.close()
        self.site.crowd.close_waiting()

    def close(self) -> None:
        """End what is left besides the connections."""
        self.stop_listening()
        if self._timer is not None:
            self._timer.stop()

    def _tick(self) -> None:
        """Once a second, in the hub: end waits that have lasted for too long."""
        now_s = time.monotonic()
        for visitor in [*self._visitors]:
            visitor.expire(now_s)

    # ---- users ---------------------------------------------------------------------------------------------

    def _serve_http(self, conn: SocketConn) -> None:
        """Serve a user of the HTTP port; closes the conn."""
        self._serve(conn, "http")

    def _serve(self, conn: EventedConn, scheme: str) -> None:
        """Serve a user if there is a place; closes the conn."""
        crowd = self.site.crowd
        try:
            if self.site.is_closing or not crowd.enter(conn):
                self._refuse(conn)
            else:
                self._visit(conn, scheme)
        finally:
            crowd.leave(conn)
            conn.close()

    def _visit(self, conn: EventedConn, scheme: str) -> None:
        visitor = Visitor(self.site, conn, scheme)
        self._visitors.add(visitor)
        watch.add(visitor)
        try:
            visitor.run()
        finally:
            watch.discard(visitor)
            self._visitors.discard(visitor)

    def _refuse(self, conn: EventedConn) -> None:
        if self._refusing >= MAX_REFUSING:
            return
        self._refusing += 1
        try:
            with deadline(1.0, f"{conn}: refusing"):
                conn.sendall(FULL)
                conn.shutdown(SHUT_WR)
                for _ in range(MAX_REFUSING_PIECES):
                    if not conn.recv(REFUSING_PIECE_BYTES):
                        break
        except ConnError as exc:
            _log.debug("%s", exc)
        finally:
            self._refusing -= 1

    def _serve_https(self, conn: SocketConn) -> None:
        """Serve a user of the HTTPS port; closes the conn."""
        crowd = self.site.crowd
        try:
            if self.site.is_closing or not crowd.enter(conn):
                return
            crowd.begin_wait(conn)
            self._greeting[conn] = time.monotonic()
            with deadline(HELLO_S, f"{conn}: a ClientHello"):
                host = host_in_hello(conn)
            proxy = self.site.names.find_tls(host)
            if proxy is not None:  # who has a certificate of its own
                crowd.leave(conn)
                del self._greeting[conn]
                proxy.serve(conn)
            elif self._certificates is None:
                conn.sendall(UNRECOGNIZED_NAME)
                conn.shutdown(SHUT_WR)
            else:
                self._serve_tls(conn, self._certificates)
        except ConnError as exc:
            _log.debug("%s: %s", conn, exc)
        finally:
            self._greeting.pop(conn, None)
            crowd.leave(conn)
            conn.close()

    def _serve_tls(self, conn: SocketConn, certificates: Certificates) -> None:
        from gnar_lib.transport.tls import TlsConn

        crowd = self.site.crowd
        with deadline(HELLO_S, f"{conn}: the TLS handshake"):
            handshakes.take(network_of(conn.getpeername()))
            tls = TlsConn.accept(conn, certificates.context)
        del self._greeting[conn]
        crowd.leave(conn)
        try:
            if crowd.enter(tls):
                self._visit(tls, "https")
        finally:
            crowd.leave(tls)
            tls.close()

    # ---- users of the control port -------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """The bounds of a request."""
        return self.site.limits

    def has_name(self, host: str) -> bool:
        """Tell whether a request at the control port is a user's, by its host."""
        return self.has_control_port and self.site.names.knows(host)

    def take(self, conn: EventedConn, scheme: str) -> None:
        """Serve a user who has come to the control port, in a greenlet of its own; closes the conn."""
        self._shared.users.spawn(self._serve if _has_room() else self._turn_away, conn, scheme)

    def _turn_away(self, conn: EventedConn, _scheme: str) -> None:
        try:
            self._refuse(conn)
        finally:
            conn.close()

    def takes_tls(self, conn: SocketConn, host: str) -> bool:
        """Tell whether TLS for a host is for a proxy that ends TLS itself; if so, serve and close `conn`."""
        proxy = self.site.names.find_tls(host) if self.has_control_port else None
        if proxy is None:
            return False
        if _has_room() and not self.site.is_closing:
            self._shared.users.spawn(proxy.serve, conn)
        else:
            conn.abort()
        return True


def _has_room() -> bool:
    """Tell whether a user whose connection is open may have the other descriptor, too.

    Users at the control port cannot wait in the kernel until there is room.
    """
    return not descriptors.is_short and descriptors.has_room(USER_COSTS - 1)
