"""The web ports: users who come by HTTP or HTTPS, each of whose requests says the name that it is for."""

from __future__ import annotations

import time
from functools import partial
from socket import SHUT_WR
from typing import TYPE_CHECKING, Any

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.config import ServerConfig
from gnar_lib.errors import ConnClosed, ConnError, ListenError, PortTakenError, ProtocolError
from gnar_lib.http.share import handshakes
from gnar_lib.net import Listener, SocketConn, deadline, listen, network_of
from gnar_lib.proxy.watch import watch
from gnar_lib.server.shared import Shared
from gnar_lib.server.web.site import Site
from gnar_lib.server.web.visitor import Visitor

if TYPE_CHECKING:
    from gnar_lib.net import EventedConn
    from gnar_lib.transport.certificates import Certificates

TICK_S = 1.0
ASKING_S = 0.3  # who has come, or has got an answer, within this time is likely to ask something
HELLO_S = 10.0  # for a ClientHello, and again for the rest of the handshake
HELLO_PIECE_BYTES = 4096
MAX_HELLO_PIECES = 256  # each is read with those before it, so that single bytes would take long
MAX_REFUSING = 64  # users who get a 503 at the same time; further ones are just closed
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 32\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\nthere are too many connections\r\n"
)
UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"  # a fatal alert of TLS (RFC 6066, section 3)

_log = logger.get("web")


class WebIngress:
    """The HTTP port and the HTTPS port of a server, as far as its settings want them.

    Raises `ConfigError` for an error page that cannot be used.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.site = Site(shared.names, shared.config, shared.answers)
        self._visitors: set[Visitor] = set()
        self._listeners: dict[str, Listener] = {}  # by scheme
        self._certificates: Certificates | None = None
        self._greeting: dict[SocketConn, float] = {}  # who shakes hands by TLS, and since when
        self._refusing = 0
        self._timer: Any = None
        config = shared.config
        if config.https_port:
            self.site.https_port = config.https_port
        if config.tls_cert:
            self._certificates = shared.certificates

    def start(self, given: dict[str, Listener] | None = None) -> None:
        """Listen; raises `ListenError`.

        `given` are listeners by scheme that are there already. Those whose port is no longer wanted are
        closed.
        """
        config, given = self._shared.config, given or {}
        ports = {"http": (config.http_bind, config.http_port), "https": (config.bind, config.https_port)}
        for scheme, (bind, port) in ports.items():
            listener = given.pop(scheme, None)
            if listener is not None and listener.port != port:
                listener.close()
                listener = None
            if port:
                self._listeners[scheme] = listener or self._listen(bind, port, scheme)
            if port:
                _log.info("users of names come to port %d (%s)", self._listeners[scheme].port, scheme.upper())
        if self._listeners:
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
        crowd = self.site.crowd
        try:
            if self.site.is_closing or not crowd.enter(conn):
                self._refuse(conn)
            else:
                self._serve(conn, "http")
        finally:
            crowd.leave(conn)
            conn.close()

    def _serve(self, conn: EventedConn, scheme: str) -> None:
        visitor = Visitor(self.site, conn, scheme)
        self._visitors.add(visitor)
        watch.add(visitor)
        try:
            visitor.run()
        finally:
            watch.discard(visitor)
            self._visitors.discard(visitor)

    def _refuse(self, conn: SocketConn) -> None:
        if self._refusing >= MAX_REFUSING:
            return
        self._refusing += 1
        try:
            with deadline(1.0, f"{conn}: refusing"):
                conn.sendall(FULL)
                conn.shutdown(SHUT_WR)
                while conn.recv(HELLO_PIECE_BYTES):
                    pass
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
            name = self._receive_name(conn)
            proxy = self.site.names.find_tls(name)
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

    def _receive_name(self, conn: SocketConn) -> str:
        """Return the name for which a ClientHello asks, which is still to be read."""
        from gnar_lib.transport.hello import server_name

        data = b""
        with deadline(HELLO_S, f"{conn}: a ClientHello"):
            try:
                pieces = 0
                while (name := server_name(data)) is None:
                    more = conn.recv(HELLO_PIECE_BYTES)
                    pieces += 1
                    if not more or pieces > MAX_HELLO_PIECES:
                        raise ConnClosed("no ClientHello")
                    data += more
            except ProtocolError:
                name = ""  # the handshake will say what is wrong
        conn.unread(data)
        return name

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
                self._serve(tls, "https")
        finally:
            crowd.leave(tls)
            tls.close()
